// The auction (D. P. Bertsekas, Annals of Operations Research 14, 1988) over a two-level team: all unassigned rows bid
// at once, each by a warp, in the cost's own precision. It ends with few rows unassigned and prices near the best
// ones; what is left is settled exactly by hungarian_finish.h.
//
// A row bids from a cache: the kPerBin cheapest columns of each bin at the prices of some moment. Prices only fall, so
// every other column stays at or above the reduced cost that was the least left out then.
#pragma once

#include "hungarian_problem.h"

namespace diffaccel {

// The least reduced cost, its column, and the second least or a lower bound of it.
template <class X>
struct LeastTwo {
  X first, second;
  int32_t column;  // -1: every cost is infinite
};

// Column sums and minima by parts, what the cost holds, and its greatest magnitude. Ends with a barrier.
template <class Team, class T>
DIFFACCEL_HD void survey(Team& team, const AssignmentProblem<T>& p) {
  using P = AssignmentProblem<T>;
  using U = typename P::U;
  const auto warp = team.warp();
  const int64_t strips = (p.cols + kBins - 1) / kBins;
  uint32_t flags = 0;
  double largest = 0;
  for (int64_t item = team.warp_index(); item < strips * kChunks; item += team.warps()) {
    const int64_t chunk = item / strips;
    const int64_t begin = p.rows * chunk / kChunks, end = p.rows * (chunk + 1) / kChunks;
    for (int bin = warp.lane(); bin < kBins; bin += warp.lanes()) {
      const int64_t j = item % strips * kBins + bin;
      if (j >= p.cols) continue;
      double sum = 0, least = INFINITY;
      constexpr int kAhead = 8;  // loads under way at once
      for (int64_t i = begin; i < end; i += kAhead) {
        U ahead[kAhead];
        DIFFACCEL_UNROLL
        for (int a = 0; a < kAhead; ++a) ahead[a] = p.at(i + a < end ? i + a : begin, j);
        DIFFACCEL_UNROLL
        for (int a = 0; a < kAhead; ++a) {
          const double c = static_cast<double>(ahead[a]);
          if (!(c > -INFINITY)) flags |= P::kHoldsInvalid;
          if (c == INFINITY) flags |= P::kHoldsForbidden;
          if (i + a >= end || !(c < INFINITY)) continue;
          sum += c;
          least = c < least ? c : least;
          largest = fabs(c) > largest ? fabs(c) : largest;
        }
      }
      if (!p.square()) continue;
      p.chunk_sum[chunk * p.cols + j] = sum;
      p.chunk_min[chunk * p.cols + j] = least;
    }
  }
  // least() of what is wanted greatest, negated; a NaN sets its flag and leaves `largest`.
  const auto none = [&](uint32_t flag) { return warp.least((flags & flag) != 0 ? 0u : 1u) == 0u ? flag : 0u; };
  flags = none(P::kHoldsInvalid) | none(P::kHoldsForbidden);
  largest = -warp.least(-largest);
  if (warp.lane() == 0) {
    if (flags != 0) atomic_or(&p.control->flags, flags);
    atomic_max(&p.control->largest, bits_as<uint64_t>(largest));
  }
  team.barrier();
}

// Fills row i's cache at today's prices; returns the bound.
template <class Warp, class T>
DIFFACCEL_INLINE typename AssignmentProblem<T>::U fill_cache(const Warp& warp, const AssignmentProblem<T>& p,
                                                             int64_t i) {
  using U = typename AssignmentProblem<T>::U;
  const U infinity = INFINITY;
  U bound = infinity;
  const int64_t strips = (p.cols + kBins - 1) / kBins;
  for (int bin = warp.lane(); bin < kBins; bin += warp.lanes()) {
    U first = infinity, second = infinity, third = infinity;
    int32_t first_column = 0, second_column = 0;
    const auto consider = [&](U x, int32_t j) {
      third = x < second ? second : (x < third ? x : third);
      second_column = x < first ? first_column : (x < second ? j : second_column);
      second = x < first ? first : (x < second ? x : second);
      first_column = x < first ? j : first_column;
      first = x < first ? x : first;
    };
    // From the row's own place onwards and around: the first of equal columns is kept.
    const int64_t start = i / kBins;
    constexpr int kAhead = 8;
    for (int64_t n = 0; n < strips; n += kAhead) {
      U reduced[kAhead];
      int32_t column[kAhead];
      DIFFACCEL_UNROLL
      for (int a = 0; a < kAhead; ++a) {
        int64_t strip = start + n + a;
        strip = strip >= strips ? strip - strips : strip;
        const int64_t j = strip * kBins + bin;
        column[a] = static_cast<int32_t>(j);
        reduced[a] = n + a < strips && j < p.cols ? p.at(i, j) - p.price[j] : infinity;
      }
      DIFFACCEL_UNROLL
      for (int a = 0; a < kAhead; ++a) consider(reduced[a], column[a]);
    }
    const int64_t slot = i * kBins * kPerBin + bin;
    p.cache_cost[slot] = first < infinity ? p.at(i, first_column) : infinity;
    p.cache_column[slot] = first_column;
    p.cache_cost[slot + kBins] = second < infinity ? p.at(i, second_column) : infinity;
    p.cache_column[slot + kBins] = second_column;
    bound = third < bound ? third : bound;
  }
  bound = warp.least(bound);
  if (warp.lane() == 0) p.cache_bound[i] = bound;
  return bound;
}

// The least two reduced costs in row i's cache; ties go to the column that is nearest onwards.
template <class Warp, class T>
DIFFACCEL_INLINE LeastTwo<typename AssignmentProblem<T>::U> least_in_cache(const Warp& warp,
                                                                           const AssignmentProblem<T>& p, int64_t i) {
  using U = typename AssignmentProblem<T>::U;
  const U infinity = INFINITY;
  U first = infinity, second = infinity;
  uint32_t near = ~0u;
  for (int bin = warp.lane(); bin < kBins; bin += warp.lanes()) {
    DIFFACCEL_UNROLL
    for (int k = 0; k < kPerBin; ++k) {
      const int64_t slot = (i * kPerBin + k) * kBins + bin;
      const int32_t j = p.cache_column[slot];
      const U x = p.cache_cost[slot] - p.price[j];
      const uint32_t away = turn(i, j, p.cols);
      const bool better = x < first || (x == first && away < near);
      second = better ? first : (x < second ? x : second);
      near = better ? away : near;
      first = better ? x : first;
    }
  }
  const U least = warp.least(first);
  const uint32_t nearest = warp.least(first == least ? near : ~0u);
  second = warp.least(first == least && near == nearest ? second : first);
  const int64_t j = i + nearest;
  return {least, second, least < infinity ? static_cast<int32_t>(j >= p.cols ? j - p.cols : j) : -1};
}

// Smaller steps would be lost in the rounding of prices.
template <class T>
DIFFACCEL_INLINE typename AssignmentProblem<T>::U finest_epsilon(const AssignmentProblem<T>& p) {
  using U = typename AssignmentProblem<T>::U;
  return static_cast<U>((sizeof(U) == 4 ? 0x1p-20 : 0x1p-49) * bits_as<double>(p.control->largest));
}

// Whether the auction pays: it does not where most sampled rows attain their least cost twice or have a mean far beyond
// their cheapest costs. If so, p.price holds the column means and control->typical the gap that epsilon is measured by.
// Begins after a barrier and ends with one; the answer is the same in all lanes.
template <class Team, class T>
DIFFACCEL_HD bool auction_pays(Team& team, const AssignmentProblem<T>& p) {
  using U = typename AssignmentProblem<T>::U;
  const auto warp = team.warp();
  auto& control = *p.control;
  const auto sample = [&](int64_t s) { return s * (p.rows - 1) / (kSamples - 1); };
  for (int64_t j = team.lane(); j < p.cols; j += team.lanes()) p.price[j] = 0;
  team.barrier();
  for (int64_t s = team.warp_index(); s < kSamples; s += team.warps()) {
    const int64_t i = sample(s);
    const U bound = fill_cache(warp, p, i);
    const LeastTwo<U> two = least_in_cache(warp, p, i);
    const U width = bound - two.first;
    constexpr int64_t kFar = 1 << 20;
    int64_t beyond = 0;  // costs beyond the least, in widths; whole numbers add up alike in any order
    for (int bin = warp.lane(); bin < kBins; bin += warp.lanes())
      for (int64_t j = bin; j < p.cols; j += kBins) {
        const U x = (p.at(i, j) - two.first) / width;
        beyond += x < static_cast<U>(kFar) ? static_cast<int64_t>(x) : kFar;  // NaN: far
      }
    beyond = warp.sum(beyond) / p.cols;
    if (warp.lane() == 0) control.poor[s] = two.second == two.first || 2 * beyond > p.cols ? 1 : 0;
  }
  team.barrier();
  int poor = 0;
  for (int64_t s = 0; s < kSamples; ++s) poor += control.poor[s];
  if (2 * poor > kSamples) return false;

  for (int64_t j = team.lane(); j < p.cols; j += team.lanes()) {
    double sum = 0;
    for (int chunk = 0; chunk < kChunks; ++chunk) sum += p.chunk_sum[chunk * p.cols + j];
    p.price[j] = static_cast<U>(sum / static_cast<double>(p.rows));
  }
  team.barrier();
  for (int64_t s = team.warp_index(); s < kSamples; s += team.warps()) {
    fill_cache(warp, p, sample(s));
    const LeastTwo<U> two = least_in_cache(warp, p, sample(s));
    if (warp.lane() == 0) control.gap[s] = two.second - two.first;
  }
  team.barrier();
  for (int64_t s = team.lane(); s < kSamples; s += team.lanes()) {
    int below = 0;
    for (int64_t t = 0; t < kSamples; ++t)
      below += control.gap[t] < control.gap[s] || (control.gap[t] == control.gap[s] && t < s) ? 1 : 0;
    if (below == kSamples / 2) control.typical = control.gap[s];
  }
  team.barrier();
  return control.typical > 8 * finest_epsilon(p);
}

// Rows bid until few are left, at smaller and smaller epsilon. Whether that came to an end within the budget, or
// nearly: p.price then holds prices worth starting from. Begins after a barrier and ends with one; the answer is the
// same in all lanes.
template <class Team, class T>
DIFFACCEL_HD bool auction(Team& team, const AssignmentProblem<T>& p) {
  using U = typename AssignmentProblem<T>::U;
  const auto warp = team.warp();
  const int64_t lane = team.lane(), lanes = team.lanes();
  auto& control = *p.control;
  const U finest = finest_epsilon(p);
  U epsilon = static_cast<U>(p.settings.first_epsilon) * control.typical;
  U last = static_cast<U>(p.settings.last_epsilon) * control.typical;
  last = last > finest ? last : finest;
  epsilon = epsilon > last ? epsilon : last;
  const auto stop = static_cast<int32_t>(p.settings.stop * sqrt(static_cast<double>(p.rows)));
  const int32_t budget = p.settings.rounds < kMostRounds ? p.settings.rounds : kMostRounds;

  for (int64_t i = lane; i < p.rows; i += lanes) p.cache_bound[i] = -INFINITY;
  for (int64_t j = lane; j < p.cols; j += lanes) p.word[j] = 0;
  int32_t round = 0, left = 0;
  for (bool first_phase = true;; first_phase = false) {
    for (int64_t j = lane; j < p.cols; j += lanes) p.row_of[j] = -1;
    for (int64_t i = lane; i < p.rows; i += lanes) p.list[0][i] = static_cast<int32_t>(i);
    if (lane == 0) {
      control.count[0] = static_cast<int32_t>(p.rows);
      control.count[1] = 0;
    }
    team.barrier();
    for (int phase_round = 0;; ++phase_round) {
      const int32_t count = control.count[phase_round % 3];
      left = count;
      if (count <= stop || round == budget) break;
      ++round;
      // A long first phase has to move prices far: larger steps.
      if (first_phase && phase_round > 0 && phase_round % p.settings.patience == 0) epsilon *= 4;
      const int32_t* bidders = p.list[phase_round & 1];
      int32_t* next = p.list[(phase_round + 1) & 1];
      if (lane == 0) {
        control.count[(phase_round + 2) % 3] = 0;
        control.statistics.bids += count;
        ++control.statistics.rounds;
      }
      for (int64_t n = team.warp_index(); n < count; n += team.warps()) {
        const int32_t i = bidders[n];
        U bound = p.cache_bound[i];
        LeastTwo<U> two{0, 0, -1};
        bool known = bound > -INFINITY;
        if (known) {
          two = least_in_cache(warp, p, i);
          known = two.first < bound;
        }
        if (!known) {
          bound = fill_cache(warp, p, i);
          two = least_in_cache(warp, p, i);
          if (warp.lane() == 0) atomic_add(&control.statistics.fills, 1);
        }
        if (warp.lane() != 0) continue;
        const U second = two.second < bound ? two.second : bound;
        const U amount = (second > two.first && second < INFINITY ? second - two.first : 0) + epsilon;
        p.bid_column[i] = two.column;
        p.bid_amount[i] = amount;
        if (two.column >= 0) atomic_max(&p.word[two.column], bid_word(round, static_cast<float>(amount), i));
      }
      team.barrier();
      int32_t* unassigned = &control.count[(phase_round + 1) % 3];
      for (int64_t n = lane; n < count; n += lanes) {
        const int32_t i = bidders[n], j = p.bid_column[i];
        if (j < 0) continue;  // no column at all: the exact finish says so
        int32_t loser = i;
        if (p.word[j] == bid_word(round, static_cast<float>(p.bid_amount[i]), i)) {
          loser = p.row_of[j];
          p.row_of[j] = i;
          p.price[j] -= p.bid_amount[i];
        }
        if (loser >= 0) next[atomic_add(unassigned, 1)] = loser;
      }
      team.barrier();
    }
    if (!(epsilon > last) || round == budget) break;
    epsilon /= static_cast<U>(p.settings.divide);
    epsilon = epsilon > last ? epsilon : last;
    team.barrier();  // the counters have been read
  }
  team.barrier();
  return left <= stop || left <= p.rows / 16;
}

}  // namespace diffaccel
