// Sums of Karhunen-Loeve terms on the CPU: the coefficients of a row as a list of those that are not zero, and the sum
// of that list over a group of elements at all times of a block. Host only.
#pragma once

#include "kl_expansion.h"
#include "normal_group.h"

namespace diffaccel {

// Elements of one group of one sample, in registers or first-level cache.
struct GroupBuffer {
  alignas(64) float v[kGroup];
};

// One coefficient that is not zero. `time` counts from the first time of its block.
template <class W>
struct KlEntry {
  uint32_t term;
  uint16_t time;
  bool first;  // of its time: starts the sum
  W weight;
};

constexpr int kKlTimes = 64;  // times of one block: their sums of a group stay in cache, and Z_k is made once for all

// Calls f(k) for the terms in order, leaving out runs of 16 that are zero at all times.
template <class C, class F>
inline void for_terms(const C* coeff, int64_t terms, int times, const F& f) {
  constexpr int64_t kRun = 16;
  for (int64_t begin = 0; begin < terms; begin += kRun) {
    const int64_t end = begin + kRun < terms ? begin + kRun : terms;
    bool any = false;
    for (int s = 0; s < times; ++s) {
      const C* c = coeff + s * terms;
      for (int64_t k = begin; k < end; ++k) any |= c[k] != 0;
    }
    if (!any) continue;
    for (int64_t k = begin; k < end; ++k) f(k);
  }
}

// sigma = sqrt(sum_k c_k^2) of one time, in double.
template <class C>
inline double kl_sigma(const C* coeff, int64_t terms) {
  if (terms == 1) return coeff[0] < 0 ? -static_cast<double>(coeff[0]) : static_cast<double>(coeff[0]);
  double sum = 0;
  for_terms(coeff, terms, 1, [&](int64_t k) { sum += static_cast<double>(coeff[k]) * static_cast<double>(coeff[k]); });
  return sqrt(sum);
}

// coeff [times, M] of one block -> its entries by term, then by time; returns their number, at most times * M. With
// sigma [times] the weights are those of unit noise, without it the coefficients themselves.
template <class W, class C>
inline int64_t kl_compress(const C* coeff, int64_t terms, int times, const double* sigma, KlEntry<W>* out) {
  bool seen[kKlTimes] = {};
  int64_t count = 0;
  const auto take = [&](int64_t k) {
    for (int s = 0; s < times; ++s) {
      const C c = coeff[s * terms + k];
      const W weight = sigma != nullptr ? static_cast<W>(kl_weight(c, sigma[s], k)) : static_cast<W>(c);
      if (weight == 0) continue;
      out[count++] = {static_cast<uint32_t>(k), static_cast<uint16_t>(s), !seen[s], weight};
      seen[s] = true;
    }
  };
  take(0);  // also at a clean end, which has weight on it although its coefficient is zero
  for_terms(coeff, terms, times, [&](int64_t k) {
    if (k > 0) take(k);
  });
  return count;
}

// sum[time] = sum_k weight Z_k over one group for the times that have entries; the others keep what they hold. Products
// and sums are fused or rounded one by one.
template <bool kFused, class W>
DIFFACCEL_INLINE void kl_sum_group(const NoiseStream& stream, int64_t group, uint32_t sample, const KlEntry<W>* entry,
                                   int64_t count, W (*sum)[kGroup]) {
  GroupBuffer z;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || entry[i].term != entry[i - 1].term) normal_group(stream, group, sample, entry[i].term, z.v);
    const W weight = entry[i].weight;
    W* __restrict__ acc = sum[entry[i].time];
    if (entry[i].first) {
      for (int e = 0; e < kGroup; ++e) acc[e] = weight * static_cast<W>(z.v[e]);
    } else if constexpr (kFused) {
      for (int e = 0; e < kGroup; ++e) acc[e] = fused(weight, static_cast<W>(z.v[e]), acc[e]);
    } else {
      for (int e = 0; e < kGroup; ++e) acc[e] = mul_add(weight, static_cast<W>(z.v[e]), acc[e]);
    }
  }
}

}  // namespace diffaccel
