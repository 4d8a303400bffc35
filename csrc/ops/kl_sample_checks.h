// Argument checks of kl_sample, the same for every device.
#pragma once

#include "common.h"

namespace diffaccel {

// x0 [B, *], alpha [B] and coeff [B, M], or alpha [B, S] and coeff [B, S, M]
inline NoiseStream check_kl_sample(const Tensor& x0, const Tensor& alpha, const Tensor& coeff, int64_t seed,
                                   int64_t step, int64_t first_sample) {
  STD_TORCH_CHECK(x0.dim() >= 1, "kl_sample: expected x0 with a sample dimension, got a scalar");
  const int64_t rows = x0.size(0);
  STD_TORCH_CHECK((alpha.dim() == 1 || alpha.dim() == 2) && alpha.size(0) == rows,
                  "kl_sample: alpha must be [B] or [B, S]");
  STD_TORCH_CHECK(
      coeff.dim() == alpha.dim() + 1 && coeff.size(0) == rows && (alpha.dim() == 1 || coeff.size(1) == alpha.size(1)),
      "kl_sample: coeff must be [B, M], or [B, S, M] with alpha [B, S]");
  const int64_t terms = coeff.size(coeff.dim() - 1);
  STD_TORCH_CHECK(terms >= 1 && terms <= kMaxTerms, "kl_sample: M must be in [1, 2^24], got ", terms);
  return check_noise_arguments("kl_sample", rows, elements_per_row(x0), seed, step, first_sample);
}

// The shape of x_t and the noise: x0's, with the times behind the samples where alpha has them.
inline std::vector<int64_t> kl_sample_shape(const Tensor& x0, const Tensor& alpha) {
  std::vector<int64_t> shape = shape_of(x0);
  if (alpha.dim() == 2) shape.insert(shape.begin() + 1, alpha.size(1));
  return shape;
}

}  // namespace diffaccel
