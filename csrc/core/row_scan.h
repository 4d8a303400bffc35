// Scans of one row of a cost matrix against column prices, for three instruction sets. Host only.
//
// The reduced cost of column j is cost[j] - price[j]. Every function finds minima, or the lowest index with a property,
// and sums nothing across lanes: the answer is the same for every vector width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hd.h"
#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC diagnostic push  // GCC 12 takes the undefined vectors inside these headers for mistakes of ours
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace diffaccel {

// What columns_below may write beyond the number of columns that it returns.
constexpr int64_t kScanSlack = 16;

template <class T>
struct BestTwo {
  T first, second;   // the two least reduced costs
  int64_t position;  // the lowest one that attains `first`
};

// Asks for what lies `elements` further on, a row to be scanned soon: it may lie beyond the matrix, 0 is nothing.
template <class T>
DIFFACCEL_INLINE void prefetch_ahead(const T* at, int64_t elements) {
  __builtin_prefetch(
      reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + static_cast<uintptr_t>(elements) * sizeof(T)));
}

// The mean, summed by halves: every vector width adds the same pairs. x is overwritten.
template <class T>
T mean_of_32(T* x) {
  for (int k = 0; k < 32; ++k) x[k] *= static_cast<T>(0.03125);  // before the sum, which could overflow
  for (int half = 16; half > 0; half /= 2)
    for (int k = 0; k < half; ++k) x[k] += x[k + half];
  return x[0];
}

// One element at a time: the baseline of every build.
template <class T, int W>
struct RowScan {
  static T least(const T* cost, const T* price, int64_t n) {
    T best = std::numeric_limits<T>::infinity();
    for (int64_t j = 0; j < n; ++j) best = std::min(best, cost[j] - price[j]);
    return best;
  }

  // The columns with a reduced cost below `bound`, in order. columns: [n + kScanSlack]; ahead: prefetch_ahead.
  static int64_t columns_below(const T* cost, const T* price, T bound, int64_t n, int32_t* columns, int64_t = 0) {
    int64_t count = 0;
    for (int64_t j = 0; j < n; ++j) {
      columns[count] = static_cast<int32_t>(j);
      count += cost[j] - price[j] < bound ? 1 : 0;
    }
    return count;
  }

  static int64_t few_below(const T* cost, const T* price, T bound, int64_t n, int32_t* columns, int64_t = 0) {
    return columns_below(cost, price, bound, n, columns);
  }

  // Over gathered prices: cost[k] - price[column[k]], k < n <= 64, n a multiple of 16. C: T or narrower.
  template <class C>
  static BestTwo<T> best_two(const C* cost, const int32_t* column, const T* price, int64_t n) {
    BestTwo<T> best{std::numeric_limits<T>::infinity(), std::numeric_limits<T>::infinity(), 0};
    for (int64_t k = 0; k < n; ++k) {
      const T r = static_cast<T>(cost[k]) - price[column[k]];
      if (r < best.first) {
        best.second = best.first;
        best.first = r;
        best.position = k;
      } else {
        best.second = std::min(best.second, r);
      }
    }
    return best;
  }

  // The mean over 32 classes of columns (j modulo 32) of the least reduced cost in the class: a row's level. not_finite
  // becomes NaN where some cost is not finite. n >= 32; ahead: prefetch_ahead.
  static T level(const T* cost, const T* price, int64_t n, int64_t, T& not_finite) {
    T least[32];
    std::fill(least, least + 32, std::numeric_limits<T>::infinity());
    for (int64_t j = 0; j < n; ++j) {
      least[j % 32] = std::min(least[j % 32], cost[j] - price[j]);
      not_finite += cost[j] - cost[j];
    }
    return mean_of_32(least);
  }

