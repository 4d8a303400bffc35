#include "core/knn_select.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/normal_group.h"

namespace diffaccel {
namespace {

TEST(KnnSelect, ScoresAgreeWithThePlainSum) {
  for (const int64_t elements : {0, 1, 63, 64, 65, 1000, 4096, 9000}) {
    std::vector<float> x, n;
    double l2 = 0, dot = 0;
    for (int64_t e = 0; e < elements; ++e) {
      x.push_back(0.01f * static_cast<float>(e % 37) - 0.2f);
      n.push_back(0.02f * static_cast<float>(e % 23) - 0.1f);
      const double a = static_cast<double>(x.back()), b = static_cast<double>(n.back());
      l2 += (a - b) * (a - b);
      dot -= a * b;
    }
    EXPECT_NEAR(score_row(Metric::kL2, x.data(), n.data(), elements), l2, 1e-5 * (1 + l2));
    EXPECT_NEAR(score_row(Metric::kDot, x.data(), n.data(), elements), dot, 1e-5 * (1 + l2));
  }
}

// The estimate's error stays within its bound for sums in the worst usual order (one running float), and the bound
// stays small against the spread of scores, or screening would keep every candidate.
TEST(KnnSelect, TheEstimateKeepsItsBound) {
  const NoiseStream stream{3, 1};
  for (const int64_t elements : {1, 2, 16, 64, 100, 3072, 20000}) {
    for (const float scale : {1e-3f, 1.0f, 30.0f}) {
      const size_t size = static_cast<size_t>(group_count(elements) * kGroup);
      std::vector<float> x(size), n(size);
      for (int64_t g = 0; g < group_count(elements); ++g) {
        normal_group(stream, g, 0, 0, x.data() + g * kGroup);
        normal_group(stream, g, 1, 0, n.data() + g * kGroup);
      }
      float dot = 0;
      for (int64_t e = 0; e < elements; ++e) {
        x[static_cast<size_t>(e)] *= scale;
        dot += x[static_cast<size_t>(e)] * n[static_cast<size_t>(e)];
      }
      const double x_squared = square_norm(x.data(), elements), n_squared = square_norm(n.data(), elements);
      const double error = estimate_error<float>(elements, std::sqrt(x_squared), std::sqrt(n_squared));
      for (const Metric metric : {Metric::kL2, Metric::kDot}) {
        const float value = estimate(EstimateWeights(metric), dot, static_cast<float>(n_squared));
        const double shared = metric == Metric::kL2 ? x_squared : 0.0;
        EXPECT_NEAR(static_cast<double>(value) + shared, score_row(metric, x.data(), n.data(), elements), error);
      }
      EXPECT_LT(error, 0.01 * (x_squared + n_squared));
    }
  }
}

TEST(KnnSelect, EstimatesThatSayNothingAreKept) {
  const float infinity = INFINITY;
  EXPECT_TRUE(may_be_best(1.0f, 1.0f));
  EXPECT_FALSE(may_be_best(1.5f, 1.0f));
  EXPECT_TRUE(may_be_best(NAN, 1.0f));
  EXPECT_TRUE(may_be_best(infinity, 1.0f));
  EXPECT_TRUE(may_be_best(-infinity, 1.0f));
  EXPECT_TRUE(may_be_best(1.5f, static_cast<float>(NAN)));
}

}  // namespace
}  // namespace diffaccel
