// Whether an optimal assignment is the only one, beyond what rounding can blur. Host only.
//
// Every other assignment differs by cycles i -> i' -> ... -> i, where each row takes the column of the next. A step
// costs its slack: the reduced cost of that column to row i, less that of row i's own column. Slacks are not negative,
// so another optimum is a cycle of slack 0. In a rectangular problem one more node stands for the free columns: a row
// that takes one steps to it, and it steps to the rows whose columns cost nothing to leave free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "hd.h"
#include "row_scan.h"

namespace diffaccel {

class AssignmentSteps {
 public:
  // nodes: the rows, and one more for the free columns of a rectangular problem.
  explicit AssignmentSteps(int64_t nodes) : nodes_(nodes), capacity_(static_cast<size_t>(8 * nodes)) {
    steps_.reserve(capacity_);
  }

  // false: too many steps of little slack; such costs are tied.
  bool add(int32_t from, int32_t to, double slack) {
    if (steps_.size() == capacity_) return false;
    steps_.push_back({from, to, slack});
    return true;
  }

  // Whether every cycle of L steps has a slack above L * each. Only steps of slack up to nodes * each are needed.
  bool every_cycle_exceeds(double each) {
    int64_t longest = nodes_;
    while (true) {
      // Steps above the slack of the longest cycle left are on no cycle that matters.
      const double bound = static_cast<double>(longest) * each;
      std::erase_if(steps_, [bound](const Step& step) { return step.slack > bound; });
      const int64_t left = prune();
      if (left == 0) return true;
      if (2 * left > longest) return false;
      longest = left;
    }
  }

 private:
  struct Step {
    int32_t from, to;
    double slack;
  };

  // Removes the steps that are on no cycle and no path between two cycles; returns the number of nodes left.
  int64_t prune() {
    drop_unreached();
    for (Step& step : steps_) std::swap(step.from, step.to);
    drop_unreached();
    for (Step& step : steps_) std::swap(step.from, step.to);
    std::vector<bool> seen(static_cast<size_t>(nodes_));
    for (const Step& step : steps_) seen[static_cast<size_t>(step.from)] = seen[static_cast<size_t>(step.to)] = true;
    return std::count(seen.begin(), seen.end(), true);
  }

  // Removes nodes into which no step leads, and their steps, until every node left has one.
  void drop_unreached() {
    const auto at = [](int32_t node) { return static_cast<size_t>(node); };
    std::vector<int32_t> first(static_cast<size_t>(nodes_) + 1), into(static_cast<size_t>(nodes_));
    for (const Step& step : steps_) {
      ++first[at(step.from) + 1];
      ++into[at(step.to)];
    }
    for (size_t node = 1; node < first.size(); ++node) first[node] += first[node - 1];
    std::vector<int32_t> place(first.begin(), first.end() - 1), target(steps_.size());
    for (const Step& step : steps_) target[at(place[at(step.from)]++)] = step.to;
    std::vector<int32_t> dropped;
    dropped.reserve(into.size());
    for (size_t node = 0; node < into.size(); ++node)
      if (into[node] == 0) dropped.push_back(static_cast<int32_t>(node));
    for (size_t k = 0; k < dropped.size(); ++k) {
      const size_t node = at(dropped[k]);
      for (int32_t n = first[node]; n < first[node + 1]; ++n)
        if (--into[at(target[at(n)])] == 0) dropped.push_back(target[at(n)]);
    }
    std::erase_if(steps_, [&](const Step& step) { return into[at(step.from)] == 0; });
  }

  int64_t nodes_;
  size_t capacity_;
  std::vector<Step> steps_;
};

// An optimal assignment with its column prices, of a row-major cost [rows, cols], rows <= cols.
template <class T, int W>
class UniqueAssignment {
 public:
  // v [cols]: prices of an optimum, 0 at free columns where rows < cols; rounded_v [cols]: v in T; columns
  // [cols + kScanSlack]: memory.
  UniqueAssignment(const T* cost, int64_t rows, int64_t cols, const double* v, const T* rounded_v,
                   const int32_t* row_of, const int32_t* col_of, int32_t* columns)
      : cost_(cost),
        rows_(rows),
        cols_(cols),
        v_(v),
        rounded_v_(rounded_v),
        row_of_(row_of),
        col_of_(col_of),
        columns_(columns) {}

