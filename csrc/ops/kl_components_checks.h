// Argument checks of kl_components, the same for every device.
#pragma once

#include "common.h"

namespace diffaccel {

// How the terms of a sample hang together: kIid, each its own stream; kAntithetic, term 2j + 1 is minus term 2j.
enum class Draws : int64_t { kIid = 0, kAntithetic = 1 };

// x0 [B, *], alpha [B], sigma [B]
inline NoiseStream check_kl_components(const Tensor& x0, const Tensor& alpha, const Tensor& sigma, int64_t terms,
                                       int64_t seed, int64_t step, int64_t first_sample, int64_t draws) {
  STD_TORCH_CHECK(x0.dim() >= 1, "kl_components: expected x0 with a sample dimension, got a scalar");
  STD_TORCH_CHECK(terms >= 1 && terms <= kMaxTerms, "kl_components: num_terms must be in [1, 2^24], got ", terms);
  STD_TORCH_CHECK(draws == 0 || draws == 1, "kl_components: draws must be 0 (iid) or 1 (antithetic), got ", draws);
  const int64_t rows = x0.size(0);
  STD_TORCH_CHECK(alpha.dim() == 1 && alpha.size(0) == rows, "kl_components: alpha must be [B]");
  STD_TORCH_CHECK(sigma.dim() == 1 && sigma.size(0) == rows, "kl_components: sigma must be [B]");
  return check_noise_arguments("kl_components", rows, elements_per_row(x0), seed, step, first_sample);
}

}  // namespace diffaccel
