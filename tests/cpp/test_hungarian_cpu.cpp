#include "core/hungarian_cpu.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include "cost_families.h"

namespace diffaccel {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
struct Answer {
  Status status;
  std::vector<int32_t> columns;
};

template <class T>
Answer<T> solve(const std::vector<T>& cost, int64_t rows, int64_t cols) {
  std::vector<std::byte> memory(static_cast<size_t>(assignment_bytes_cpu<T>(rows, cols)));
  Answer<T> answer{Status::kOk, std::vector<int32_t>(static_cast<size_t>(rows))};
  answer.status = solve_assignment_cpu(cost.data(), rows, cols, memory.data(), answer.columns.data());
  return answer;
}

// The team algorithm on the same problem: the check.
template <class T>
double best_total(const std::vector<T>& cost, int64_t rows, int64_t cols) {
  std::vector<std::byte> memory(static_cast<size_t>(AssignmentWorkspace::bytes(rows, cols)));
  const AssignmentWorkspace work(memory.data(), rows, cols);
  SerialTeam team;
  EXPECT_EQ(solve_assignment(team, CostView<T>{cost.data(), rows, cols, cols, 1, 1.0}, work), Status::kOk);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(cost[static_cast<size_t>(i * cols + work.col_of[i])]);
  return sum;
}

template <class T>
void expect_exact(const std::vector<T>& cost, int64_t rows, int64_t cols) {
  const Answer<T> answer = solve(cost, rows, cols);
  ASSERT_EQ(answer.status, Status::kOk);
  std::vector<bool> used(static_cast<size_t>(cols));
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t j = answer.columns[static_cast<size_t>(i)];
    ASSERT_GE(j, 0);
    ASSERT_LT(j, cols);
    ASSERT_FALSE(used[static_cast<size_t>(j)]);
    used[static_cast<size_t>(j)] = true;
    sum += static_cast<double>(cost[static_cast<size_t>(i * cols + j)]);
  }
  const double best = best_total(cost, rows, cols);
  EXPECT_NEAR(sum, best, 1e-12 * std::abs(best));
}

template <class T>
void every_family(int64_t rows, int64_t cols) {
  for (const auto& [name, cost] : cost_families<T>(rows, cols)) {
    SCOPED_TRACE(name);
    if (solve(cost, rows, cols).status == Status::kInfeasible)
      EXPECT_EQ(name, "infeasible");
    else
      expect_exact(cost, rows, cols);
  }
}

TEST(HungarianCpu, TotalsEqualTheTeamAlgorithms) {
  for (const int64_t n : {1, 2, 7, 15, 16, 17, 31, 33, 95, 96, 97, 128, 150}) {
    every_family<float>(n, n);
    every_family<double>(n, n);
  }
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3, 20}, {16, 17}, {90, 140}, {1, 300}}) {
    every_family<float>(rows, cols);
    every_family<double>(rows, cols);
  }
}

TEST(HungarianCpu, ConstantCostGivesTheIdentity) {
  for (const int64_t n : {5, 16, 40, 130}) {
    const Answer<float> answer = solve(std::vector<float>(static_cast<size_t>(n * n), 0.1f), n, n);
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(answer.columns[static_cast<size_t>(i)], i);
  }
}

TEST(HungarianCpu, ForbiddenInvalidAndInfeasible) {
  for (const int64_t n : {4, 20, 130}) {
    std::vector<double> cost = filled<double>(n, n, [&](int64_t i, int64_t j) { return i <= j ? 1.0 : kInfinity; });
    expect_exact(cost, n, n);
    cost[static_cast<size_t>(n * n - 1)] = kInfinity;  // the last row has no column left
    EXPECT_EQ(solve(cost, n, n).status, Status::kInfeasible);
    cost[3] = std::numeric_limits<double>::quiet_NaN();
    EXPECT_EQ(solve(cost, n, n).status, Status::kInvalid);
    cost[3] = -kInfinity;
    EXPECT_EQ(solve(cost, n, n).status, Status::kInvalid);
  }
}

TEST(HungarianCpu, ScalesNearTheEndsOfTheRange) {
  std::mt19937_64 generator(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const double scale : {1e300, 1e-300, 1e307, 5e-324})
    expect_exact(filled<double>(120, 120, [&](int64_t, int64_t) { return scale * uniform(generator); }), 120, 120);
  for (const double scale : {1e37, 1e-37, 1e-44})
    expect_exact(filled<float>(120, 120, [&](int64_t, int64_t) { return scale * uniform(generator); }), 120, 120);
}

TEST(HungarianCpu, CopyTransposesAndNegates) {
  const std::vector<float> cost = filled<float>(37, 21, [](int64_t i, int64_t j) { return 100.0 * i + j; });
  std::vector<double> copy(cost.size());
  copy_problem(CostView<float>{cost.data(), 21, 37, 1, 21, -1.0}, copy.data());
  for (int64_t i = 0; i < 21; ++i)
    for (int64_t j = 0; j < 37; ++j) EXPECT_EQ(copy[static_cast<size_t>(i * 37 + j)], -(100.0 * j + i));
}

}  // namespace
}  // namespace diffaccel
