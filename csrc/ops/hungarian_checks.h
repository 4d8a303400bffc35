// The argument checks of hungarian and hungarian_with_status, CPU and CUDA.
#pragma once

#include "common.h"

namespace diffaccel {

struct AssignmentShape {
  std::vector<int64_t> columns;  // [..., R]
  std::vector<int64_t> status;   // [...]
  int64_t items, R, C;
};

inline AssignmentShape check_hungarian(const Tensor& cost) {
  STD_TORCH_CHECK(cost.dim() >= 2, "hungarian: expected a cost of shape [..., R, C], got ", cost.dim(), " dimensions");
  AssignmentShape shape{shape_of(cost), {}, 1, cost.size(cost.dim() - 2), cost.size(cost.dim() - 1)};
  STD_TORCH_CHECK(shape.R < INT32_MAX && shape.C < INT32_MAX, "hungarian: at most 2^31 - 2 rows and columns");
  shape.columns.pop_back();
  shape.status = shape.columns;
  shape.status.pop_back();
  for (const int64_t size : shape.status) shape.items *= size;
  return shape;
}

}  // namespace diffaccel
