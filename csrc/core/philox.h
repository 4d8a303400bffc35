// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include "hd.h"

namespace diffaccel {

struct Words {
  uint32_t w[4];
};

// 128 random bits as a pure function of a 128-bit counter and a 64-bit key.
DIFFACCEL_INLINE Words philox4x32_10(Words counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.w[0], c1 = counter.w[1], c2 = counter.w[2], c3 = counter.w[3];
  DIFFACCEL_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// What the random bits are for: one number space per purpose, so that no two uses share a counter.
enum class Purpose : uint32_t {
  kNoise = 0,             // elements of Gaussian noise; term = Karhunen-Loeve term
  kCandidate = 1u << 24,  // the (a, s) pair of a nearest-of-k candidate; term = attempt of the rejection sampler
  kOrder = 2u << 24       // order statistics of nearest-of-k; position = proposal
};

// Noise of one sample at one step. Counter words: position, sample, step, purpose + term.
struct NoiseStream {
  uint64_t seed;
  uint32_t step;

  DIFFACCEL_INLINE Words words(uint32_t position, uint32_t sample, Purpose purpose, uint32_t term) const {
    return philox4x32_10({{position, sample, step, static_cast<uint32_t>(purpose) + term}}, static_cast<uint32_t>(seed),
                         static_cast<uint32_t>(seed >> 32));
  }
};

// Ranges that fit the counter.
constexpr int64_t kMaxIndex = int64_t{1} << 32;     // steps and samples: below this
constexpr int64_t kMaxTerms = int64_t{1} << 24;     // Karhunen-Loeve terms
constexpr int64_t kMaxElements = int64_t{1} << 34;  // elements of one sample: four to a counter

}  // namespace diffaccel