  // The same, but for not_finite, where 32 of each `every` columns are looked at; every is a multiple of 32.
  static T level_of_some(const T* cost, const T* price, int64_t n, int64_t every) {
    T least[32];
    std::fill(least, least + 32, std::numeric_limits<T>::infinity());
    for (int64_t begin = 0; begin + 32 <= n; begin += every)
      for (int64_t k = 0; k < 32; ++k) least[k] = std::min(least[k], cost[begin + k] - price[begin + k]);
    return mean_of_32(least);
  }

  // plain[j] = min(plain[j], cost[j]); not_finite as above. n >= the lanes of a vector
  static void lower_one(const T* cost, int64_t n, T* plain, T& not_finite) {
    for (int64_t j = 0; j < n; ++j) {
      plain[j] = std::min(plain[j], cost[j]);
      not_finite += cost[j] - cost[j];
    }
  }

  // plain[j] = min(plain[j], cost[r][j]) and shifted[j] = min(shifted[j], cost[r][j] - level[r]) over four rows r.
  // kFirst: nothing has looked at all of these rows, so it is this that fetches ahead and finds what is not finite.
  template <bool kFirst>
  static void lower(const T* const (&cost)[4], const T (&level)[4], int64_t n, T* plain, T* shifted, int64_t,
                    T& not_finite) {
    for (int64_t j = 0; j < n; ++j) {
      for (int r = 0; r < 4; ++r) {
        if (kFirst) not_finite += cost[r][j] - cost[r][j];
        plain[j] = std::min(plain[j], cost[r][j]);
        shifted[j] = std::min(shifted[j], cost[r][j] - level[r]);
      }
    }
  }

  // The lowest j with cost[j] - price[j] == sought, else n. C: T or narrower.
  template <class C>
  static int64_t find_reduced(const C* cost, const T* price, T sought, int64_t n) {
    int64_t j = 0;
    while (j < n && static_cast<T>(cost[j]) - price[j] != sought) ++j;
    return j;
  }

  // The lowest j with value[j] == sought and owner[j] < 0, else the lowest with value[j] == sought, else n.
  static int64_t find(const T* value, T sought, const int32_t* owner, int64_t n) {
    int64_t found = n;
    for (int64_t j = 0; j < n; ++j) {
      if (value[j] != sought) continue;
      if (owner[j] < 0) return j;
      found = std::min(found, j);
    }
    return found;
  }
};

#if defined(__x86_64__) && defined(__GNUC__)
#define DIFFACCEL_AVX512 \
  __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"), always_inline)) static inline
#define DIFFACCEL_AVX2 __attribute__((target("avx2,fma"), always_inline)) static inline

// Vector operations that the scans are written with. exchange<0 .. kSteps - 1> together bring all lanes of a vector
// together.
template <class T, int W>
struct Vectors;

template <>
struct Vectors<float, 32> {
  using V = __m256;
  static constexpr int kCount = 8;
  DIFFACCEL_AVX2 V set(float x) { return _mm256_set1_ps(x); }
  DIFFACCEL_AVX2 V load(const float* p) { return _mm256_loadu_ps(p); }
  DIFFACCEL_AVX2 void store(float* p, V a) { _mm256_storeu_ps(p, a); }
  DIFFACCEL_AVX2 V add(V a, V b) { return _mm256_add_ps(a, b); }
  DIFFACCEL_AVX2 V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  DIFFACCEL_AVX2 V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  DIFFACCEL_AVX2 V fused(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  DIFFACCEL_AVX2 V min(V a, V b) { return _mm256_min_ps(a, b); }
  DIFFACCEL_AVX2 V max(V a, V b) { return _mm256_max_ps(a, b); }
  DIFFACCEL_AVX2 __m128 four(const float* p, const int32_t* at) {
    __m128 x = _mm_load_ss(p + at[0]);
    x = _mm_insert_ps(x, _mm_load_ss(p + at[1]), 0x10);
    x = _mm_insert_ps(x, _mm_load_ss(p + at[2]), 0x20);
    return _mm_insert_ps(x, _mm_load_ss(p + at[3]), 0x30);
  }
  // Loads and inserts: how long the gather instruction takes depends on the processor's microcode.
  DIFFACCEL_AVX2 V gather(const float* p, const int32_t* at) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(four(p, at)), four(p, at + 4), 1);
  }
  DIFFACCEL_AVX2 uint32_t below(V a, V b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
  }
  DIFFACCEL_AVX2 uint32_t equal(V a, V b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
  }
  template <int kStep>
  DIFFACCEL_AVX2 V exchange(V a) {
    if constexpr (kStep == 0) return _mm256_permute2f128_ps(a, a, 1);
    if constexpr (kStep == 1) return _mm256_permute_ps(a, 0x4e);
    return _mm256_permute_ps(a, 0xb1);
  }
  static constexpr int kSteps = 3;
  DIFFACCEL_AVX2 float first(V a) { return _mm256_cvtss_f32(a); }
  DIFFACCEL_AVX2 void store_columns(int32_t* out, int64_t j, uint32_t mask) {
    for (; mask != 0; mask &= mask - 1) *out++ = static_cast<int32_t>(j) + __builtin_ctz(mask);
  }
};

