#include "core/hungarian_parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/ordered.h"
#include "thread_team.h"

namespace diffaccel {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// groups = 0: the serial team; otherwise groups of `lanes` threads (one group: a block) in warps of `width`.
struct Shape {
  int groups, lanes, width = 1;
};

template <class T>
struct Answer {
  Status status;
  std::vector<int32_t> columns, rows;
  AuctionStatistics statistics;
};

template <class T>
Answer<T> solve(const std::vector<T>& cost, int64_t rows, int64_t cols, const AuctionSettings& settings = {},
                Shape shape = {0, 1}, double sign = 1) {
  AssignmentProblem<T> p{};
  p.cost = cost.data();
  p.rows = rows;
  p.cols = cols;
  p.sign = sign;
  p.settings = settings;
  std::vector<double> memory(static_cast<size_t>(AssignmentProblem<T>::bytes(rows, cols, settings.trees)) / 8 + 2);
  p.lay_out(memory.data());
  Answer<T> answer{};
  const auto run = [&](auto& team) {
    const Status status = solve_parallel(team, p);
    if (team.lane() == 0) answer.status = status;
  };
  if (shape.groups == 0) {
    SerialTeam team;
    run(team);
  } else if (shape.groups == 1) {
    run_team(shape.lanes, [&](ThreadTeam& team) { run(team); }, shape.width);
  } else {
    run_grid(shape.groups, shape.lanes, [&](ThreadGrid& team) { run(team); }, shape.width);
  }
  answer.columns.assign(p.col_of, p.col_of + rows);
  answer.rows.assign(p.row_of, p.row_of + cols);
  answer.statistics = p.control->statistics;
  return answer;
}

// The plain algorithm on the same problem: the check.
template <class T>
double best_total(const std::vector<T>& cost, int64_t rows, int64_t cols) {
  std::vector<double> memory(static_cast<size_t>(AssignmentWorkspace::bytes(rows, cols)) / 8 + 2);
  const AssignmentWorkspace work(memory.data(), rows, cols);
  SerialTeam team;
  EXPECT_EQ(solve_assignment(team, CostView<T>{cost.data(), rows, cols, cols, 1, 1.0}, work), Status::kOk);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) sum += static_cast<double>(cost[static_cast<size_t>(i * cols + work.col_of[i])]);
  return sum;
}

template <class T>
Answer<T> expect_exact(const std::vector<T>& cost, int64_t rows, int64_t cols, const AuctionSettings& settings = {},
                       Shape shape = {0, 1}) {
  const Answer<T> answer = solve(cost, rows, cols, settings, shape);
  EXPECT_EQ(answer.status, Status::kOk);
  if (answer.status != Status::kOk) return answer;
  std::vector<bool> used(static_cast<size_t>(cols));
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t j = answer.columns[static_cast<size_t>(i)];
    EXPECT_TRUE(j >= 0 && j < cols && !used[static_cast<size_t>(j)]);
    if (j < 0 || j >= cols) return answer;
    used[static_cast<size_t>(j)] = true;
    EXPECT_EQ(answer.rows[static_cast<size_t>(j)], i);
    sum += static_cast<double>(cost[static_cast<size_t>(i * cols + j)]);
  }
  EXPECT_EQ(std::count(answer.rows.begin(), answer.rows.end(), -1), cols - rows);
  const double best = best_total(cost, rows, cols);
  EXPECT_NEAR(sum, best, 1e-12 * std::abs(best)) << rows << "x" << cols;
  return answer;
}

template <class T>
struct Family {
  std::string name;
  std::vector<T> cost;
};

template <class T>
std::vector<Family<T>> families(int64_t rows, int64_t cols) {
  std::mt19937_64 generator(static_cast<uint64_t>(rows * 1000 + cols));
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  std::vector<double> a(static_cast<size_t>(rows)), b(static_cast<size_t>(cols)), c(a), d(b);
  for (auto* values : {&a, &b, &c, &d})
    for (double& value : *values) value = uniform(generator);
  const auto at = [](const std::vector<double>& x, int64_t k) { return x[static_cast<size_t>(k)]; };
  std::vector<Family<T>> all;
  const auto add = [&](const char* name, const std::function<double(int64_t, int64_t)>& f) {
    Family<T> family{name, {}};
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) family.cost.push_back(static_cast<T>(f(i, j)));
    all.push_back(std::move(family));
  };
  add("uniform", [&](int64_t, int64_t) { return uniform(generator); });
  add("normal", [&](int64_t, int64_t) { return normal(generator); });
  add("integers", [&](int64_t, int64_t) { return std::floor(10 * uniform(generator)); });
  add("constant", [&](int64_t, int64_t) { return 2.5; });
  add("log-normal", [&](int64_t, int64_t) { return std::exp(3 * normal(generator)); });
  add("points", [&](int64_t i, int64_t j) {
    const double x = at(a, i) - at(b, j), y = at(c, i) - at(d, j);
    return x * x + y * y;
  });
  add("outer product", [&](int64_t i, int64_t j) { return at(a, i) * at(b, j); });
  add("outer sum", [&](int64_t i, int64_t j) { return at(a, i) + at(b, j); });
  add("i j", [&](int64_t i, int64_t j) { return static_cast<double>(i * j); });
  add("rows", [&](int64_t i, int64_t) { return at(a, i); });
  add("columns", [&](int64_t, int64_t j) { return at(b, j); });
  add("offset", [&](int64_t, int64_t) { return 1e6 + 1e-3 * uniform(generator); });
  return all;
}

