// Argument checks of knn_noise, the same for every device.
#pragma once

#include "common.h"

namespace diffaccel {

// x [B, *]
inline NoiseStream check_knn_noise(const Tensor& x, int64_t k, int64_t metric, int64_t seed, int64_t step,
                                   int64_t first_sample) {
  STD_TORCH_CHECK(x.dim() >= 1, "knn_noise: expected a tensor with a sample dimension, got a scalar");
  STD_TORCH_CHECK(k >= 1 && k < kMaxIndex, "knn_noise: k must be in [1, 2^32), got ", k);
  STD_TORCH_CHECK(metric == 0 || metric == 1, "knn_noise: metric must be 0 (squared L2) or 1 (dot), got ", metric);
  return check_noise_arguments("knn_noise", x.size(0), elements_per_row(x), seed, step, first_sample);
}

}  // namespace diffaccel
