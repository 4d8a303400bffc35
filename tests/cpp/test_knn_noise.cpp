#include "core/knn_noise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/knn_order.h"
#include "thread_team.h"

namespace diffaccel {
namespace {

// Two-sample Kolmogorov-Smirnov statistic times sqrt(n / 2); above 2.69 the chance is below 1e-6.
double kolmogorov(std::vector<double> a, std::vector<double> b) {
  std::sort(a.begin(), a.end());
  std::sort(b.begin(), b.end());
  size_t i = 0, j = 0;
  double most = 0;
  while (i < a.size() && j < b.size()) {
    const double value = std::min(a[i], b[j]);
    while (i < a.size() && a[i] <= value) ++i;
    while (j < b.size() && b[j] <= value) ++j;
    most = std::max(most, std::fabs(static_cast<double>(i) / static_cast<double>(a.size()) -
                                    static_cast<double>(j) / static_cast<double>(b.size())));
  }
  return most * std::sqrt(static_cast<double>(a.size()) / 2);
}
constexpr double kOneInAMillion = 2.69;

// Greatest statistic of a, s and the distance over two lists of winners.
double worst(const std::vector<CandidatePair>& one, const std::vector<CandidatePair>& two, double x_norm) {
  double most = 0;
  for (int what = 0; what < 3; ++what) {
    const auto values = [&](const std::vector<CandidatePair>& pairs) {
      std::vector<double> out;
      for (const CandidatePair& pair : pairs)
        out.push_back(what == 0 ? pair.a : what == 1 ? pair.s : distance_score(pair, x_norm));
      return out;
    };
    most = std::max(most, kolmogorov(values(one), values(two)));
  }
  return most;
}

TEST(NormalQuantile, InvertsTheDistribution) {
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 1e-15);
  EXPECT_EQ(normal_quantile(0.5), 0.0);
  EXPECT_EQ(normal_quantile(0.25), -normal_quantile(0.75));
  for (const double p : {1e-300, 1e-100, 1e-20, 1e-10, 1e-6, 1e-3, 0.02, 0.074, 0.076, 0.3, 0.6, 0.9, 0.93})
    EXPECT_NEAR(0.5 * std::erfc(-normal_quantile(p) / std::sqrt(2.0)) / p, 1.0, 1e-12) << p;
}

TEST(KnnNoise, ChiSquareMoments) {
  const NoiseStream stream{11, 3};
  for (const int64_t dof : {1, 2, 3, 63, 3071}) {
    constexpr int kDraws = 40000;
    const ChiSquare law(dof);
    double sum = 0, squares = 0;
    for (uint32_t j = 0; j < kDraws; ++j) {
      const double s = draw_candidate(stream, law, j, 0).s;
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
  EXPECT_EQ(draw_candidate(stream, ChiSquare(0), 0, 0).s, 0.0);
}

TEST(KnnNoise, TheCheapBoundAcceptsNothingThatTheExactTestRejects) {
  for (const int64_t dof : {2, 3, 10, 3071}) {
    const ChiSquare law(dof);
    for (float x = -6.5f; x < 6.5f; x += 0.01f) {
      const double wide = static_cast<double>(x), root = 1 + law.c * wide, v = root * root * root;
      const double chance = root > 0 ? std::exp(0.5 * wide * wide + law.d * (1 - v + std::log(v))) : 0.0;
      for (const int32_t word : {0, 1 << 20, 1 << 28, 1 << 30, 2000000000, 2147483647})
        if (first_try(law, 0.0f, x, word).accepted) {
          EXPECT_LE((word + 0.5) * kUnit31, chance * (1 + 1e-9)) << dof << " " << x << " " << word;
        }
    }
  }
}

TEST(KnnNoise, LanesAndTeamsPickTheSameCandidate) {
  const NoiseStream stream{11, 3};
  for (const int64_t elements : {1, 2, 3, 100}) {
    const ChiSquare law(elements - 1);
    for (const int64_t k : {2, 16, 17, 37}) {
      SerialTeam serial;
      const CandidatePair expected = nearest_drawn(serial, stream, law, 4, k, 5.0);
      const CandidatePair lanes_found = nearest_drawn_lanes(stream, law, 4, k, 5.0);
      EXPECT_EQ(lanes_found.a, expected.a);
      EXPECT_EQ(lanes_found.s, expected.s);
    }
  }
}

TEST(KnnNoise, EveryLaneCountChoosesTheSame) {
  const NoiseStream stream{11, 3};
  for (const Metric metric : {Metric::kL2, Metric::kDot}) {
    for (const int64_t k : {7, 32, 33, 1000000}) {
      const NearestLaw law(k, 100);
      SerialTeam serial;
      const CandidatePair expected = choose(serial, stream, law, metric, 4, 5.0);
      for (const int lanes : {1, 2, 5, 8}) {
        std::vector<CandidatePair> found(static_cast<size_t>(lanes));
        run_team(lanes, [&](ThreadTeam& team) {
          found[static_cast<size_t>(team.lane())] = choose(team, stream, law, metric, 4, 5.0);
        });
        for (const CandidatePair& pair : found) {
          EXPECT_EQ(pair.a, expected.a);
          EXPECT_EQ(pair.s, expected.s);
        }
      }
    }
  }
}

// Both ways of choosing at the same k. Small k puts most weight on what is rare at large k: the coin for (1 - H) / (1 -
// F) and the case that all candidates are far.
TEST(KnnNoise, OrderStatisticsHaveTheLawOfDrawnCandidates) {
  for (const int64_t elements : {1, 2, 3, 64, 3072}) {
    for (const double x_norm : {0.0, 0.3, 8.0, 1e4}) {
      for (const int64_t k : {1, 2, 5, 33, 400}) {
        const uint32_t count = k > 100 ? 2000 : k > 5 ? 10000 : 25000;
        const NearestLaw law(k, elements);
        const NoiseStream stream{17, 1}, other{18, 1};
        std::vector<CandidatePair> drawn, ordered;
        for (uint32_t sample = 0; sample < count; ++sample) {
          uint32_t draws = 0;
          drawn.push_back(nearest_drawn_lanes(stream, law.across, sample, k, x_norm));
          ordered.push_back(nearest_ordered(other, law, sample, x_norm, draws));
        }
        EXPECT_LT(worst(drawn, ordered, x_norm), kOneInAMillion)
            << "D " << elements << ", |x| " << x_norm << ", k " << k;
      }
    }
  }
}

TEST(KnnNoise, LargestNormalHasTheLawOfTheLargestDrawn) {
  const NoiseStream stream{17, 1}, other{18, 1};
  for (const int64_t k : {2, 3, 33, 400}) {
    std::vector<double> quantile, drawn;
    for (uint32_t sample = 0; sample < 10000; ++sample) {
      quantile.push_back(largest_normal(stream, sample, k));
      double most = -INFINITY;
      for (uint32_t j = 0; j < k; ++j) most = std::max(most, draw_candidate(other, ChiSquare(0), j, sample).a);
      drawn.push_back(most);
    }
    EXPECT_LT(kolmogorov(quantile, drawn), kOneInAMillion) << k;
  }
}

TEST(KnnNoise, HugeCountsHaveTheirExpectations) {
  constexpr uint32_t kSamples = 20000;
  const NoiseStream stream{5, 2};
  const struct {
    int64_t k;
    double largest, deviation;  // of the largest of k standard normals (numerical integration)
  } cases[] = {{1000, 3.2414357, 0.351}, {1000000, 4.8628975, 0.248}};
  for (const auto& expected : cases) {
    const NearestLaw far(expected.k, 64), plane(expected.k, 2), line(expected.k, 1);
    double dot = 0, along = 0, square = 0, gap = 0;
    for (uint32_t sample = 0; sample < kSamples; ++sample) {
      uint32_t draws = 0;
      dot += largest_normal(stream, sample, expected.k);
      along += nearest_ordered(stream, far, sample, 1e9, draws).a;  // so far away that only a counts
      const CandidatePair pair = nearest_ordered(stream, plane, sample, 0.0, draws);
      square += pair.a * pair.a + pair.s;  // the least of k exponentials of mean 2
      gap += std::fabs(nearest_ordered(stream, line, sample, 1.0, draws).a - 1.0);
    }
    const double k = static_cast<double>(expected.k), root = std::sqrt(static_cast<double>(kSamples));
    EXPECT_NEAR(dot / kSamples, expected.largest, 5 * expected.deviation / root);
    EXPECT_NEAR(along / kSamples, expected.largest, 5 * expected.deviation / root);
    EXPECT_NEAR(square / kSamples * k / 2, 1.0, 5 / root);
    EXPECT_NEAR(gap / kSamples * k * 2 * 0.24197072451914337, 1.0, 5 / root + 10 / k);  // density of one normal at 1
  }
}

TEST(KnnNoise, FewPointsAreEnough) {
  const NoiseStream stream{5, 2};
  for (const int64_t elements : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{20}, int64_t{3072}, kMaxElements}) {
    for (const double x_norm : {0.0, 1e-100, 0.1, 3.0, 50.0, 1e4, 1e15, 9e149}) {
      for (const int64_t k : {int64_t{33}, int64_t{1000000}, kMaxIndex - 1}) {
        const NearestLaw law(k, elements);
        double total = 0;
        for (uint32_t sample = 0; sample < 300; ++sample) {
          uint32_t draws = 0;
          const CandidatePair pair = nearest_ordered(stream, law, sample, x_norm, draws);
          total += draws;
          EXPECT_TRUE(std::isfinite(pair.a) && std::isfinite(pair.s) && pair.s >= 0);
        }
        EXPECT_LT(total / 300, 3.0) << "D " << elements << ", |x| " << x_norm << ", k " << k;
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
