#include "core/knn_noise.h"

#include <gtest/gtest.h>

#include <cmath>

#include "thread_team.h"

namespace diffaccel {
namespace {

TEST(KnnNoise, ChiSquareMoments) {
  const NoiseStream stream{11, 3};
  for (const int64_t dof : {1, 2, 3, 63, 3071}) {
    constexpr int kDraws = 40000;
    double sum = 0, squares = 0;
    for (uint32_t j = 0; j < kDraws; ++j) {
      const double s = draw_candidate(stream, j, 0, dof, true).s;
      EXPECT_GT(s, 0.0);
      sum += s;
      squares += s * s;
    }
    const double mean = sum / kDraws, variance = squares / kDraws - mean * mean;
    const double v = static_cast<double>(dof);
    EXPECT_NEAR(mean, v, 5 * std::sqrt(2 * v / kDraws)) << dof;
    // The variance of a chi-square sample's variance: (kurtosis - 1) variance^2 / n with excess kurtosis 12 / dof.
    EXPECT_NEAR(variance, 2 * v, 5 * 2 * v * std::sqrt((2 + 12 / v) / kDraws)) << dof;
  }
  EXPECT_EQ(draw_candidate(stream, 0, 0, 0, true).s, 0.0);
}

TEST(KnnNoise, EveryLaneCountPicksTheSameCandidate) {
  const NoiseStream stream{11, 3};
  for (const Metric metric : {Metric::kL2, Metric::kDot}) {
    SerialTeam serial;
    const CandidatePair expected = best_candidate(serial, stream, 4, 37, 100, metric, 5.0);
    for (const int lanes : {1, 2, 5, 8}) {
      std::vector<CandidatePair> found(static_cast<size_t>(lanes));
      run_team(lanes, [&](ThreadTeam& team) {
        found[static_cast<size_t>(team.lane())] = best_candidate(team, stream, 4, 37, 100, metric, 5.0);
      });
      for (const CandidatePair& pair : found) {
        EXPECT_EQ(pair.a, expected.a);
        EXPECT_EQ(pair.s, expected.s);
      }
    }
  }
}

TEST(KnnNoise, CombinationHasTheChosenParts) {
  // p g + q x must have the component a along x and the squared length s across it.
  const double g[3] = {0.3, -1.2, 0.8}, x[3] = {1.0, 2.0, -2.0}, x_norm = 3.0;
  double g_squared = 0, g_dot_x = 0;
  for (int e = 0; e < 3; ++e) {
    g_squared += g[e] * g[e];
    g_dot_x += g[e] * x[e];
  }
  const CandidatePair pair{1.5, 2.25};
  const Combination c = combine(pair, Metric::kL2, x_norm, g_dot_x / x_norm, g_squared);
  double along = 0, squared = 0;
  for (int e = 0; e < 3; ++e) {
    const double n = c.p * g[e] + c.q * x[e];
    along += n * x[e] / x_norm;
    squared += n * n;
  }
  EXPECT_NEAR(along, 1.5, 1e-12);
  EXPECT_NEAR(squared - along * along, 2.25, 1e-12);
}

TEST(KnnNoise, NoDirection) {
  const Combination dot = combine({1.5, 2.25}, Metric::kDot, 0.0, 0.0, 4.0);
  EXPECT_EQ(dot.p, 1.0);
  EXPECT_EQ(dot.q, 0.0);
  const Combination l2 = combine({1.5, 2.25}, Metric::kL2, 0.0, 0.0, 4.0);
  EXPECT_DOUBLE_EQ(l2.p * l2.p * 4.0, 1.5 * 1.5 + 2.25);
  EXPECT_EQ(l2.q, 0.0);
}

}  // namespace
}  // namespace diffaccel
