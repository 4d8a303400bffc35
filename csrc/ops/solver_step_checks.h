// Argument checks of solver_step, the same for every device.
#pragma once

#include "../core/solver_step.h"
#include "common.h"

namespace diffaccel {

// x [*], outputs J x [*], b [J]: makes the outputs contiguous in one dtype, which it returns
inline ScalarType check_solver_step(const Tensor& x, std::vector<Tensor>& outputs, const std::vector<double>& b) {
  STD_TORCH_CHECK(outputs.size() == b.size(), "solver_step: ", outputs.size(), " outputs but ", b.size(),
                  " coefficients");
  STD_TORCH_CHECK(outputs.size() <= kMaxOutputs, "solver_step: at most 16 outputs, got ", outputs.size());
  ScalarType stored = outputs.empty() ? x.scalar_type() : outputs[0].scalar_type();
  for (const Tensor& output : outputs)
    if (output.scalar_type() != stored) {  // what the sum is made in
      stored = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
      break;
    }
  for (Tensor& output : outputs) {
    STD_TORCH_CHECK(shape_of(output) == shape_of(x), "solver_step: outputs must have the shape of x");
    output = contiguous_as(output, stored);
  }
  return stored;
}

// out [*]: where the result goes, in x's shape and dtype
inline void check_solver_step_out(const Tensor& x, const Tensor& out) {
  STD_TORCH_CHECK(out.scalar_type() == x.scalar_type() && shape_of(out) == shape_of(x) && out.is_contiguous() &&
                      out.get_device_index() == x.get_device_index(),
                  "solver_step: out must be contiguous with the shape, dtype and device of x");
}

}  // namespace diffaccel
