// The columns of a row whose reduced cost is below a bound, in order: vectors and compressed stores. Host only.
#pragma once

#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#include <cstdint>

namespace diffaccel {

// What collect may write beyond the number of columns that it returns.
constexpr int64_t kCollectSlack = 16;

template <class T>
int64_t collect_below_portable(const T* cost, const T* price, T bound, int64_t begin, int64_t n, int64_t count,
                               int32_t* columns, T* costs) {
  for (int64_t j = begin; j < n; ++j) {
    columns[count] = static_cast<int32_t>(j);
    costs[count] = cost[j];
    count += cost[j] - price[j] < bound ? 1 : 0;
  }
  return count;
}

#if defined(__x86_64__) && defined(__GNUC__)

__attribute__((target("avx512f,avx512vl"))) inline int64_t collect_below_avx512(const float* cost, const float* price,
                                                                                float bound, int64_t n,
                                                                                int32_t* columns, float* costs) {
  const __m512 limit = _mm512_set1_ps(bound);
  __m512i here = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t count = 0;
  for (int64_t j = 0; j < n; j += 16, here = _mm512_add_epi32(here, _mm512_set1_epi32(16))) {
    const __mmask16 row = n - j >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << (n - j)) - 1);
    const __m512 c = _mm512_maskz_loadu_ps(row, cost + j);
    const __m512 r = _mm512_sub_ps(c, _mm512_maskz_loadu_ps(row, price + j));
    const __mmask16 below = _mm512_mask_cmp_ps_mask(row, r, limit, _CMP_LT_OQ);
    if (below == 0) continue;
    _mm512_storeu_si512(columns + count, _mm512_maskz_compress_epi32(below, here));
    _mm512_storeu_ps(costs + count, _mm512_maskz_compress_ps(below, c));
    count += __builtin_popcount(below);
  }
  return count;
}

__attribute__((target("avx512f,avx512vl"))) inline int64_t collect_below_avx512(const double* cost, const double* price,
                                                                                double bound, int64_t n,
                                                                                int32_t* columns, double* costs) {
  const __m512d limit = _mm512_set1_pd(bound);
  __m256i here = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  int64_t count = 0;
  for (int64_t j = 0; j < n; j += 8, here = _mm256_add_epi32(here, _mm256_set1_epi32(8))) {
    const __mmask8 row = n - j >= 8 ? static_cast<__mmask8>(0xff) : static_cast<__mmask8>((1u << (n - j)) - 1);
    const __m512d c = _mm512_maskz_loadu_pd(row, cost + j);
    const __m512d r = _mm512_sub_pd(c, _mm512_maskz_loadu_pd(row, price + j));
    const __mmask8 below = _mm512_mask_cmp_pd_mask(row, r, limit, _CMP_LT_OQ);
    if (below == 0) continue;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(columns + count), _mm256_maskz_compress_epi32(below, here));
    _mm512_storeu_pd(costs + count, _mm512_maskz_compress_pd(below, c));
    count += __builtin_popcount(below);
  }
  return count;
}

template <class T>
__attribute__((target("avx2"))) int64_t collect_below_avx2(const T* cost, const T* price, T bound, int64_t n,
                                                           int32_t* columns, T* costs) {
  constexpr int64_t kLanes = 32 / static_cast<int64_t>(sizeof(T));
  int64_t count = 0, j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    int below;
    if constexpr (sizeof(T) == 4) {
      const __m256 r = _mm256_sub_ps(_mm256_loadu_ps(cost + j), _mm256_loadu_ps(price + j));
      below = _mm256_movemask_ps(_mm256_cmp_ps(r, _mm256_set1_ps(bound), _CMP_LT_OQ));
    } else {
      const __m256d r = _mm256_sub_pd(_mm256_loadu_pd(cost + j), _mm256_loadu_pd(price + j));
      below = _mm256_movemask_pd(_mm256_cmp_pd(r, _mm256_set1_pd(bound), _CMP_LT_OQ));
    }
    for (; below != 0; below &= below - 1) {
      const int64_t column = j + __builtin_ctz(static_cast<unsigned>(below));
      columns[count] = static_cast<int32_t>(column);
      costs[count++] = cost[column];
    }
  }
  return collect_below_portable(cost, price, bound, j, n, count, columns, costs);
}

#endif

// Writes the columns with cost[j] - price[j] < bound and their costs; returns how many. columns, costs: [n +
// kCollectSlack].
template <int kWidth, class T>
int64_t collect_below(const T* cost, const T* price, T bound, int64_t n, int32_t* columns, T* costs) {
#if defined(__x86_64__) && defined(__GNUC__)
  if constexpr (kWidth == 64) return collect_below_avx512(cost, price, bound, n, columns, costs);
  if constexpr (kWidth == 32) return collect_below_avx2(cost, price, bound, n, columns, costs);
#endif
  return collect_below_portable(cost, price, bound, 0, n, 0, columns, costs);
}

}  // namespace diffaccel
