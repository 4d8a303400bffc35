// Atomic updates of memory that a team shares (team.h): CUDA's on the device, std::atomic_ref on the host. Relaxed: the
// team's barriers order them.
#pragma once

#include "hd.h"

#if !defined(__CUDA_ARCH__)
#include <atomic>
#endif

namespace diffaccel {

DIFFACCEL_INLINE void atomic_max(uint64_t* at, uint64_t value) {
#if defined(__CUDA_ARCH__)
  atomicMax(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
#else
  std::atomic_ref<uint64_t> word(*at);
  uint64_t old = word.load(std::memory_order_relaxed);
  while (old < value && !word.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
#endif
}

DIFFACCEL_INLINE void atomic_or(uint32_t* at, uint32_t bits) {
#if defined(__CUDA_ARCH__)
  atomicOr(at, bits);
#else
  std::atomic_ref<uint32_t>(*at).fetch_or(bits, std::memory_order_relaxed);
#endif
}

// Returns the value before.
DIFFACCEL_INLINE int32_t atomic_add(int32_t* at, int32_t value) {
#if defined(__CUDA_ARCH__)
  return atomicAdd(at, value);
#else
  return std::atomic_ref<int32_t>(*at).fetch_add(value, std::memory_order_relaxed);
#endif
}

}  // namespace diffaccel
