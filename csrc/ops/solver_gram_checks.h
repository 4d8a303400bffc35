// Argument checks of solver_gram, the same for every device.
#pragma once

#include "../core/solver_gram.h"
#include "common.h"

namespace diffaccel {

// directions J x [*], residual [*]: makes the directions contiguous in one dtype, which it returns
inline ScalarType check_solver_gram(std::vector<Tensor>& directions, const Tensor& residual) {
  STD_TORCH_CHECK(directions.size() <= kMaxDirections, "solver_gram: at most 16 directions, got ", directions.size());
  const ScalarType stored = directions.empty() ? residual.scalar_type() : directions[0].scalar_type();
  for (Tensor& direction : directions) {
    STD_TORCH_CHECK(shape_of(direction) == shape_of(residual),
                    "solver_gram: directions must have the residual's shape");
    direction = contiguous_as(direction, stored);
  }
  return stored;
}

}  // namespace diffaccel
