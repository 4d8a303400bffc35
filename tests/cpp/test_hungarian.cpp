#include "core/hungarian.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "thread_team.h"

namespace diffaccel {
namespace {

struct Answer {
  Status status;
  std::vector<int64_t> columns;
};

template <class Team>
Status solve_in(Team& team, const std::vector<double>& cost, int64_t R, int64_t C, bool maximize,
                std::vector<std::byte>& memory, std::vector<int64_t>& columns) {
  const bool tall = R > C;
  const int64_t rows = std::min(R, C), cols = std::max(R, C);
  const AssignmentWorkspace work(memory.data(), rows, cols);
  const CostView<double> view{cost.data(), rows, cols, tall ? 1 : C, tall ? C : 1, maximize ? -1.0 : 1.0};
  const Status status = solve_assignment(team, view, work);
  write_assignment(team, work, R, C, status, columns.data());
  return status;
}

// lanes = 0: the serial team.
Answer solve(const std::vector<double>& cost, int64_t R, int64_t C, int lanes = 0, bool maximize = false) {
  std::vector<std::byte> memory(static_cast<size_t>(AssignmentWorkspace::bytes(std::min(R, C), std::max(R, C))));
  Answer answer{Status::kOk, std::vector<int64_t>(static_cast<size_t>(R))};
  if (lanes == 0) {
    SerialTeam team;
    answer.status = solve_in(team, cost, R, C, maximize, memory, answer.columns);
  } else {
    run_team(lanes, [&](ThreadTeam& team) {
      const Status status = solve_in(team, cost, R, C, maximize, memory, answer.columns);
      if (team.lane() == 0) answer.status = status;
    });
  }
  return answer;
}

double total(const std::vector<double>& cost, int64_t C, const std::vector<int64_t>& columns) {
  double sum = 0;
  for (size_t i = 0; i < columns.size(); ++i)
    if (columns[i] >= 0) sum += cost[i * static_cast<size_t>(C) + static_cast<size_t>(columns[i])];
  return sum;
}

double brute_force(const std::vector<double>& cost, int n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  double best = std::numeric_limits<double>::infinity();
  do best = std::min(best, total(cost, n, order));
  while (std::next_permutation(order.begin(), order.end()));
  return best;
}

std::vector<double> random_cost(int64_t size, unsigned seed, bool integers) {
  std::mt19937 generator(seed);
  std::vector<double> cost(static_cast<size_t>(size));
  for (double& value : cost) {
    value = std::uniform_real_distribution<double>(0, 10)(generator);
    if (integers) value = std::floor(value);
  }
  return cost;
}

TEST(Hungarian, BruteForce) {
  for (int n = 1; n <= 7; ++n) {
    for (unsigned seed = 0; seed < 5; ++seed) {
      for (const bool integers : {false, true}) {
        const std::vector<double> cost = random_cost(n * n, seed, integers);
        EXPECT_NEAR(total(cost, n, solve(cost, n, n).columns), brute_force(cost, n), 1e-12);
      }
    }
  }
}

TEST(Hungarian, EveryLaneCountGivesTheSameAnswer) {
  for (const auto& [R, C] : {std::pair{17, 17}, {5, 33}, {33, 5}, {31, 31}}) {
    for (const bool integers : {false, true}) {
      const std::vector<double> cost = random_cost(R * C, 3, integers);
      const Answer serial = solve(cost, R, C);
      for (const int lanes : {1, 2, 3, 8}) {
        const Answer team = solve(cost, R, C, lanes);
        EXPECT_EQ(team.status, Status::kOk);
        EXPECT_EQ(team.columns, serial.columns) << R << "x" << C << " lanes " << lanes;
      }
    }
  }
}

TEST(Hungarian, ConstantCostGivesTheIdentity) {
  const std::vector<double> cost(36, 2.5);
  const Answer answer = solve(cost, 6, 6);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(answer.columns[i], static_cast<int64_t>(i));
}

TEST(Hungarian, TallLeavesRowsOver) {
  const std::vector<double> cost = random_cost(9 * 4, 1, false);
  const Answer answer = solve(cost, 9, 4);
  EXPECT_EQ(std::count(answer.columns.begin(), answer.columns.end(), -1), 5);
  for (int64_t c = 0; c < 4; ++c) EXPECT_EQ(std::count(answer.columns.begin(), answer.columns.end(), c), 1);
}

TEST(Hungarian, Maximize) {
  const std::vector<double> cost{1, 2, 3, 4, 0, 7, 2, 8, 1};
  const Answer answer = solve(cost, 3, 3, 0, true);
  EXPECT_DOUBLE_EQ(total(cost, 3, answer.columns), 16);  // 1 + 7 + 8
}

TEST(Hungarian, ForbiddenPairs) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(solve({1, inf, 2, inf}, 2, 2).status, Status::kInfeasible);
  EXPECT_EQ(solve({1, inf, 2, inf}, 2, 2, 3).status, Status::kInfeasible);
  const Answer answer = solve({inf, 1, 2, inf}, 2, 2);
  EXPECT_EQ(answer.status, Status::kOk);
  EXPECT_EQ(answer.columns, (std::vector<int64_t>{1, 0}));
}

TEST(Hungarian, InvalidEntries) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(solve({1, nan, 2, 3}, 2, 2).status, Status::kInvalid);
  EXPECT_EQ(solve({1, -inf, 2, 3}, 2, 2, 2).status, Status::kInvalid);
  EXPECT_EQ(solve({1, inf, 2, 3}, 2, 2, 0, true).status, Status::kInvalid);
}

}  // namespace
}  // namespace diffaccel
