// Philox words of 16 neighbouring counters by vector instructions. x86 hosts only; the same words as philox.h (tested).
//
// Compilers do not find the 32 x 32 -> 64 bit multiplication of vectors by themselves. Each state word lies in the low
// half of a 64-bit lane, which is all that the multiplication reads, so low halves need no cleaning and high halves one
// shift. Sample, step and term are equal in all lanes, so half of the first two rounds is scalar.
#pragma once

#include "philox.h"
#include "simd.h"

#if DIFFACCEL_SIMD_X86
#include <immintrin.h>

namespace diffaccel {

// The state after two rounds where it is equal in all lanes, and the keys of round three.
struct PhiloxStart {
  static constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u, kAdd0 = 0x9E3779B9u, kAdd1 = 0xBB67AE85u;
  uint32_t xor2, xor0, xor2_second, c3, key0, key1;

  PhiloxStart(const NoiseStream& stream, uint32_t sample, uint32_t last_word) {
    const uint32_t k0 = static_cast<uint32_t>(stream.seed), k1 = static_cast<uint32_t>(stream.seed >> 32);
    const uint64_t first = uint64_t{kMul1} * stream.step;
    xor2 = last_word ^ k1;
    xor0 = static_cast<uint32_t>(first) ^ (k0 + kAdd0);
    const uint64_t second = uint64_t{kMul0} * (static_cast<uint32_t>(first >> 32) ^ sample ^ k0);
    xor2_second = static_cast<uint32_t>(second >> 32) ^ (k1 + kAdd1);
    c3 = static_cast<uint32_t>(second);
    key0 = k0 + 2 * kAdd0;
    key1 = k1 + 2 * kAdd1;
  }
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own intrinsics start from undefined vectors
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

// words[w][lane] = word w of counter base + lane
DIFFACCEL_TARGET_AVX512 inline void philox_lanes_avx512(const PhiloxStart& start, uint32_t base,
                                                        uint32_t (*words)[16]) {
  const __m512i mul0 = _mm512_set1_epi64(PhiloxStart::kMul0), mul1 = _mm512_set1_epi64(PhiloxStart::kMul1);
  const __m512i add0 = _mm512_set1_epi64(PhiloxStart::kAdd0), add1 = _mm512_set1_epi64(PhiloxStart::kAdd1);
  const __m512i xor2 = _mm512_set1_epi64(start.xor2), xor0 = _mm512_set1_epi64(start.xor0);
  const __m512i xor2_second = _mm512_set1_epi64(start.xor2_second);
  const __m512i even = _mm512_add_epi32(_mm512_set1_epi64(base), _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0));
  __m512i key0 = _mm512_set1_epi64(start.key0), key1 = _mm512_set1_epi64(start.key1);
  __m512i c0[2], c1[2], c2[2], c3[2];
  DIFFACCEL_UNROLL
  for (int h = 0; h < 2; ++h) {  // even and odd counters
    const __m512i counter = h == 0 ? even : _mm512_add_epi32(even, _mm512_set1_epi64(1));
    const __m512i first = _mm512_mul_epu32(counter, mul0);
    const __m512i second = _mm512_mul_epu32(_mm512_xor_si512(_mm512_srli_epi64(first, 32), xor2), mul1);
    c0[h] = _mm512_xor_si512(_mm512_srli_epi64(second, 32), xor0);
    c1[h] = second;
    c2[h] = _mm512_xor_si512(first, xor2_second);
    c3[h] = _mm512_set1_epi64(start.c3);
  }
  DIFFACCEL_UNROLL
  for (int round = 2; round < 10; ++round) {
    DIFFACCEL_UNROLL
    for (int h = 0; h < 2; ++h) {
      const __m512i p0 = _mm512_mul_epu32(c0[h], mul0), p1 = _mm512_mul_epu32(c2[h], mul1);
      c0[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c1[h], key0, 0x96);  // a ^ b ^ c
      c2[h] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c3[h], key1, 0x96);
      c1[h] = p1;
      c3[h] = p0;
    }
    key0 = _mm512_add_epi32(key0, add0);
    key1 = _mm512_add_epi32(key1, add1);
  }
  const __m512i* const all[4] = {c0, c1, c2, c3};
  for (int w = 0; w < 4; ++w)
    _mm512_store_si512(words[w], _mm512_mask_blend_epi32(0xAAAA, all[w][0], _mm512_slli_epi64(all[w][1], 32)));
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

DIFFACCEL_TARGET_AVX2 inline void philox_lanes_avx2(const PhiloxStart& start, uint32_t base, uint32_t (*words)[16]) {
  const __m256i mul0 = _mm256_set1_epi64x(PhiloxStart::kMul0), mul1 = _mm256_set1_epi64x(PhiloxStart::kMul1);
  const __m256i add0 = _mm256_set1_epi64x(PhiloxStart::kAdd0), add1 = _mm256_set1_epi64x(PhiloxStart::kAdd1);
  const __m256i xor2 = _mm256_set1_epi64x(start.xor2), xor0 = _mm256_set1_epi64x(start.xor0);
  const __m256i xor2_second = _mm256_set1_epi64x(start.xor2_second);
  for (int part = 0; part < 2; ++part) {
    const __m256i even =
        _mm256_add_epi32(_mm256_set1_epi64x(base + 8 * static_cast<uint32_t>(part)), _mm256_set_epi64x(6, 4, 2, 0));
    __m256i key0 = _mm256_set1_epi64x(start.key0), key1 = _mm256_set1_epi64x(start.key1);
    __m256i c0[2], c1[2], c2[2], c3[2];
    DIFFACCEL_UNROLL
    for (int h = 0; h < 2; ++h) {
      const __m256i counter = h == 0 ? even : _mm256_add_epi32(even, _mm256_set1_epi64x(1));
      const __m256i first = _mm256_mul_epu32(counter, mul0);
      const __m256i second = _mm256_mul_epu32(_mm256_xor_si256(_mm256_srli_epi64(first, 32), xor2), mul1);
      c0[h] = _mm256_xor_si256(_mm256_srli_epi64(second, 32), xor0);
      c1[h] = second;
      c2[h] = _mm256_xor_si256(first, xor2_second);
      c3[h] = _mm256_set1_epi64x(start.c3);
    }
    DIFFACCEL_UNROLL
    for (int round = 2; round < 10; ++round) {
      DIFFACCEL_UNROLL
      for (int h = 0; h < 2; ++h) {
        const __m256i p0 = _mm256_mul_epu32(c0[h], mul0), p1 = _mm256_mul_epu32(c2[h], mul1);
        c0[h] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), key0), c1[h]);
        c2[h] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), key1), c3[h]);
        c1[h] = p1;
        c3[h] = p0;
      }
      key0 = _mm256_add_epi32(key0, add0);
      key1 = _mm256_add_epi32(key1, add1);
    }
    const __m256i* const all[4] = {c0, c1, c2, c3};
    for (int w = 0; w < 4; ++w)
      _mm256_store_si256(reinterpret_cast<__m256i*>(words[w] + 8 * part),
                         _mm256_blend_epi32(all[w][0], _mm256_slli_epi64(all[w][1], 32), 0xAA));
  }
}

}  // namespace diffaccel

#endif  // DIFFACCEL_SIMD_X86
