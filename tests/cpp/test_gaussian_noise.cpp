#include "core/gaussian_noise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/simd.h"

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
  const NoiseStream stream{99, 1};
  constexpr int kGroups = 64;
  std::vector<float> portable(kGroup * kGroups), best(kGroup * kGroups);
  const auto fill = [&](std::vector<float>& out) {
    return [&stream, &out]() DIFFACCEL_SIMD_BODY {
      for (int g = 0; g < kGroups; ++g) normal_group(stream, g, 5, 0, out.data() + g * kGroup);
    };
  };
  fill(portable)();
  with_simd(fill(best));
  EXPECT_EQ(portable, best);
#if defined(__x86_64__)
  if (simd_level() == Simd::kAvx512) {
    std::vector<float> avx2(kGroup * kGroups);
    run_avx2(fill(avx2));
    EXPECT_EQ(portable, avx2);
  }
#endif
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
