// Truncated Karhunen-Loeve noise: x_t = alpha x_0 + sum_k c_k Z_k with Z_k ~ N(0, I) (arXiv 2503.17657).
// Z_k is made on the fly from (seed, step, sample, k, element) and never stored; Z_0 is the stream of gaussian_noise.
#pragma once

#include "gaussian_noise.h"

namespace diffaccel {

// Elements of one group of one sample, in registers or first-level cache.
struct GroupBuffer {
  alignas(64) float v[kGroup];
};

// sum_k weights[k] Z_k over one group; weights have unit norm, so M = 1 is exactly Z_0.
DIFFACCEL_INLINE void kl_sum_group(const NoiseStream& stream, int64_t group, uint32_t sample, const float* weights,
                                   int64_t terms, GroupBuffer& sum) {
  GroupBuffer z;
  for (int64_t k = 0; k < terms; ++k) {
    normal_group(stream, group, sample, static_cast<uint32_t>(k), z.v);
    const float weight = weights[k];
    if (k == 0) {
      for (int e = 0; e < kGroup; ++e) sum.v[e] = weight * z.v[e];
    } else {
      for (int e = 0; e < kGroup; ++e) sum.v[e] = fused(weight, z.v[e], sum.v[e]);
    }
  }
}

// sigma = sqrt(sum_k c_k^2) and weights c_k / sigma, in double, rounded once. All-zero coefficients (a clean end) give
// sigma = 0 and the weights (1, 0, ...): the noise stays a unit normal.
template <class C>
DIFFACCEL_HD inline double kl_normalise(const C* coeff, int64_t terms, float* weights) {
  double sum = 0;
  for (int64_t k = 0; k < terms; ++k) sum += static_cast<double>(coeff[k]) * static_cast<double>(coeff[k]);
  const double sigma =
      terms == 1 ? (coeff[0] < 0 ? -static_cast<double>(coeff[0]) : static_cast<double>(coeff[0])) : sqrt(sum);
  for (int64_t k = 0; k < terms; ++k)
    weights[k] = sigma > 0 ? static_cast<float>(static_cast<double>(coeff[k]) / sigma) : (k == 0 ? 1.0f : 0.0f);
  return sigma;
}

}  // namespace diffaccel
