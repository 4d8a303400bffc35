// Run-time choice of the instruction set for hot loops. Host only.
//
//   with_simd([&]() DIFFACCEL_SIMD_BODY { ...loops over inline functions... });
//
// compiles the body for AVX-512, AVX2 + FMA and the build's baseline, and runs the best one that this machine has.
// Bodies use no reassociation and explicit fused operations, so every level gives the same bits.
// DIFFACCEL_SIMD=portable|avx2|avx512 in the environment lowers the choice (tests compare the levels).
#pragma once

#include <cstdlib>
#include <cstring>

#define DIFFACCEL_SIMD_BODY __attribute__((always_inline))
#if defined(__x86_64__) && defined(__GNUC__)
#define DIFFACCEL_SIMD_X86 1
#define DIFFACCEL_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")))
#define DIFFACCEL_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#else
#define DIFFACCEL_SIMD_X86 0
#endif

namespace diffaccel {

enum class Simd { kPortable, kAvx2, kAvx512 };

inline const char* simd_name(Simd level) {
  return level == Simd::kAvx512 ? "avx512" : (level == Simd::kAvx2 ? "avx2" : "portable");
}

inline Simd detect_simd() {
#if DIFFACCEL_SIMD_X86
  const char* wish = std::getenv("DIFFACCEL_SIMD");
  const bool portable = wish != nullptr && std::strcmp(wish, "portable") == 0;
  const bool avx2 = wish != nullptr && std::strcmp(wish, "avx2") == 0;
  __builtin_cpu_init();
  if (portable) return Simd::kPortable;
  if (!avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return Simd::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return Simd::kAvx2;
#endif
  return Simd::kPortable;
}

inline Simd simd_level() {
  static const Simd level = detect_simd();
  return level;
}

#if DIFFACCEL_SIMD_X86
template <class F>
DIFFACCEL_TARGET_AVX512 void run_avx512(const F& body) {
  body();
}
template <class F>
DIFFACCEL_TARGET_AVX2 void run_avx2(const F& body) {
  body();
}
#endif

template <class F>
inline void with_simd(const F& body) {
#if DIFFACCEL_SIMD_X86
  switch (simd_level()) {
    case Simd::kAvx512: return run_avx512(body);
    case Simd::kAvx2: return run_avx2(body);
    case Simd::kPortable: break;
  }
#endif
  body();
}

}  // namespace diffaccel