template <>
struct Vectors<double, 32> {
  using V = __m256d;
  static constexpr int kCount = 4;
  DIFFACCEL_AVX2 V set(double x) { return _mm256_set1_pd(x); }
  DIFFACCEL_AVX2 V load(const double* p) { return _mm256_loadu_pd(p); }
  DIFFACCEL_AVX2 V load(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
  DIFFACCEL_AVX2 void store(double* p, V a) { _mm256_storeu_pd(p, a); }
  DIFFACCEL_AVX2 V add(V a, V b) { return _mm256_add_pd(a, b); }
  DIFFACCEL_AVX2 V sub(V a, V b) { return _mm256_sub_pd(a, b); }
  DIFFACCEL_AVX2 V mul(V a, V b) { return _mm256_mul_pd(a, b); }
  DIFFACCEL_AVX2 V fused(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
  DIFFACCEL_AVX2 V min(V a, V b) { return _mm256_min_pd(a, b); }
  DIFFACCEL_AVX2 V max(V a, V b) { return _mm256_max_pd(a, b); }
  DIFFACCEL_AVX2 V gather(const double* p, const int32_t* at) {
    const __m128d low = _mm_loadh_pd(_mm_load_sd(p + at[0]), p + at[1]);
    const __m128d high = _mm_loadh_pd(_mm_load_sd(p + at[2]), p + at[3]);
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1);
  }
  DIFFACCEL_AVX2 uint32_t below(V a, V b) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LT_OQ)));
  }
  DIFFACCEL_AVX2 uint32_t equal(V a, V b) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_EQ_OQ)));
  }
  template <int kStep>
  DIFFACCEL_AVX2 V exchange(V a) {
    if constexpr (kStep == 0) return _mm256_permute2f128_pd(a, a, 1);
    return _mm256_permute_pd(a, 0x5);
  }
  static constexpr int kSteps = 2;
  DIFFACCEL_AVX2 double first(V a) { return _mm256_cvtsd_f64(a); }
  DIFFACCEL_AVX2 void store_columns(int32_t* out, int64_t j, uint32_t mask) {
    for (; mask != 0; mask &= mask - 1) *out++ = static_cast<int32_t>(j) + __builtin_ctz(mask);
  }
};

