#include "core/kl_sum.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace diffaccel {
namespace {

using Entries = std::vector<KlEntry<float>>;

// Entries of coeff [times, M] for unit noise.
Entries unit_entries(const std::vector<double>& coeff, int times) {
  const int64_t terms = static_cast<int64_t>(coeff.size()) / times;
  std::vector<double> sigma;
  for (int s = 0; s < times; ++s) sigma.push_back(kl_sigma(coeff.data() + s * terms, terms));
  Entries entries(coeff.size());
  const int64_t count = kl_compress(coeff.data(), terms, times, sigma.data(), entries.data());
  entries.resize(static_cast<size_t>(count));
  return entries;
}

TEST(KlExpansion, WeightsHaveUnitNorm) {
  const std::vector<double> coeff{0.3, -0.2, 0.5, 0.01};
  EXPECT_NEAR(kl_sigma(coeff.data(), 4), std::sqrt(0.09 + 0.04 + 0.25 + 0.0001), 1e-15);
  double norm = 0;
  for (const auto& entry : unit_entries(coeff, 1))
    norm += static_cast<double>(entry.weight) * static_cast<double>(entry.weight);
  EXPECT_NEAR(norm, 1.0, 1e-6);
}

TEST(KlExpansion, OneTermIsThePlainNoise) {
  const double coeff = 0.123;
  EXPECT_EQ(kl_sigma(&coeff, 1), 0.123);
  const Entries entries = unit_entries({coeff}, 1);
  ASSERT_EQ(entries.size(), 1u);
  EXPECT_EQ(entries[0].weight, 1.0f);
  const NoiseStream stream{5, 6};
  float plain[kGroup];
  alignas(64) float sum[1][kGroup];
  normal_group(stream, 2, 11, 0, plain);
  kl_sum_group<true>(stream, 2, 11, entries.data(), 1, sum);
  for (int e = 0; e < kGroup; ++e) EXPECT_EQ(sum[0][e], plain[e]);
}

TEST(KlExpansion, SumOfTermsAtSeveralTimes) {
  constexpr int kTimes = 3, kTerms = 40;
  std::vector<double> coeff(kTimes * kTerms, 0.0);
  for (const int at : {0, 2, 17, 39, 40 + 1, 40 + 17, 80 + 33}) coeff[static_cast<size_t>(at)] = 0.3 - 0.01 * at;
  Entries entries(coeff.size());
  const int64_t count = kl_compress(coeff.data(), kTerms, kTimes, nullptr, entries.data());
  EXPECT_EQ(count, 7);
  for (int64_t n = 1; n < count; ++n) {
    const auto &before = entries[static_cast<size_t>(n - 1)], &after = entries[static_cast<size_t>(n)];
    EXPECT_TRUE(before.term < after.term || (before.term == after.term && before.time < after.time));
  }
  const NoiseStream stream{5, 6};
  alignas(64) float sum[kTimes][kGroup];
  kl_sum_group<true>(stream, 1, 3, entries.data(), count, sum);
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
  for (const Entries& entries : {unit_entries({0, 0}, 1), unit_entries({0, 0, 0, 0.5}, 2)}) {
    EXPECT_EQ(entries[0].term, 0u);
    EXPECT_EQ(entries[0].time, 0u);
    EXPECT_TRUE(entries[0].first);
    EXPECT_EQ(entries[0].weight, 1.0f);
  }
  EXPECT_EQ(unit_entries({0, 0}, 1).size(), 1u);
  EXPECT_EQ(unit_entries({0, 0, 0, 0.5}, 2).size(), 2u);
}

TEST(KlExpansion, ZerosLeaveNoTrace) {
  const NoiseStream stream{5, 6};
  alignas(64) float dense[1][kGroup], sparse[1][kGroup];
  std::vector<double> coeff(100, 0.0);
  coeff[70] = 0.4, coeff[99] = -0.3;
  const Entries entries = unit_entries(coeff, 1);
  ASSERT_EQ(entries.size(), 2u);
  Entries all;  // the same with every zero written out
  for (uint32_t k = 0; k < 100; ++k)
    all.push_back({k, 0, k == 0, kl_weight(coeff[k], kl_sigma(coeff.data(), 100), static_cast<int64_t>(k))});
  kl_sum_group<true>(stream, 1, 3, entries.data(), 2, sparse);
  kl_sum_group<true>(stream, 1, 3, all.data(), 100, dense);
  for (int e = 0; e < kGroup; ++e) EXPECT_EQ(sparse[0][e], dense[0][e]);
}

}  // namespace
}  // namespace diffaccel
