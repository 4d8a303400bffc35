// Counter-based standard normal numbers (Box-Muller on Philox words).
//
// Only integer operations, IEEE add, multiply, divide, square root and explicit fused multiply-adds are used, so one
// (seed, step, sample, element) gives the same float bits on every instruction set (tested), and on CUDA if it is
// compiled without contraction.
//
// Layout: 64 consecutive elements are one group made from 16 counters; element 64 g + 16 w + lane comes from word w of
// counter 16 g + lane. A vector register of lanes and a half-warp of threads both store 16 neighbours at a time.
#pragma once

#include <cmath>

#include "philox.h"

namespace diffaccel {

constexpr int kLanes = 16;
constexpr int kGroup = 4 * kLanes;

DIFFACCEL_INLINE uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(uint32_t, value);
#endif
}
DIFFACCEL_INLINE float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// How a word becomes a float, rounded once in both cases: by an instruction where there is one (AVX2 has none), or by
// halves.
enum class Conversion { kUnsigned, kHalves };

template <Conversion kConversion = Conversion::kHalves>
DIFFACCEL_INLINE float to_float(uint32_t w) {
  if constexpr (kConversion == Conversion::kUnsigned) return static_cast<float>(w);
  return fused(static_cast<float>(static_cast<int32_t>(w >> 16)), 65536.0f,
               static_cast<float>(static_cast<int32_t>(w & 0xFFFFu)));
}

// Natural logarithm of a normal positive float, about 1 ulp (polynomial of the Cephes library).
DIFFACCEL_INLINE float log_poly(float x, float exponent_offset) {
  const int32_t shifted =
      static_cast<int32_t>(float_bits(x)) - 0x3F3504F3;  // sqrt(1/2): mantissa in [sqrt(1/2), sqrt(2))
  const float e = static_cast<float>(shifted >> 23) - exponent_offset;
  const float f = bits_float(static_cast<uint32_t>(shifted & 0x007FFFFF) + 0x3F3504F3u) - 1.0f;
  const float z = f * f;
  float y = 7.0376836292e-2f;
  y = fused(y, f, -1.1514610310e-1f);
  y = fused(y, f, 1.1676998740e-1f);
  y = fused(y, f, -1.2420140846e-1f);
  y = fused(y, f, 1.4249322787e-1f);
  y = fused(y, f, -1.6668057665e-1f);
  y = fused(y, f, 2.0000714765e-1f);
  y = fused(y, f, -2.4999993993e-1f);
  y = fused(y, f, 3.3333331174e-1f);
  const float fz = f * z;
  y = fused(y, fz, e * -2.12194440e-4f);
  y = fused(z, -0.5f, y);
  return fused(e, 0.693359375f, f + y);
}

struct Pair {
  float first, second;
};

// Two independent normals from two words. The radius word gives (w + 1/2) / 2^32, never 0: |z| <= 6.77.
template <Conversion kConversion = Conversion::kHalves>
DIFFACCEL_INLINE Pair box_muller(uint32_t radius_word, uint32_t angle_word) {
  const float log_u = log_poly(to_float<kConversion>(radius_word) + 0.5f, 32.0f);
  const float radius_squared = -2.0f * log_u;
#if defined(__CUDA_ARCH__)
  const float radius = __fsqrt_rn(radius_squared);
#else
  const float radius = __builtin_sqrtf(radius_squared);
#endif
  // Angle = word / 2^32 turns: the quadrant in the top bits of `turned`, the rest in [-1/8, 1/8) turns, both exact.
  const uint32_t turned = angle_word + 0x20000000u;
  const int32_t rest = static_cast<int32_t>(turned & 0x3FFFFFFFu) - 0x20000000;
  const float x = static_cast<float>(rest) * 1.4629180793e-9f;  // 2 pi / 2^32
  const float z = x * x;
  float s = fused(-1.9515295891e-4f, z, 8.3321608736e-3f);
  s = fused(s, z, -1.6666654611e-1f);
  s = fused(s * z, x, x);
  float c = fused(2.443315711809948e-5f, z, -1.388731625493765e-3f);
  c = fused(c, z, 4.166664568298827e-2f);
  c = fused(c * z, z, fused(z, -0.5f, 1.0f));
  const bool swap = (turned & 0x40000000u) != 0;  // quadrants 1, 3
  const float cos_turn = swap ? s : c;
  const float sin_turn = swap ? c : s;
  // cos: quadrants 1, 2 are negative; sin: quadrants 2, 3.
  const uint32_t cos_sign = (turned + 0x40000000u) & 0x80000000u;
  const uint32_t sin_sign = turned & 0x80000000u;
  const float sine = bits_float(float_bits(sin_turn) ^ sin_sign);
  const float cosine = bits_float(float_bits(cos_turn) ^ cos_sign);
  return {radius * cosine, radius * sine};
}

struct Normals {
  float z[4];
};

// The four normals of one counter: elements 64 (counter / 16) + counter % 16 + {0, 16, 32, 48}.
DIFFACCEL_INLINE Normals normal4(const NoiseStream& stream, uint32_t counter, uint32_t sample, uint32_t term) {
  const Words words = stream.words(counter, sample, Purpose::kNoise, term);
  const Pair a = box_muller(words.w[0], words.w[1]);
  const Pair b = box_muller(words.w[2], words.w[3]);
  return {{a.first, a.second, b.first, b.second}};
}

DIFFACCEL_HD constexpr int64_t group_count(int64_t elements) { return (elements + kGroup - 1) / kGroup; }

// Elements that group g of a sample with D elements holds: 64, fewer at the end.
DIFFACCEL_HD constexpr int group_size(int64_t group, int64_t elements) {
  const int64_t left = elements - group * kGroup;
  return left < kGroup ? static_cast<int>(left) : kGroup;
}

}  // namespace diffaccel
