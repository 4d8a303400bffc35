// The exact end of an assignment, in float64 over a two-level team: row reduction, shortest augmenting paths (R.
// Jonker, A. Volgenant, Computing 38, 1987), and a certificate.
//
// Several trees of shortest paths may grow at once from the same prices; those that share no column with an earlier one
// are all taken (E. Balas, D. Miller, J. Pekny, P. Toth, Journal of the ACM 38, 1991).
#pragma once

#include "hungarian_auction.h"

namespace diffaccel {

// The least two of row i's exact reduced costs. Among equal least ones a free column is preferred, then the nearest
// onwards. From the cache, `second` may be a lower bound.
template <class Warp, class T>
DIFFACCEL_INLINE LeastTwo<double> exact_least_two(const Warp& warp, const AssignmentProblem<T>& p, int64_t i,
                                                  bool cached) {
  using U = typename AssignmentProblem<T>::U;
  double first = INFINITY, second = INFINITY;
  uint32_t key = ~0u;
  const auto consider = [&](double x, int64_t j) {
    if (!(x <= first)) {
      second = x < second ? x : second;
      return;
    }
    const uint32_t mine = turn(i, j, p.cols) | (p.row_of[j] < 0 ? 0u : 0x80000000u);
    const bool better = x < first || mine < key;
    second = first;  // x <= first: the loser of the two is `first` itself, or equals it
    key = better ? mine : key;
    first = x;
  };
  const auto reduce = [&]() -> LeastTwo<double> {
    const double least = warp.least(first);
    const uint32_t best = warp.least(first == least ? key : ~0u);
    const double other = warp.least(first == least && key == best ? second : first);
    const int64_t j = i + (best & 0x7fffffffu);
    return {least, other, least < INFINITY ? static_cast<int32_t>(j >= p.cols ? j - p.cols : j) : -1};
  };
  if (cached) {
    // The bound was rounded once.
    const double raw = static_cast<double>(p.cache_bound[i]);
    const double bound = raw - (sizeof(U) == 4 ? 0x1p-22 : 0x1p-51) * fabs(raw);
    for (int bin = warp.lane(); bin < kBins; bin += warp.lanes())
      for (int k = 0; k < kPerBin; ++k) {
        const int64_t slot = (i * kPerBin + k) * kBins + bin;
        const double c = static_cast<double>(p.cache_cost[slot]);
        if (c < INFINITY) consider(c - p.v[p.cache_column[slot]], p.cache_column[slot]);
      }
    LeastTwo<double> two = reduce();
    if (two.first < bound) {
      two.second = two.second < bound ? two.second : bound;
      return two;
    }
    first = second = INFINITY;
    key = ~0u;
  }
  constexpr int kAhead = 8;
  const int64_t stride = warp.lanes();
  for (int64_t begin = warp.lane(); begin < p.cols; begin += kAhead * stride) {
    U c[kAhead];
    DIFFACCEL_UNROLL
    for (int a = 0; a < kAhead; ++a) c[a] = begin + a * stride < p.cols ? p.at(i, begin + a * stride) : INFINITY;
    DIFFACCEL_UNROLL
    for (int a = 0; a < kAhead; ++a) {
      const int64_t j = begin + a * stride;
      if (c[a] < INFINITY) consider(static_cast<double>(c[a]) - p.v[j], j);
    }
  }
  return reduce();
}

// Rows without a column take their cheapest one and lower its price to their second cheapest, all at once, until that
// gains nothing more. The rows: list[0], control->count[0] of them. cached: the rows' caches hold; keep_prices: the
// first round moves no prices. Begins after a barrier and ends with one; returns how many rows are left, which lie in
// list[which] in any order.
template <class Team, class T>
DIFFACCEL_HD int32_t reduce_rows(Team& team, const AssignmentProblem<T>& p, bool cached, bool keep_prices, int& which) {
  constexpr int32_t kPatience = 8;  // rounds without fewer rows
  const auto warp = team.warp();
  const int64_t lane = team.lane(), lanes = team.lanes();
  auto& control = *p.control;
  for (int64_t j = lane; j < p.cols; j += lanes) p.word[j] = 0;
  int32_t round = 0, least = INT32_MAX, idle = 0;
  which = 0;
  if (lane == 0) control.count[1] = 0;
  team.barrier();
  while (true) {
    const int32_t count = control.count[round % 3];
    idle = count < least ? 0 : idle + 1;
    least = count < least ? count : least;
    if (count == 0 || idle > kPatience || round >= p.settings.reductions || round + 1 > kMostRounds) break;
    const int32_t* bidders = p.list[which];
    int32_t* next = p.list[1 - which];
    if (lane == 0) {
      control.count[(round + 2) % 3] = 0;
      ++control.statistics.reductions;
    }
    const bool keep = keep_prices && round == 0;
    for (int64_t n = team.warp_index(); n < count; n += team.warps()) {
      const int32_t i = bidders[n];
      const LeastTwo<double> two = exact_least_two(warp, p, i, cached);
      if (warp.lane() != 0) continue;
      const double amount = !keep && two.second < INFINITY ? two.second - two.first : 0;
      // A row that would take a held column without gain waits: it would only push the other row out.
      const bool bids = two.column >= 0 && (amount > 0 || p.row_of[two.column] < 0);
      p.bid_column[i] = bids ? two.column : -1;
      p.exact_amount[i] = amount;
      if (bids) atomic_max(&p.word[two.column], bid_word(round + 1, static_cast<float>(amount), i));
    }
    team.barrier();
    int32_t* left = &control.count[(round + 1) % 3];
    for (int64_t n = lane; n < count; n += lanes) {
      const int32_t i = bidders[n], j = p.bid_column[i];
      int32_t loser = i;
      const double amount = p.exact_amount[i];
      if (j >= 0 && p.word[j] == bid_word(round + 1, static_cast<float>(amount), i)) {
        loser = p.row_of[j];
        p.row_of[j] = i;
        p.col_of[i] = j;
        if (loser >= 0) p.col_of[loser] = -1;
        p.v[j] -= amount;
      }
      if (loser >= 0) next[atomic_add(left, 1)] = loser;
    }
    team.barrier();
    ++round;
    which = 1 - which;
  }
  const int32_t left = control.count[round % 3];
  team.barrier();
  return left;
}

// The rows of list[which] in order, into list[1 - which]. Ends with a barrier.
template <class Team, class T>
DIFFACCEL_HD void sort_rows(Team& team, const AssignmentProblem<T>& p, int32_t count, int which) {
  const int32_t* rows = p.list[which];
  for (int64_t n = team.lane(); n < count; n += team.lanes()) {
    const int32_t mine = rows[n];
    int64_t before = 0;
    for (int64_t m = 0; m < count; ++m) before += rows[m] < mine ? 1 : 0;
    p.list[1 - which][before] = mine;
  }
  team.barrier();
}

// Grows the tree of shortest paths from a free row until it reaches a free column; returns whether it did. All lanes of
// the group take part; the tree lies in slot t.
template <class Group, class T>
DIFFACCEL_HD bool grow_tree(Group& group, const AssignmentProblem<T>& p, int64_t t, int32_t start) {
  using U = typename AssignmentProblem<T>::U;
  const int64_t lane = group.lane(), lanes = group.lanes(), cols = p.cols;
  const int32_t* row_of = p.row_of;
  double* distance = p.distance + t * p.distance_stride;
  double* open_v = p.open_v + t * p.open_stride;
  int32_t *from = p.from + t * cols, *closed = p.closed + t * cols;
  double* closed_at = p.closed_at + t * cols;
  for (int64_t j = lane; j < cols; j += lanes) {
    distance[j] = INFINITY;
    open_v[j] = p.v[j];
  }
  int32_t i = start;
  double reached = -INFINITY, offset = 0;
  for (int64_t count = 0; count < cols; ++count) {
    Best mine{INFINITY, INT64_MIN};
    constexpr int kAhead = 8;
    for (int64_t begin = lane; begin < cols; begin += kAhead * lanes) {
      U c[kAhead];  // all loads are under way before the first is used
      DIFFACCEL_UNROLL
      for (int a = 0; a < kAhead; ++a) c[a] = begin + a * lanes < cols ? p.at(i, begin + a * lanes) : INFINITY;
      DIFFACCEL_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        const int64_t j = begin + a * lanes;
        if (j >= cols) break;
        const double length = (static_cast<double>(c[a]) - open_v[j]) + offset;
        double least = distance[j];
        if (length < least) {
          distance[j] = least = length;
          from[j] = i;
        }
        if (!(least <= mine.cost) || !(least < INFINITY)) continue;
        // Rank: free columns first, then the nearest onwards.
        const Best candidate{least, (row_of[j] < 0 ? cols : 0) + cols - 1 - static_cast<int64_t>(turn(i, j, cols))};
        if (better(candidate, mine)) mine = candidate;
      }
    }
    const Best best = group.best(mine);
    if (!(best.cost < INFINITY)) return false;
    const int64_t away = cols - 1 - (best.rank >= cols ? best.rank - cols : best.rank);
    const int64_t j = i + away >= cols ? i + away - cols : i + away;
    reached = best.cost > reached ? best.cost : reached;
    const int32_t owner = row_of[j];
    if (lane == 0) {
      closed[count] = static_cast<int32_t>(j);
      closed_at[count] = reached;
      if (owner < 0) {
        p.control->tree[t].reached = reached;
        p.control->tree[t].sink = static_cast<int32_t>(j);
        p.control->tree[t].closed = static_cast<int32_t>(count) + 1;
        atomic_add(&p.control->statistics.steps, static_cast<int32_t>(count) + 1);
      }
    }
    if (owner < 0) return true;
    if (j % lanes == lane) {
      open_v[j] = -INFINITY;
      distance[j] = INFINITY;
    }
    i = owner;
    offset = reached - (static_cast<double>(p.at(i, j)) - p.v[j]);
  }
  return false;
}

