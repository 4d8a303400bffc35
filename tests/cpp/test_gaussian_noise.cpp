#include "core/normal_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace diffaccel {
namespace {

TEST(GaussianNoise, BoxMullerAgreesWithTheMathLibrary) {
  const Words seeds = philox4x32_10({{1, 2, 3, 4}}, 5, 6);
  double worst = 0;
  uint32_t a = seeds.w[0], b = seeds.w[1];
  for (int n = 0; n < 200000; ++n) {
    const Pair pair = box_muller(a, b);
    const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(to_float(a)) + 0.5) / 4294967296.0));
    const double angle = 2.0 * M_PI * static_cast<double>(b) / 4294967296.0;
    worst = std::max(
        {worst, std::abs(pair.first - radius * std::cos(angle)), std::abs(pair.second - radius * std::sin(angle))});
    a = a * 1664525u + 1013904223u;
    b = b * 22695477u + 1u;
  }
  EXPECT_LT(worst, 2e-6);
}

TEST(GaussianNoise, ExtremeWordsStayFinite) {
  for (const uint32_t radius : {0u, 1u, 0x7fffffffu, 0x80000000u, 0xfffffffeu, 0xffffffffu}) {
    for (const uint32_t angle : {0u, 0x1fffffffu, 0x20000000u, 0x5fffffffu, 0x60000000u, 0xe0000000u, 0xffffffffu}) {
      const Pair pair = box_muller(radius, angle);
      EXPECT_TRUE(std::isfinite(pair.first) && std::isfinite(pair.second)) << radius << " " << angle;
      EXPECT_LT(std::abs(pair.first), 6.8f);
      EXPECT_LT(std::abs(pair.second), 6.8f);
    }
  }
  EXPECT_FLOAT_EQ(to_float(0xffffffffu), 4294967296.0f);
  EXPECT_FLOAT_EQ(to_float(0x00ffffffu), 16777215.0f);
}

TEST(GaussianNoise, GroupIsItsCounters) {
  const NoiseStream stream{123, 7};
  float group[kGroup];
  normal_group(stream, 3, 9, 2, group);
  for (uint32_t lane = 0; lane < kLanes; ++lane) {
    const Normals n = normal4(stream, 3 * kLanes + lane, 9, 2);
    for (uint32_t w = 0; w < 4; ++w) EXPECT_EQ(group[w * kLanes + lane], n.z[w]);
  }
}

TEST(GaussianNoise, EveryInstructionSetGivesTheSameBits) {
  const uint32_t ones = 0xffffffffu;
  for (const NoiseStream stream : {NoiseStream{99, 1}, NoiseStream{~uint64_t{0}, ones}, NoiseStream{0, 0}})
    for (const uint32_t base : {0u, 16u, 0x7ffffff0u, 0xfffffff0u})
      for (const uint32_t sample : {0u, 5u, ones})
        for (const uint32_t term : {0u, 3u, 0x00ffffffu}) {
          std::vector<float> portable(kGroup), chosen(kGroup);
          normal_group_portable(stream, base, sample, term, portable.data());
          normal_group(stream, base / kLanes, sample, term, chosen.data());
          ASSERT_EQ(portable, chosen);
#if DIFFACCEL_SIMD_X86
          const PhiloxStart start(stream, sample, term);
          alignas(64) uint32_t words[4][kLanes];
          const auto expect_words = [&] {
            for (uint32_t lane = 0; lane < kLanes; ++lane) {
              const Words expected = stream.words(base + lane, sample, Purpose::kNoise, term);
              for (int w = 0; w < 4; ++w) ASSERT_EQ(words[w][lane], expected.w[w]);
            }
          };
          if (simd_level() != Simd::kPortable) {
            normal_group_avx2(start, base, chosen.data());
            ASSERT_EQ(portable, chosen);
            philox_lanes_avx2(start, base, words);
            expect_words();
          }
          if (simd_level() == Simd::kAvx512) {
            normal_group_avx512(start, base, chosen.data());
            ASSERT_EQ(portable, chosen);
            philox_lanes_avx512(start, base, words);
            expect_words();
          }
#endif
        }
}

TEST(GaussianNoise, Moments) {
  const NoiseStream stream{2024, 0};
  double sum[5] = {};
  constexpr int kGroups = 20000;
  float z[kGroup];
  for (int g = 0; g < kGroups; ++g) {
    normal_group(stream, g, 0, 0, z);
    for (const float value : z)
      for (int p = 1; p < 5; ++p) sum[p] += std::pow(static_cast<double>(value), p);
  }
  const double n = kGroups * kGroup, five_sigma = 5.0 / std::sqrt(n);
  EXPECT_NEAR(sum[1] / n, 0.0, five_sigma);
  EXPECT_NEAR(sum[2] / n, 1.0, five_sigma * std::sqrt(2.0));
  EXPECT_NEAR(sum[3] / n, 0.0, five_sigma * std::sqrt(15.0));
  EXPECT_NEAR(sum[4] / n, 3.0, five_sigma * std::sqrt(96.0));
}

TEST(GaussianNoise, GroupSizes) {
  EXPECT_EQ(group_count(0), 0);
  EXPECT_EQ(group_count(1), 1);
  EXPECT_EQ(group_count(64), 1);
  EXPECT_EQ(group_count(65), 2);
  EXPECT_EQ(group_size(0, 65), 64);
  EXPECT_EQ(group_size(1, 65), 1);
}

}  // namespace
}  // namespace diffaccel
