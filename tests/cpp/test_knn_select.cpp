#include "core/knn_select.h"

#include <gtest/gtest.h>

#include <vector>

namespace diffaccel {
namespace {

TEST(KnnSelect, ScoresAgreeWithThePlainSum) {
  for (const int64_t elements : {0, 1, 63, 64, 65, 1000}) {
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

}  // namespace
}  // namespace diffaccel