TEST(HungarianParallel, TotalsEqualThePlainAlgorithms) {
  AuctionSettings settings;
  settings.trees = 3;
  settings.auction_from = 2;
  for (const int64_t n : {1, 2, 7, 31, 32, 33, 64, 65, 130}) {
    for (const auto& family : families<float>(n, n)) {
      SCOPED_TRACE(family.name);
      expect_exact(family.cost, n, n);
      expect_exact(family.cost, n, n, settings);
    }
    for (const auto& family : families<double>(n, n)) {
      SCOPED_TRACE(family.name);
      expect_exact(family.cost, n, n);
      expect_exact(family.cost, n, n, settings);
    }
  }
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{3, 40}, {32, 33}, {90, 140}, {1, 300}, {100, 101}}) {
    for (const auto& family : families<float>(rows, cols)) {
      SCOPED_TRACE(family.name);
      expect_exact(family.cost, rows, cols, settings);
    }
  }
}

// Every shape of team, with the auction and without; ThreadSanitizer watches these.
TEST(HungarianParallel, EveryTeamGivesTheSameAnswer) {
  AuctionSettings settings;
  settings.trees = 4;
  settings.auction_from = 40;
  settings.stop = 1;  // leaves rows for the trees
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{33, 33}, {70, 70}, {30, 75}}) {
    for (const auto& family : families<float>(rows, cols)) {
      if (family.name == "outer sum" || family.name == "rows" || family.name == "columns") continue;
      SCOPED_TRACE(family.name);
      const Answer<float> serial = solve(family.cost, rows, cols, settings);
      for (const Shape shape : {Shape{1, 1}, {1, 3}, {1, 2, 2}, {1, 4, 2}, {2, 1}, {2, 4, 2}, {3, 1}}) {
        const Answer<float> team = solve(family.cost, rows, cols, settings, shape);
        EXPECT_EQ(team.status, Status::kOk);
        EXPECT_EQ(team.columns, serial.columns)
            << shape.groups << " groups of " << shape.lanes << " in warps of " << shape.width;
        EXPECT_EQ(team.statistics.rounds, serial.statistics.rounds);
        EXPECT_EQ(team.statistics.bids, serial.statistics.bids);
        EXPECT_EQ(team.statistics.fills, serial.statistics.fills);
        EXPECT_EQ(team.statistics.steps, serial.statistics.steps);
      }
    }
  }
}

TEST(HungarianParallel, TheAuctionDoesTheBulk) {
  for (const auto& family : families<float>(300, 300)) {
    SCOPED_TRACE(family.name);
    const AuctionStatistics statistics = expect_exact(family.cost, 300, 300).statistics;
    const bool bids = family.name == "uniform" || family.name == "normal" || family.name == "points";
    if (bids) {
      EXPECT_GT(statistics.rounds, 0);
      EXPECT_LE(statistics.free_after, 15);
    }
    if (family.name == "integers" || family.name == "constant" || family.name == "log-normal") {
      EXPECT_EQ(statistics.rounds, 0);  // ties and heavy tails are left to the exact finish
    }
  }
}

// Trees that grow at once give the optimum too, in fewer rounds than there are rows left.
TEST(HungarianParallel, TreesGrowAtOnce) {
  AuctionSettings settings;
  settings.auction_from = 1000;
  settings.reductions = 1;
  for (const int32_t trees : {1, 2, 8, 32}) {
    settings.trees = trees;
    for (const auto& family : families<double>(90, 90)) {
      if (family.name != "uniform") continue;
      const AuctionStatistics statistics = expect_exact(family.cost, 90, 90, settings, {2, 1}).statistics;
      EXPECT_EQ(statistics.trees, statistics.free_after);
      EXPECT_GT(statistics.free_after, 10);
      if (trees == 1) {
        EXPECT_EQ(statistics.tree_rounds, statistics.trees);
      } else {
        EXPECT_LT(statistics.tree_rounds, statistics.trees);
      }
    }
  }
}

