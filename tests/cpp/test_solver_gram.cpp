#include "core/solver_gram.h"

#include <gtest/gtest.h>

#include <vector>

namespace diffaccel {
namespace {

TEST(SolverGram, DotOfAnyLength) {
  for (const int64_t size : {0, 1, 7, 8, 9, 1000}) {
    std::vector<float> a;
    std::vector<double> b;
    double expected = 0;
    for (int64_t e = 0; e < size; ++e) {
      a.push_back(static_cast<float>(e % 5) - 2.0f);
      b.push_back(static_cast<double>(e % 7) * 0.5);
      expected += static_cast<double>(a.back()) * b.back();
    }
    EXPECT_DOUBLE_EQ(dot_chunk(a.data(), b.data(), 0, size), expected);
  }
}

TEST(SolverGram, TermCount) {
  EXPECT_EQ(gram_terms(0), 0);
  EXPECT_EQ(gram_terms(1), 2);
  EXPECT_EQ(gram_terms(3), 9);
}

}  // namespace
}  // namespace diffaccel
