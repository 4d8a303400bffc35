// Sums of Karhunen-Loeve terms on the CPU: the coefficients of a row as a list of those that are not zero, and the sum
// of that list over a group of elements at all times of a block. Host only.
#pragma once

#include "kl_expansion.h"
#include "normal_group.h"

namespace diffaccel {

constexpr int kKlTimes = 64;  // times of one block: their sums of a group stay in cache, and Z_k is made once for all
constexpr int kKlDrawn = 4;   // terms drawn before they are added, so that a sum is loaded and stored once for four

// Terms that are drawn together, and how many entries add them.
struct KlDrawing {
  uint32_t term[kKlDrawn];
  int32_t terms, entries;
};

// The weights of a drawing's terms at one time, counted from the first of its block; at least one is not zero.
template <class W>
struct KlEntry {
  W weight[kKlDrawn];
  uint16_t time;
  bool first;  // of its time: starts the sum
};

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

// coeff [times, M] of one block -> its drawings in the order of the terms, each with its entries; returns the number of
// drawings. With sigma [times] the weights are those of unit noise, without it the coefficients themselves. Terms that
// are zero at all times are left out. Room needed: ceil(M / 4) drawings, times ceil(M / 4) entries.
template <class W, class C>
inline int64_t kl_compress(const C* coeff, int64_t terms, int times, const double* sigma, KlDrawing* drawing,
                           KlEntry<W>* entry) {
  W weight[kKlTimes][kKlDrawn] = {};
  bool seen[kKlTimes] = {};
  int64_t count = 0;
  int drawn = 0;
  const auto finish = [&] {
    if (drawn == 0) return;
    KlDrawing& last = drawing[count++];
    last.terms = drawn;
    last.entries = 0;
    for (int s = 0; s < times; ++s) {
      bool used = false;
      for (const W w : weight[s]) used |= w != 0;
      if (!used) continue;
      entry->time = static_cast<uint16_t>(s);
      entry->first = !seen[s];
      for (int n = 0; n < kKlDrawn; ++n) {
        entry->weight[n] = weight[s][n];
        weight[s][n] = 0;
      }
      seen[s] = true;
      ++entry;
      ++last.entries;
    }
    drawn = 0;
  };
  const auto take = [&](int64_t k) {
    bool used = false;
    for (int s = 0; s < times; ++s) {
      const C c = coeff[s * terms + k];
      const W w = sigma != nullptr ? static_cast<W>(kl_weight(c, sigma[s], k)) : static_cast<W>(c);
      weight[s][drawn] = w;
      used |= w != 0;
    }
    if (!used) return;
    drawing[count].term[drawn++] = static_cast<uint32_t>(k);
    if (drawn == kKlDrawn) finish();
  };
  take(0);  // also at a clean end, which has weight on it although its coefficient is zero
  for_terms(coeff, terms, times, [&](int64_t k) {
    if (k > 0) take(k);
  });
  finish();
  return count;
}

// acc = (kAdd ? acc : 0) + sum_n weight[n] z[n] over a group, one term after the other.
template <bool kFused, bool kAdd, int kTerms, class W>
DIFFACCEL_INLINE void kl_add_terms(const W* weight, const float (*__restrict__ z)[kGroup], W* __restrict__ acc) {
  for (int e = 0; e < kGroup; ++e) {
    W sum = kAdd ? acc[e] : W{0};
    DIFFACCEL_UNROLL
    for (int n = 0; n < kTerms; ++n) {
      const W value = static_cast<W>(z[n][e]);
      if (n == 0 && !kAdd)
        sum = weight[0] * value;
      else if constexpr (kFused)
        sum = fused(weight[n], value, sum);
      else
        sum = mul_add(weight[n], value, sum);
    }
    acc[e] = sum;
  }
}

// sum[time] = sum_k weight Z_k over one group for the times that have entries; the others keep what they hold. Products
// and sums are fused or rounded one by one.
template <bool kFused, class W>
DIFFACCEL_INLINE void kl_sum_group(const NoiseStream& stream, int64_t group, uint32_t sample, const KlDrawing* drawing,
                                   int64_t drawings, const KlEntry<W>* entry, W (*sum)[kGroup]) {
  alignas(64) float z[kKlDrawn][kGroup];
  for (int64_t d = 0; d < drawings; ++d) {
    const int terms = drawing[d].terms;
    for (int n = 0; n < terms; ++n) normal_group(stream, group, sample, drawing[d].term[n], z[n]);
    for (int i = 0; i < drawing[d].entries; ++i, ++entry) {
      W* acc = sum[entry->time];
      const W* w = entry->weight;
      const bool first = entry->first;
      switch (terms) {
        case 1: first ? kl_add_terms<kFused, false, 1>(w, z, acc) : kl_add_terms<kFused, true, 1>(w, z, acc); break;
        case 2: first ? kl_add_terms<kFused, false, 2>(w, z, acc) : kl_add_terms<kFused, true, 2>(w, z, acc); break;
        case 3: first ? kl_add_terms<kFused, false, 3>(w, z, acc) : kl_add_terms<kFused, true, 3>(w, z, acc); break;
        default: first ? kl_add_terms<kFused, false, 4>(w, z, acc) : kl_add_terms<kFused, true, 4>(w, z, acc);
      }
    }
  }
}

}  // namespace diffaccel
