#include "core/kl_expansion.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace diffaccel {
namespace {

TEST(KlExpansion, WeightsHaveUnitNorm) {
  const std::vector<double> coeff{0.3, -0.2, 0.5, 0.01};
  std::vector<float> weights(4);
  const double sigma = kl_normalise(coeff.data(), 4, weights.data());
  EXPECT_NEAR(sigma, std::sqrt(0.09 + 0.04 + 0.25 + 0.0001), 1e-15);
  double norm = 0;
  for (const float weight : weights) norm += static_cast<double>(weight) * static_cast<double>(weight);
  EXPECT_NEAR(norm, 1.0, 1e-6);
}

TEST(KlExpansion, OneTermIsThePlainNoise) {
  float weight = 0;
  const double coeff = 0.123;
  EXPECT_EQ(kl_normalise(&coeff, 1, &weight), 0.123);
  EXPECT_EQ(weight, 1.0f);
  const NoiseStream stream{5, 6};
  float plain[kGroup];
  GroupBuffer sum;
  normal_group(stream, 2, 11, 0, plain);
  kl_sum_group(stream, 2, 11, &weight, 1, sum);
  for (int e = 0; e < kGroup; ++e) EXPECT_EQ(sum.v[e], plain[e]);
}

TEST(KlExpansion, SumOfTerms) {
  const std::vector<float> weights{0.6f, -0.64f, 0.48f};
  const NoiseStream stream{5, 6};
  GroupBuffer sum;
  kl_sum_group(stream, 1, 3, weights.data(), 3, sum);
  double expected[kGroup] = {};
  float z[kGroup];
  for (uint32_t k = 0; k < 3; ++k) {
    normal_group(stream, 1, 3, k, z);
    for (int e = 0; e < kGroup; ++e) expected[e] += static_cast<double>(weights[k]) * static_cast<double>(z[e]);
  }
  for (int e = 0; e < kGroup; ++e) EXPECT_NEAR(sum.v[e], expected[e], 1e-6);
}

TEST(KlExpansion, CleanEndKeepsAUnitNormal) {
  const std::vector<double> coeff{0, 0};
  std::vector<float> weights(2);
  EXPECT_EQ(kl_normalise(coeff.data(), 2, weights.data()), 0.0);
  EXPECT_EQ(weights[0], 1.0f);
  EXPECT_EQ(weights[1], 0.0f);
}

}  // namespace
}  // namespace diffaccel
