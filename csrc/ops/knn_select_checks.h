// Argument checks of knn_select, the same for every device.
#pragma once

#include "common.h"

namespace diffaccel {

// x [B, *], candidates [B, k, *] or a shared pool [k, *]; whether they are shared
inline bool check_knn_select(const Tensor& x, const Tensor& candidates, int64_t metric) {
  STD_TORCH_CHECK(metric == 0 || metric == 1, "knn_select: metric must be 0 (squared L2) or 1 (dot), got ", metric);
  const bool shared = candidates.dim() == x.dim();
  STD_TORCH_CHECK(x.dim() >= 1 && (shared || candidates.dim() == x.dim() + 1),
                  "knn_select: candidates must be [B, k, *] or [k, *]");
  STD_TORCH_CHECK(x.scalar_type() == candidates.scalar_type(), "knn_select: x and candidates differ in dtype");
  STD_TORCH_CHECK(shared || candidates.size(0) == x.size(0), "knn_select: ", x.size(0), " samples but candidates for ",
                  candidates.size(0));
  const int64_t lead = shared ? 0 : 1;
  for (int64_t d = 1; d < x.dim(); ++d)
    STD_TORCH_CHECK(candidates.size(d + lead) == x.size(d), "knn_select: sample shapes differ");
  STD_TORCH_CHECK(candidates.size(lead) >= 1, "knn_select: needs at least one candidate");
  return shared;
}

}  // namespace diffaccel
