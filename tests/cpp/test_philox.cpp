#include <gtest/gtest.h>

#include <array>

#include "core/philox.h"

namespace diffaccel {
namespace {

std::array<uint32_t, 4> philox(Words counter, uint32_t key0, uint32_t key1) {
  const Words out = philox4x32_10(counter, key0, key1);
  return {out.w[0], out.w[1], out.w[2], out.w[3]};
}

// The three known-answer vectors of Philox 4x32-10 that the authors publish with Random123.
TEST(Philox, KnownAnswers) {
  const uint32_t ones = 0xffffffffu;
  EXPECT_EQ(philox({{0, 0, 0, 0}}, 0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({{ones, ones, ones, ones}}, ones, ones),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0xa4093822, 0x299f31d0),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, StreamLayout) {
  const NoiseStream stream{0x299f31d0a4093822ull, 0x13198a2e};
  const Words out = stream.words(0x243f6a88, 0x85a308d3, Purpose::kNoise, 0x03707344);
  EXPECT_EQ(out.w[0], 0xd16cfe09u);  // key = seed; counter = position, sample, step, purpose + term
  const Words other = stream.words(0x243f6a88, 0x85a308d3, Purpose::kCandidate, 0x03707344);
  EXPECT_NE(out.w[0], other.w[0]);
}

}  // namespace
}  // namespace diffaccel
