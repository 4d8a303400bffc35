// Argument checks of kl_sample, the same for every device.
#pragma once

#include "common.h"

namespace diffaccel {

// x0 [B, *], alpha [B], coeff [B, M]
inline NoiseStream check_kl_sample(const Tensor& x0, const Tensor& alpha, const Tensor& coeff, int64_t seed,
                                   int64_t step, int64_t first_sample) {
  STD_TORCH_CHECK(x0.dim() >= 1, "kl_sample: expected x0 with a sample dimension, got a scalar");
  const int64_t rows = x0.size(0);
  STD_TORCH_CHECK(alpha.dim() == 1 && alpha.size(0) == rows, "kl_sample: alpha must be [B]");
  STD_TORCH_CHECK(coeff.dim() == 2 && coeff.size(0) == rows, "kl_sample: coeff must be [B, M]");
  const int64_t terms = coeff.size(1);
  STD_TORCH_CHECK(terms >= 1 && terms <= kMaxTerms, "kl_sample: M must be in [1, 2^24], got ", terms);
  return check_noise_arguments("kl_sample", rows, elements_per_row(x0), seed, step, first_sample);
}

}  // namespace diffaccel