template <>
struct Vectors<float, 64> {
  using V = __m512;
  static constexpr int kCount = 16;
  DIFFACCEL_AVX512 V set(float x) { return _mm512_set1_ps(x); }
  DIFFACCEL_AVX512 V load(const float* p) { return _mm512_loadu_ps(p); }
  DIFFACCEL_AVX512 void store(float* p, V a) { _mm512_storeu_ps(p, a); }
  DIFFACCEL_AVX512 V add(V a, V b) { return _mm512_add_ps(a, b); }
  DIFFACCEL_AVX512 V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  DIFFACCEL_AVX512 V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  DIFFACCEL_AVX512 V fused(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  DIFFACCEL_AVX512 V min(V a, V b) { return _mm512_min_ps(a, b); }
  DIFFACCEL_AVX512 V max(V a, V b) { return _mm512_max_ps(a, b); }
  DIFFACCEL_AVX512 uint32_t below(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  DIFFACCEL_AVX512 uint32_t equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  template <int kStep>
  DIFFACCEL_AVX512 V exchange(V a) {
    if constexpr (kStep == 0) return _mm512_shuffle_f32x4(a, a, 0x4e);
    if constexpr (kStep == 1) return _mm512_shuffle_f32x4(a, a, 0xb1);
    if constexpr (kStep == 2) return _mm512_permute_ps(a, 0x4e);
    return _mm512_permute_ps(a, 0xb1);
  }
  static constexpr int kSteps = 4;
  DIFFACCEL_AVX512 float first(V a) { return _mm512_cvtss_f32(a); }
  DIFFACCEL_AVX512 void store_columns(int32_t* out, int64_t j, uint32_t mask) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i here = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(j)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), here));
  }
};

template <>
struct Vectors<double, 64> {
  using V = __m512d;
  static constexpr int kCount = 8;
  DIFFACCEL_AVX512 V set(double x) { return _mm512_set1_pd(x); }
  DIFFACCEL_AVX512 V load(const double* p) { return _mm512_loadu_pd(p); }
  DIFFACCEL_AVX512 V load(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
  DIFFACCEL_AVX512 void store(double* p, V a) { _mm512_storeu_pd(p, a); }
  DIFFACCEL_AVX512 V add(V a, V b) { return _mm512_add_pd(a, b); }
  DIFFACCEL_AVX512 V sub(V a, V b) { return _mm512_sub_pd(a, b); }
  DIFFACCEL_AVX512 V mul(V a, V b) { return _mm512_mul_pd(a, b); }
  DIFFACCEL_AVX512 V fused(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
  DIFFACCEL_AVX512 V min(V a, V b) { return _mm512_min_pd(a, b); }
  DIFFACCEL_AVX512 V max(V a, V b) { return _mm512_max_pd(a, b); }
  DIFFACCEL_AVX512 uint32_t below(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
  DIFFACCEL_AVX512 uint32_t equal(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
  template <int kStep>
  DIFFACCEL_AVX512 V exchange(V a) {
    if constexpr (kStep == 0) return _mm512_shuffle_f64x2(a, a, 0x4e);
    if constexpr (kStep == 1) return _mm512_shuffle_f64x2(a, a, 0xb1);
    return _mm512_permute_pd(a, 0x55);
  }
  static constexpr int kSteps = 3;
  DIFFACCEL_AVX512 double first(V a) { return _mm512_cvtsd_f64(a); }
  DIFFACCEL_AVX512 void store_columns(int32_t* out, int64_t j, uint32_t mask) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i here = _mm256_add_epi32(lane, _mm256_set1_epi32(static_cast<int>(j)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_maskz_compress_epi32(static_cast<__mmask8>(mask), here));
  }
};

#undef DIFFACCEL_AVX512
#undef DIFFACCEL_AVX2

}  // namespace diffaccel

// The scans, once for each instruction set.
#define DIFFACCEL_WIDTH 32
#define DIFFACCEL_TARGET __attribute__((target("avx2,fma")))
#include "row_scan_width.h"
#undef DIFFACCEL_WIDTH
#undef DIFFACCEL_TARGET
#define DIFFACCEL_WIDTH 64
#define DIFFACCEL_TARGET __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")))
#include "row_scan_width.h"
#undef DIFFACCEL_WIDTH
#undef DIFFACCEL_TARGET

#else
}  // namespace diffaccel
#endif