// Prices and assignment along tree t's path. Begins after a barrier.
template <class Group, class T>
DIFFACCEL_HD void take_tree(Group& group, const AssignmentProblem<T>& p, int64_t t, int32_t start) {
  const auto& tree = p.control->tree[t];
  const int32_t *from = p.from + t * p.cols, *closed = p.closed + t * p.cols;
  const double* closed_at = p.closed_at + t * p.cols;
  for (int64_t n = group.lane(); n < tree.closed; n += group.lanes()) p.v[closed[n]] -= tree.reached - closed_at[n];
  if (group.lane() != 0) return;
  int32_t j = tree.sink;
  for (int64_t step = 0; step < p.cols; ++step) {
    const int32_t row = from[j], next = p.col_of[row];
    p.row_of[j] = row;
    p.col_of[row] = j;
    if (row == start) break;
    j = next;
  }
}

// Gives every row of `rows` [count] a column by shortest augmenting paths. Up to settings.trees grow at once from the
// same prices; a tree is taken where it shares no column with an earlier one, the others grow again. Begins after a
// barrier and ends with one; false: some row reaches no column.
template <class Team, class T>
DIFFACCEL_HD bool augment_rows(Team& team, const AssignmentProblem<T>& p, const int32_t* rows, int32_t count) {
  auto& group = team.group();
  auto& control = *p.control;
  const int32_t trees = p.settings.trees;
  const auto claim = [&](int32_t round, int64_t t) {
    return static_cast<uint64_t>(round + 1) << 32 | static_cast<uint64_t>(kMostTrees - t);
  };
  if (trees > 1)
    for (int64_t j = team.lane(); j < p.cols; j += team.lanes()) p.word[j] = 0;
  if (team.lane() == 0) control.accepted[0] = control.accepted[1] = 0;
  for (int64_t t = team.group_index(); t < trees; t += team.groups())
    if (group.lane() == 0) control.tree[t].start = t < count ? rows[t] : -1;
  team.barrier();
  int32_t next = trees, done = 0;
  for (int32_t round = 0; done < count; ++round) {
    for (int64_t t = team.group_index(); t < trees; t += team.groups()) {
      const int32_t start = control.tree[t].start;
      if (start < 0) continue;
      const bool found = grow_tree(group, p, t, start);
      group.barrier();
      if (!found) {
        if (group.lane() == 0) atomic_or(&control.flags, AssignmentProblem<T>::kNoPath);
        continue;
      }
      for (int64_t n = group.lane(); trees > 1 && n < control.tree[t].closed; n += group.lanes())
        atomic_max(&p.word[p.closed[t * p.cols + n]], claim(round, t));
    }
    if (team.lane() == 0) control.accepted[(round + 1) % 3] = 0;
    team.barrier();
    if ((control.flags & AssignmentProblem<T>::kNoPath) != 0) return false;
    for (int64_t t = team.group_index(); t < trees; t += team.groups()) {
      if (control.tree[t].start < 0) continue;
      double alone = 1;
      for (int64_t n = group.lane(); trees > 1 && n < control.tree[t].closed; n += group.lanes())
        if (p.word[p.closed[t * p.cols + n]] != claim(round, t)) alone = 0;
      if (trees > 1 && group.best({alone, 0}).cost == 0) continue;
      take_tree(group, p, t, control.tree[t].start);
      if (group.lane() == 0) atomic_or(&control.accepted[round % 3], 1u << t);
    }
    team.barrier();
    // An accepted tree's slot goes on with the next row.
    const uint32_t accepted = control.accepted[round % 3];
    int32_t taken = 0;
    for (int64_t t = 0; t < trees; ++t) {
      if ((accepted >> t & 1u) == 0) continue;
      if (t % team.groups() == team.group_index() && group.lane() == 0)
        control.tree[t].start = next + taken < count ? rows[next + taken] : -1;
      ++taken;
    }
    group.barrier();
    next += taken;
    done += taken;
    if (team.lane() == 0) {
      ++control.statistics.tree_rounds;
      control.statistics.trees += taken;
    }
  }
  return true;
}

