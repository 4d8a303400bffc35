#include "core/kl_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace diffaccel {
namespace {

// Drawings and entries of coeff [times, M].
struct Table {
  std::vector<KlDrawing> drawings;
  std::vector<KlEntry<float>> entries;

  Table(const std::vector<double>& coeff, int times, bool unit) : drawings(coeff.size()), entries(coeff.size()) {
    const int64_t terms = static_cast<int64_t>(coeff.size()) / times;
    std::vector<double> sigma;
    for (int s = 0; s < times; ++s) sigma.push_back(kl_sigma(coeff.data() + s * terms, terms));
    const int64_t count =
        kl_compress(coeff.data(), terms, times, unit ? sigma.data() : nullptr, drawings.data(), entries.data());
    drawings.resize(static_cast<size_t>(count));
    size_t used = 0;
    for (const auto& drawing : drawings) used += static_cast<size_t>(drawing.entries);
    entries.resize(used);
  }

  void sum(const NoiseStream& stream, int64_t group, uint32_t sample, float (*out)[kGroup]) const {
    kl_sum_group<true>(stream, group, sample, drawings.data(), static_cast<int64_t>(drawings.size()), entries.data(),
                       out);
  }
};

TEST(KlExpansion, WeightsHaveUnitNorm) {
  const std::vector<double> coeff{0.3, -0.2, 0.5, 0.01};
  EXPECT_NEAR(kl_sigma(coeff.data(), 4), std::sqrt(0.09 + 0.04 + 0.25 + 0.0001), 1e-15);
  double norm = 0;
  const Table table(coeff, 1, true);
  ASSERT_EQ(table.entries.size(), 1u);
  for (const float weight : table.entries[0].weight) norm += static_cast<double>(weight) * static_cast<double>(weight);
  EXPECT_NEAR(norm, 1.0, 1e-6);
}

TEST(KlExpansion, OneTermIsThePlainNoise) {
  const double coeff = 0.123;
  EXPECT_EQ(kl_sigma(&coeff, 1), 0.123);
  const Table table({coeff}, 1, true);
  ASSERT_EQ(table.entries.size(), 1u);
  EXPECT_EQ(table.entries[0].weight[0], 1.0f);
  const NoiseStream stream{5, 6};
  float plain[kGroup];
  alignas(64) float sum[1][kGroup];
  normal_group(stream, 2, 11, 0, plain);
  table.sum(stream, 2, 11, sum);
  for (int e = 0; e < kGroup; ++e) EXPECT_EQ(sum[0][e], plain[e]);
}

TEST(KlExpansion, SumOfTermsAtSeveralTimes) {
  constexpr int kTimes = 3, kTerms = 40;
  std::vector<double> coeff(kTimes * kTerms, 0.0);
  for (const int at : {0, 2, 17, 39, 40 + 1, 40 + 17, 80 + 33}) coeff[static_cast<size_t>(at)] = 0.3 - 0.01 * at;
  const Table table(coeff, kTimes, false);
  ASSERT_EQ(table.drawings.size(), 2u);  // terms 0, 1, 2, 17 and 33, 39
  EXPECT_EQ(table.drawings[0].terms, 4);
  EXPECT_EQ(table.drawings[0].entries, 2);
  EXPECT_EQ(table.drawings[1].terms, 2);
  EXPECT_EQ(table.drawings[1].entries, 2);
  const uint32_t drawn[] = {0, 1, 2, 17, 33, 39};
  for (size_t n = 0; n < 6; ++n) EXPECT_EQ(table.drawings[n / 4].term[n % 4], drawn[n]);
  EXPECT_FALSE(table.entries[2].first);  // time 0 again
  EXPECT_TRUE(table.entries[3].first);   // time 2
  const NoiseStream stream{5, 6};
  alignas(64) float sum[kTimes][kGroup];
  table.sum(stream, 1, 3, sum);
  double expected[kTimes][kGroup] = {};
  float z[kGroup];
  for (uint32_t k = 0; k < kTerms; ++k) {
    normal_group(stream, 1, 3, k, z);
    for (int s = 0; s < kTimes; ++s)
      for (int e = 0; e < kGroup; ++e)
        expected[s][e] += coeff[static_cast<size_t>(s * kTerms) + k] * static_cast<double>(z[e]);
  }
  for (int s = 0; s < kTimes; ++s)
    for (int e = 0; e < kGroup; ++e) EXPECT_NEAR(sum[s][e], expected[s][e], 1e-6);
}

TEST(KlExpansion, CleanEndKeepsAUnitNormal) {
  for (const Table& table : {Table({0, 0}, 1, true), Table({0, 0, 0, 0.5}, 2, true)}) {
    EXPECT_EQ(table.drawings[0].term[0], 0u);
    EXPECT_EQ(table.entries[0].time, 0u);
    EXPECT_TRUE(table.entries[0].first);
    EXPECT_EQ(table.entries[0].weight[0], 1.0f);
  }
  EXPECT_EQ(Table({0, 0}, 1, true).entries.size(), 1u);
  EXPECT_EQ(Table({0, 0, 0, 0.5}, 2, true).entries.size(), 2u);
  EXPECT_TRUE(Table({0, 0}, 1, false).drawings.empty());
}

TEST(KlExpansion, ZerosLeaveNoTrace) {
  const NoiseStream stream{5, 6};
  alignas(64) float sparse[1][kGroup];
  std::vector<double> coeff(100, 0.0);
  for (const size_t k : {3, 50, 51, 70, 71, 99}) coeff[k] = 0.4 - 0.003 * static_cast<double>(k);
  const Table table(coeff, 1, true);
  ASSERT_EQ(table.drawings.size(), 2u);
  table.sum(stream, 1, 3, sparse);
  float dense[kGroup] = {}, z[kGroup];  // the same with every zero added
  for (uint32_t k = 0; k < 100; ++k) {
    normal_group(stream, 1, 3, k, z);
    const float weight = kl_weight(coeff[k], kl_sigma(coeff.data(), 100), static_cast<int64_t>(k));
    for (int e = 0; e < kGroup; ++e) dense[e] = k == 0 ? weight * z[e] : fused(weight, z[e], dense[e]);
  }
  for (int e = 0; e < kGroup; ++e) EXPECT_EQ(sparse[0][e], dense[e]);
}

}  // namespace
}  // namespace diffaccel