TEST(HungarianParallel, EveryBudgetIsKept) {
  for (const auto& family : families<float>(120, 120)) {
    SCOPED_TRACE(family.name);
    AuctionSettings settings;
    settings.rounds = 3;
    EXPECT_LE(expect_exact(family.cost, 120, 120, settings).statistics.rounds, 3);
    settings.rounds = 0;
    EXPECT_EQ(expect_exact(family.cost, 120, 120, settings).statistics.rounds, 0);
    settings.reductions = 0;
    const AuctionStatistics none = expect_exact(family.cost, 120, 120, settings).statistics;
    EXPECT_EQ(none.reductions, 0);
    EXPECT_EQ(none.trees, 120);
    settings.reductions = 2;
    EXPECT_LE(expect_exact(family.cost, 120, 120, settings).statistics.reductions, 2 * settings.repeats);
    settings.repeats = 0;
    EXPECT_EQ(expect_exact(family.cost, 120, 120, settings).statistics.plain, 1);
    settings.rounds = 1 << 20;  // more than a bid's word can count
    EXPECT_LE(expect_exact(family.cost, 120, 120, settings).statistics.rounds, kMostRounds);
  }
}

TEST(HungarianParallel, TheCertificateFreesRowsThatCouldDoBetter) {
  const auto cost = families<float>(50, 50)[0].cost;
  AssignmentProblem<float> p{};
  p.cost = cost.data();
  p.rows = p.cols = 50;
  p.sign = 1;
  std::vector<double> memory(static_cast<size_t>(AssignmentProblem<float>::bytes(50, 50, 1)) / 8 + 2);
  p.lay_out(memory.data());
  SerialTeam team;
  ASSERT_EQ(solve_parallel(team, p), Status::kOk);
  EXPECT_TRUE(certified(team, p));
  const int32_t owner = p.row_of[7];
  p.v[7] -= 100;  // its row would rather have any other column
  EXPECT_FALSE(certified(team, p));
  EXPECT_EQ(p.control->count[0], 1);
  EXPECT_EQ(p.list[0][0], owner);
  EXPECT_EQ(p.col_of[owner], -1);
  EXPECT_EQ(p.row_of[7], -1);
}

TEST(HungarianParallel, ConstantCostGivesTheIdentity) {
  for (const int64_t n : {5, 40, 130}) {
    const Answer<float> answer = solve(std::vector<float>(static_cast<size_t>(n * n), 0.1f), n, n);
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(answer.columns[static_cast<size_t>(i)], i);
  }
}

TEST(HungarianParallel, ForbiddenInvalidAndInfeasible) {
  for (const Shape shape : {Shape{0, 1}, {1, 3}, {2, 2, 2}}) {
    AuctionSettings settings;
    settings.trees = shape.groups;
    settings.trees = std::max(settings.trees, 1);
    for (const int64_t n : {4, 40, 100}) {
      std::vector<double> cost(static_cast<size_t>(n * n), kInfinity);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i; j < n; ++j) cost[static_cast<size_t>(i * n + j)] = 1;
      expect_exact(cost, n, n, settings, shape);
      cost[static_cast<size_t>(n * n - 1)] = kInfinity;  // the last row has no column left
      EXPECT_EQ(solve(cost, n, n, settings, shape).status, Status::kInfeasible);
      cost[3] = std::numeric_limits<double>::quiet_NaN();
      EXPECT_EQ(solve(cost, n, n, settings, shape).status, Status::kInvalid);
      cost[3] = -kInfinity;
      EXPECT_EQ(solve(cost, n, n, settings, shape).status, Status::kInvalid);
      cost[3] = kInfinity;
      EXPECT_EQ(solve(cost, n, n, settings, shape, -1).status, Status::kInvalid);
    }
    // Two rows that share the only column of each, among many.
    std::vector<double> cost(50 * 60, 1.0);
    for (const int64_t row : {11, 37})
      for (int64_t j = 0; j < 60; ++j) cost[static_cast<size_t>(row * 60 + j)] = j == 5 ? 1.0 : kInfinity;
    EXPECT_EQ(solve(cost, 50, 60, settings, shape).status, Status::kInfeasible);
  }
}

TEST(HungarianParallel, RandomForbiddenPairs) {
  std::mt19937_64 generator(3);
  std::uniform_real_distribution<double> uniform(0, 1);
  for (const double share : {0.3, 0.8, 0.95}) {
    for (const int64_t cols : {60, 75}) {
      std::vector<double> cost;
      for (int64_t k = 0; k < 60 * cols; ++k)
        cost.push_back(uniform(generator) < share ? kInfinity : uniform(generator));
      std::vector<double> memory(static_cast<size_t>(AssignmentWorkspace::bytes(60, cols)) / 8 + 2);
      SerialTeam team;
      const Status expected = solve_assignment(team, CostView<double>{cost.data(), 60, cols, cols, 1, 1.0},
                                               AssignmentWorkspace(memory.data(), 60, cols));
      EXPECT_EQ(solve(cost, 60, cols).status, expected);
      if (expected == Status::kOk) expect_exact(cost, 60, cols);
    }
  }
}

