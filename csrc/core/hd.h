// Host/device markers: every header in core/ compiles with g++ and with nvcc, and includes no torch header.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define DIFFACCEL_HD __host__ __device__
#define DIFFACCEL_INLINE __host__ __device__ __forceinline__
#else
#define DIFFACCEL_HD
#define DIFFACCEL_INLINE inline __attribute__((always_inline))
#endif
#if defined(__CUDA_ARCH__)
#define DIFFACCEL_UNROLL _Pragma("unroll")
#elif defined(__CUDACC__)
#define DIFFACCEL_UNROLL  // nvcc's host pass knows neither pragma
#else
#define DIFFACCEL_UNROLL _Pragma("GCC unroll 16")
#endif

namespace diffaccel {

// The bits of x as another type: std::bit_cast, which device code may not call.
template <class To, class From>
DIFFACCEL_INLINE constexpr To bits_as(const From& x) {
  static_assert(sizeof(To) == sizeof(From));
  return __builtin_bit_cast(To, x);
}

// Fused multiply-add, rounded once: the same bits on every CPU and GPU.
DIFFACCEL_INLINE float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

DIFFACCEL_INLINE double fused(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return fma(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// a * x + y * z with two roundings of the products and one of the sum, as eager tensor code rounds it. CUDA contracts
// products into fused operations unless told not to; the host build passes -ffp-contract=off.
DIFFACCEL_INLINE float mul_add(float a, float x, float c) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fmul_rn(a, x), c);
#else
  return a * x + c;
#endif
}
DIFFACCEL_INLINE double mul_add(double a, double x, double c) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(__dmul_rn(a, x), c);
#else
  return a * x + c;
#endif
}

// What an element of type T is computed in: double for double, float for the rest.
template <class T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};
template <class T>
using wide_t = typename Wide<T>::type;

}  // namespace diffaccel