// Whether every row holds a column of least reduced cost, up to the rounding of the prices and costs that are compared:
// then no assignment is cheaper. The rows that do not lose their columns and lie in list[0], count[0] of them. Begins
// after a barrier and ends with one.
template <class Team, class T>
DIFFACCEL_HD bool certified(Team& team, const AssignmentProblem<T>& p) {
  using U = typename AssignmentProblem<T>::U;
  const auto warp = team.warp();
  auto& control = *p.control;
  const auto rounding = [](double cost, double price) { return 0x1p-51 * (fabs(cost) + fabs(price)); };
  if (team.lane() == 0) control.count[0] = 0;
  team.barrier();
  for (int64_t i = team.warp_index(); i < p.rows; i += team.warps()) {
    constexpr int kAhead = 8;
    double least = INFINITY;
    const int64_t stride = warp.lanes();
    for (int64_t begin = warp.lane(); begin < p.cols; begin += kAhead * stride) {
      U c[kAhead];
      DIFFACCEL_UNROLL
      for (int a = 0; a < kAhead; ++a) c[a] = begin + a * stride < p.cols ? p.at(i, begin + a * stride) : INFINITY;
      DIFFACCEL_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        if (!(c[a] < INFINITY)) continue;
        const double price = p.v[begin + a * stride], mine = static_cast<double>(c[a]);
        const double reduced = mine - price + rounding(mine, price);
        least = reduced < least ? reduced : least;
      }
    }
    least = warp.least(least);
    if (warp.lane() != 0) continue;
    const int32_t j = p.col_of[i];
    const double held = static_cast<double>(p.at(i, j)), price = p.v[j];
    if (held - price - least <= rounding(held, price)) continue;
    p.list[0][atomic_add(&control.count[0], 1)] = static_cast<int32_t>(i);
    p.row_of[j] = -1;
    p.col_of[i] = -1;
  }
  team.barrier();
  const bool complete = control.count[0] == 0;
  // With columns to spare, the free ones must be those of the greatest price.
  if (complete && !p.square())
    for (int64_t j = team.lane(); j < p.cols; j += team.lanes())
      if (p.row_of[j] < 0 && p.v[j] < 0) atomic_or(&control.flags, AssignmentProblem<T>::kBroken);
  team.barrier();
  return complete;
}

}  // namespace diffaccel
