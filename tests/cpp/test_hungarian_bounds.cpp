// What holds for every cost: work within a budget, SciPy's ties where asked for, duals that prove the answer.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <vector>

#include "core/hungarian_cpu.h"
#include "cost_families.h"

namespace diffaccel {
namespace {

template <class T>
std::vector<std::byte> memory_for(int64_t rows, int64_t cols) {
  return std::vector<std::byte>(static_cast<size_t>(assignment_bytes_cpu<T>(rows, cols)));
}

struct Size {
  int64_t rows, cols;
};
constexpr Size kSizes[] = {{5, 5},     {33, 33}, {64, 64},  {97, 97}, {130, 130},
                           {260, 260}, {40, 41}, {90, 140}, {20, 300}};

// Every row scanned once for every row is what shortest augmenting paths alone may need; no family comes near it.
template <class T>
void expect_bounded(int64_t rows, int64_t cols) {
  for (const auto& [name, cost] : cost_families<T>(rows, cols)) {
    auto memory = memory_for<T>(rows, cols);
    std::vector<int32_t> columns(static_cast<size_t>(rows));
    DenseAssignment<T, 16> solver(cost.data(), rows, cols, memory.data());
    const Status status = solver.run(columns.data());
    const bool feasible = name != "infeasible" || rows < 3;
    EXPECT_EQ(status, feasible ? Status::kOk : Status::kInfeasible) << name;
    const auto& s = solver.statistics;
    EXPECT_LE(s.rounds, 8) << name;
    EXPECT_LE(s.bids, 256 * rows + 2) << name;
    EXPECT_LE(s.scans, s.bids) << name;
    EXPECT_LE(s.reductions, 8 * (8 * rows + 64)) << name;
    EXPECT_LE(s.paths, 8 * rows) << name;
    EXPECT_LE(s.relaxed, s.paths * rows) << name;
    EXPECT_LE(s.scans + s.full_scans + s.relaxed, rows * rows + 8 * rows) << name;
  }
}

TEST(HungarianBounds, WorkIsWithinABudgetOnEveryFamily) {
  for (const auto& [rows, cols] : kSizes) {
    expect_bounded<float>(rows, cols);
    expect_bounded<double>(rows, cols);
  }
}

template <class T>
void expect_scipys_ties(int64_t rows, int64_t cols) {
  for (const auto& [name, cost] : cost_families<T>(rows, cols)) {
    auto memory = memory_for<T>(rows, cols);
    std::vector<int32_t> columns(static_cast<size_t>(rows));
    const AssignmentWishes wishes{true, nullptr, nullptr};
    const Status status = solve_assignment_cpu(cost.data(), rows, cols, memory.data(), columns.data(), wishes);
    auto other = memory_for<T>(rows, cols);
    const AssignmentWorkspace work(other.data(), rows, cols);
    SerialTeam team;
    ASSERT_EQ(solve_assignment(team, CostView<T>{cost.data(), rows, cols, cols, 1, 1.0}, work), status) << name;
    if (status != Status::kOk) continue;
    for (int64_t i = 0; i < rows; ++i) ASSERT_EQ(columns[static_cast<size_t>(i)], work.col_of[i]) << name;
  }
}

TEST(HungarianBounds, TiesAreThoseOfTheTeamAlgorithmWhereAskedFor) {
  for (const auto& [rows, cols] : kSizes) {
    expect_scipys_ties<float>(rows, cols);
    expect_scipys_ties<double>(rows, cols);
  }
}

template <class T>
void expect_proved(int64_t rows, int64_t cols) {
  for (const auto& [name, cost] : cost_families<T>(rows, cols)) {
    auto memory = memory_for<T>(rows, cols);
    std::vector<int32_t> columns(static_cast<size_t>(rows));
    std::vector<double> u(static_cast<size_t>(rows)), v(static_cast<size_t>(cols));
    const AssignmentWishes wishes{false, u.data(), v.data()};
    if (solve_assignment_cpu(cost.data(), rows, cols, memory.data(), columns.data(), wishes) != Status::kOk) continue;
    double largest = 0;
    for (const double x : u) largest = std::max(largest, std::abs(x));
    for (const double x : v) largest = std::max(largest, std::abs(x));
    const double rounding = 0x1p-47 * largest;
    std::vector<bool> assigned(static_cast<size_t>(cols));
    for (int64_t i = 0; i < rows; ++i) {
      const auto reduced = [&](int64_t j) {
        return static_cast<double>(cost[static_cast<size_t>(i * cols + j)]) - u[static_cast<size_t>(i)] -
               v[static_cast<size_t>(j)];
      };
      for (int64_t j = 0; j < cols; ++j) ASSERT_GE(reduced(j), -rounding) << name;
      const int32_t own = columns[static_cast<size_t>(i)];
      ASSERT_LE(std::abs(reduced(own)), rounding) << name;
      assigned[static_cast<size_t>(own)] = true;
    }
    for (size_t j = 0; rows < cols && j < assigned.size(); ++j) {
      ASSERT_LE(v[j], 0) << name;
      ASSERT_TRUE(assigned[j] || v[j] == 0) << name;
    }
  }
}

TEST(HungarianBounds, DualsProveTheAnswer) {
  for (const auto& [rows, cols] : kSizes) {
    expect_proved<float>(rows, cols);
    expect_proved<double>(rows, cols);
  }
}

TEST(HungarianBounds, StepsOnNoCycleProveUniqueness) {
  AssignmentSteps tree(5);
  for (int32_t node = 0; node < 4; ++node) tree.add(node, node + 1, 0);
  EXPECT_TRUE(tree.every_cycle_exceeds(1));

  AssignmentSteps ring(5);
  for (int32_t node = 0; node < 5; ++node) ring.add(node, (node + 1) % 5, 0);
  EXPECT_FALSE(ring.every_cycle_exceeds(1));

  // Five nodes would allow a slack of 5, but the cycle left has two of them, and a step of slack 3.
  AssignmentSteps pair(5);
  pair.add(0, 1, 0);
  pair.add(1, 0, 3);
  pair.add(1, 2, 0);
  pair.add(3, 0, 0);
  EXPECT_TRUE(pair.every_cycle_exceeds(1));
  AssignmentSteps tied(5);
  tied.add(0, 1, 0);
  tied.add(1, 0, 2);
  EXPECT_FALSE(tied.every_cycle_exceeds(1));
}

}  // namespace
}  // namespace diffaccel
