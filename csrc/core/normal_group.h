// The 64 normals of a group at once, by the widest instructions of this machine. Host only.
#pragma once

#include "gaussian_noise.h"
#include "philox_lanes.h"
#include "simd.h"

namespace diffaccel {

// words [4][16] -> out[64]
template <Conversion kConversion>
DIFFACCEL_INLINE void normals_of_words(const uint32_t (*__restrict__ words)[kLanes], float* __restrict__ out) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const Pair a = box_muller<kConversion>(words[0][lane], words[1][lane]);
    const Pair b = box_muller<kConversion>(words[2][lane], words[3][lane]);
    out[lane] = a.first;
    out[kLanes + lane] = a.second;
    out[2 * kLanes + lane] = b.first;
    out[3 * kLanes + lane] = b.second;
  }
}

inline void normal_group_portable(const NoiseStream& stream, uint32_t base, uint32_t sample, uint32_t term,
                                  float* __restrict__ out) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const Normals n = normal4(stream, base + static_cast<uint32_t>(lane), sample, term);
    for (int w = 0; w < 4; ++w) out[w * kLanes + lane] = n.z[w];
  }
}

#if DIFFACCEL_SIMD_X86
DIFFACCEL_TARGET_AVX512 inline void normal_group_avx512(const PhiloxStart& start, uint32_t base,
                                                        float* __restrict__ out) {
  alignas(64) uint32_t words[4][kLanes];
  philox_lanes_avx512(start, base, words);
  normals_of_words<Conversion::kUnsigned>(words, out);
}

DIFFACCEL_TARGET_AVX2 inline void normal_group_avx2(const PhiloxStart& start, uint32_t base, float* __restrict__ out) {
  alignas(64) uint32_t words[4][kLanes];
  philox_lanes_avx2(start, base, words);
  normals_of_words<Conversion::kHalves>(words, out);
}
#endif

// The 64 normals of a group, to out[64].
inline void normal_group(const NoiseStream& stream, int64_t group, uint32_t sample, uint32_t term, float* out) {
  const uint32_t base = static_cast<uint32_t>(group) * kLanes;
#if DIFFACCEL_SIMD_X86
  const Simd level = simd_level();
  if (level != Simd::kPortable) {
    const PhiloxStart start(stream, sample, static_cast<uint32_t>(Purpose::kNoise) + term);
    return level == Simd::kAvx512 ? normal_group_avx512(start, base, out) : normal_group_avx2(start, base, out);
  }
#endif
  normal_group_portable(stream, base, sample, term, out);
}

}  // namespace diffaccel