  // Whether the algorithm of hungarian.h, whatever it rounds, finds this assignment too.
  //
  // There row prices only rise and column prices only fall, so the last ones bound them and all path lengths by some M;
  // costs above 3 M play no part. A round changes a pair's slack by at most 7 roundings of a sum below 4 M; there are
  // at most `rows` rounds. That leaves less than rows 2^-47 M a pair, twice: for that assignment and for this one.
  DIFFACCEL_INLINE bool sure() const {
    double greatest_u = 0, greatest_v = 0;
    for (int64_t i = 0; i < rows_; ++i) greatest_u = std::max(greatest_u, std::abs(reduced(i, col_of_[i])));
    for (int64_t j = 0; j < cols_; ++j) greatest_v = std::max(greatest_v, std::abs(v_[j]));
    const double each = 0x1p-46 * static_cast<double>(rows_) * (greatest_u + 2 * greatest_v + price_freedom());
    const bool square = rows_ == cols_;
    const int64_t nodes = square ? rows_ : rows_ + 1;
    const double most = each * static_cast<double>(nodes);
    if (!(most < kInfinity)) return false;
    AssignmentSteps steps(nodes);
    const int32_t free_node = static_cast<int32_t>(rows_);
    for (int64_t i = 0; i < rows_; ++i) {
      const int32_t own = col_of_[i], node = static_cast<int32_t>(i);
      const double mine = reduced(i, own);
      // Columns that the rounding of the prices may hide are looked at too.
      const double margin = 8 * static_cast<double>(std::numeric_limits<T>::epsilon()) * (std::abs(mine) + greatest_v);
      const T bound = static_cast<T>(mine + 2 * most + margin);
      const int64_t found = RowScan<T, W>::columns_below(row(i), rounded_v_, bound, cols_, columns_);
      for (int64_t k = 0; k < found; ++k) {
        const int32_t j = columns_[k];
        const double step = reduced(i, j) - mine;
        if (j != own && step <= most && !steps.add(node, row_of_[j] < 0 ? free_node : row_of_[j], step)) return false;
      }
      if (!square && -v_[own] <= most && !steps.add(free_node, node, -v_[own])) return false;
    }
    return steps.every_cycle_exceeds(each);
  }

 private:
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  const T* row(int64_t i) const { return cost_ + i * cols_; }
  double reduced(int64_t i, int64_t j) const { return static_cast<double>(row(i)[j]) - v_[j]; }
  double slack(int64_t i, int64_t j) const { return reduced(i, j) - reduced(i, col_of_[i]); }

  // How far the prices of another optimum may be from these, once a column that is free until last has the price 0 in
  // both: the length of the longest of the shortest paths by slack from a row to a row, here at most by way of some
  // hubs. In a rectangular problem the free columns end the paths.
  double price_freedom() const {
    constexpr int64_t kHubs = 32;
    const bool square = rows_ == cols_;
    const int64_t hubs = std::min(kHubs, square ? rows_ / 8 : cols_ - rows_);
    int64_t row_of_hub[kHubs], column_of_hub[kHubs], free_column = -1;
    for (int64_t h = 0; h < hubs; ++h) {
      row_of_hub[h] = h * rows_ / hubs;
      while (!square && row_of_[++free_column] >= 0) continue;
      column_of_hub[h] = square ? col_of_[row_of_hub[h]] : free_column;
    }
    double to_hub = 0, between = 0, from_hub = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      double least = kInfinity;
      for (int64_t h = 0; h < hubs; ++h) least = std::min(least, slack(i, column_of_hub[h]));
      to_hub = std::max(to_hub, least);
    }
    if (!square) return to_hub;
    for (int64_t j = 0; j < cols_; ++j) {
      double least = kInfinity;
      for (int64_t h = 0; h < hubs; ++h) least = std::min(least, slack(row_of_hub[h], j));
      from_hub = std::max(from_hub, least);
    }
    double path[kHubs][kHubs];
    for (int64_t g = 0; g < hubs; ++g)
      for (int64_t h = 0; h < hubs; ++h) path[g][h] = slack(row_of_hub[g], column_of_hub[h]);
    for (int64_t k = 0; k < hubs; ++k)
      for (int64_t g = 0; g < hubs; ++g)
        for (int64_t h = 0; h < hubs; ++h) path[g][h] = std::min(path[g][h], path[g][k] + path[k][h]);
    for (int64_t g = 0; g < hubs; ++g)
      for (int64_t h = 0; h < hubs; ++h) between = std::max(between, path[g][h]);
    return to_hub + between + from_hub;
  }

  const T* cost_;
  int64_t rows_, cols_;
  const double* v_;
  const T* rounded_v_;
  const int32_t *row_of_, *col_of_;
  int32_t* columns_;
};

}  // namespace diffaccel
