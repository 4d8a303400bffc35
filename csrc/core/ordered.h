// Floating-point numbers as unsigned integers in the same order, for what compares integers only. -0 counts as 0; no
// NaN.
#pragma once

#include "hd.h"

namespace diffaccel {

DIFFACCEL_INLINE uint32_t ordered(float x) {
  const auto bits = bits_as<uint32_t>(x + 0.0f);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
DIFFACCEL_INLINE uint64_t ordered(double x) {
  const auto bits = bits_as<uint64_t>(x + 0.0);
  return (bits >> 63) != 0 ? ~bits : bits | uint64_t{1} << 63;
}
DIFFACCEL_INLINE uint64_t ordered(int64_t x) {
  return static_cast<uint64_t>(x) ^ uint64_t { 1 } << 63;
}

DIFFACCEL_INLINE float float_from_ordered(uint32_t key) {
  return bits_as<float>((key >> 31) != 0 ? key & 0x7fffffffu : ~key);
}
DIFFACCEL_INLINE double double_from_ordered(uint64_t key) {
  return bits_as<double>((key >> 63) != 0 ? key & ~(uint64_t{1} << 63) : ~key);
}
DIFFACCEL_INLINE int64_t int_from_ordered(uint64_t key) { return static_cast<int64_t>(key ^ uint64_t{1} << 63); }

}  // namespace diffaccel
