// Truncated Karhunen-Loeve noise: x_t = alpha x_0 + sum_k c_k Z_k with Z_k ~ N(0, I) (arXiv 2503.17657).
// Z_k is made on the fly from (seed, step, sample, k, element) and never stored; Z_0 is the stream of gaussian_noise.
// Only the terms that are not zero cost anything: the coefficients of a row are compressed to a list first.
#pragma once

#include "gaussian_noise.h"

namespace diffaccel {

// c_k / sigma in double, rounded once, so that M = 1 is exactly Z_0. All-zero coefficients (a clean end, sigma = 0)
// give the weights (1, 0, ...): the noise stays a unit normal.
DIFFACCEL_HD inline float kl_weight(double coeff, double sigma, int64_t term) {
  if (coeff == 0 && term > 0) return 0.0f;
  return sigma > 0 ? static_cast<float>(coeff / sigma) : (term == 0 ? 1.0f : 0.0f);
}

}  // namespace diffaccel