TEST(HungarianParallel, ScalesNearTheEndsOfTheRange) {
  std::mt19937_64 generator(1);
  std::uniform_real_distribution<double> uniform(0, 1);
  const auto scaled = [&](auto zero, double scale) {
    std::vector<decltype(zero)> cost;
    for (int k = 0; k < 120 * 120; ++k) cost.push_back(static_cast<decltype(zero)>(scale * uniform(generator)));
    return cost;
  };
  for (const double scale : {1e300, 1e-300, 1e307, 5e-324}) expect_exact(scaled(0.0, scale), 120, 120);
  for (const double scale : {1e37, 3e38, 1e-37, 1e-44}) expect_exact(scaled(0.0f, scale), 120, 120);
}

TEST(HungarianParallel, MaximizeIsMinimizeOfTheNegative) {
  auto cost = families<float>(110, 110)[1].cost;
  const Answer<float> most = solve(cost, 110, 110, {}, {0, 1}, -1);
  for (float& value : cost) value = -value;
  EXPECT_EQ(most.columns, solve(cost, 110, 110).columns);
}

TEST(Ordered, KeepsTheOrder) {
  const std::vector<double> rising{-kInfinity, -1e300, -1, -1e-300, -5e-324, 0, 5e-324, 1e-300, 1, 1e300, kInfinity};
  for (size_t k = 0; k < rising.size(); ++k) {
    const size_t before = k == 0 ? 0 : k - 1;
    EXPECT_EQ(double_from_ordered(ordered(rising[k])), rising[k]);
    const auto narrow = static_cast<float>(rising[k]);
    EXPECT_EQ(float_from_ordered(ordered(narrow)), narrow);
    EXPECT_EQ(ordered(rising[before]) < ordered(rising[k]), k > 0);
    EXPECT_LE(ordered(static_cast<float>(rising[before])), ordered(narrow));
  }
  EXPECT_EQ(ordered(-0.0), ordered(0.0));
  EXPECT_EQ(ordered(-0.0f), ordered(0.0f));
  const std::vector<int64_t> integers{INT64_MIN, -7, -1, 0, 1, int64_t{1} << 40, INT64_MAX};
  for (size_t k = 0; k < integers.size(); ++k) {
    EXPECT_EQ(int_from_ordered(ordered(integers[k])), integers[k]);
    EXPECT_EQ(ordered(integers[k == 0 ? 0 : k - 1]) < ordered(integers[k]), k > 0);
  }
}

TEST(HungarianParallel, ABidsWordRanksRoundAmountAndRow) {
  EXPECT_GT(bid_word(2, 0.5f, 9), bid_word(1, 100.0f, 0));
  EXPECT_GT(bid_word(1, 0.5f, 9), bid_word(1, 0.25f, 0));
  EXPECT_GT(bid_word(1, 0.5f, 3), bid_word(1, 0.5f, 4));
  EXPECT_GT(bid_word(1, 0.0f, (1 << kRowBits) - 1), uint64_t{0});
  EXPECT_GT(bid_word(kMostRounds, 0.0f, 5), bid_word(kMostRounds - 1, std::numeric_limits<float>::max(), 0));
}

TEST(HungarianParallel, FastMemoryChangesNothing) {
  const auto cost = families<float>(100, 100)[0].cost;
  const Answer<float> expected = solve(cost, 100, 100);
  const int64_t most = AssignmentProblem<float>::fast_bytes(100, 100);
  for (const int64_t bytes : {int64_t{0}, int64_t{3000}, most}) {
    AssignmentProblem<float> p{};
    p.cost = cost.data();
    p.rows = p.cols = 100;
    p.sign = 1;
    std::vector<double> memory(static_cast<size_t>(AssignmentProblem<float>::bytes(100, 100, 1)) / 8 + 2);
    std::vector<double> fast(static_cast<size_t>(bytes) / 8 + 2);
    p.lay_out(memory.data(), fast.data(), bytes);
    if (bytes == most) {
      for (const void* array :
           {static_cast<void*>(p.control), static_cast<void*>(p.price), static_cast<void*>(p.v),
            static_cast<void*>(p.list[1]), static_cast<void*>(p.distance), static_cast<void*>(p.open_v)})
        EXPECT_TRUE(array >= fast.data() && array < fast.data() + fast.size());
    }
    SerialTeam team;
    ASSERT_EQ(solve_parallel(team, p), Status::kOk);
    EXPECT_EQ(std::vector<int32_t>(p.col_of, p.col_of + 100), expected.columns);
  }
}

}  // namespace
}  // namespace diffaccel
