// Argument checks of kl_path, the same for every device.
#pragma once

#include "common.h"

namespace diffaccel {

// x0 [B, *], alpha [S], coeff [S, M]
inline NoiseStream check_kl_path(const Tensor& x0, const Tensor& alpha, const Tensor& coeff, int64_t seed, int64_t step,
                                 int64_t first_sample) {
  STD_TORCH_CHECK(x0.dim() >= 1, "kl_path: expected x0 with a sample dimension, got a scalar");
  STD_TORCH_CHECK(alpha.dim() == 1, "kl_path: alpha must be [S]");
  STD_TORCH_CHECK(coeff.dim() == 2 && coeff.size(0) == alpha.size(0), "kl_path: coeff must be [S, M]");
  const int64_t terms = coeff.size(1);
  STD_TORCH_CHECK(terms >= 1 && terms <= kMaxTerms, "kl_path: M must be in [1, 2^24], got ", terms);
  return check_noise_arguments("kl_path", x0.size(0), elements_per_row(x0), seed, step, first_sample);
}

}  // namespace diffaccel
