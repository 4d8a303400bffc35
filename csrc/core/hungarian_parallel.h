// Exact linear sum assignment by a two-level team (team.h): the CUDA solver.
//
//  1. survey: what the cost holds; column sums and minima.
//  2. hungarian_auction.h: all unassigned rows bid at once, until about one in a hundred is left.
//  3. hungarian_finish.h, float64: exact row reduction, shortest augmenting paths, and a certificate that no assignment
//     is cheaper. Rows that fail it (rounding) are freed and 3 repeats.
//
// Costs with ties, heavy tails, forbidden pairs or columns to spare skip 2, and an auction far from its end when its
// budget is spent is forgotten. Where the certificate cannot be had, the
// shortest augmenting paths of hungarian.h decide. Every loop is bounded. The answer does not depend on the number of
// lanes, warps or groups; among optima of equal total it may on settings.trees.
//
// Counts of a host run, B = 1024 / 4096, costs -<x, n> of images, one tree at a time: 221 / 419 rounds of 21,600 /
// 102,000 bids with 6,200 / 35,000 row scans, then 38 / 64 rounds of row reduction and 237 / 2,987 dependent row scans.
#pragma once

#include "hungarian_finish.h"

namespace diffaccel {

// Solves p; the answer is in p.col_of and p.row_of. The status is the same in all lanes. Ends with a barrier.
template <class Team, class T>
DIFFACCEL_HD Status solve_parallel(Team& team, const AssignmentProblem<T>& p) {
  using P = AssignmentProblem<T>;
  using U = typename P::U;
  const int64_t lane = team.lane(), lanes = team.lanes();
  auto& control = *p.control;
  if (lane == 0) {
    control.largest = 0;
    control.flags = 0;
    control.typical = 0;
    control.statistics = {};
  }
  team.barrier();
  survey(team, p);
  const uint32_t holds = control.flags;
  const double largest = bits_as<double>(control.largest);
  if ((holds & P::kHoldsInvalid) != 0) return Status::kInvalid;

  // Sums of costs this large overflow; a bid's word has no room for this many rows.
  bool broken = !(largest * static_cast<double>(p.cols) < 1e305) || p.rows >= int64_t{1} << kRowBits;
  if (!broken) {
    const bool could = p.square() && (holds & P::kHoldsForbidden) == 0 && p.rows >= p.settings.auction_from &&
                       (sizeof(U) == 8 || largest < 1e37);
    for (int64_t j = lane; j < p.cols; j += lanes) {
      double least = INFINITY;
      for (int chunk = 0; chunk < kChunks && p.square(); ++chunk) {
        const double other = p.chunk_min[chunk * p.cols + j];
        least = other < least ? other : least;
      }
      p.v[j] = least < INFINITY ? least : 0;
    }
    team.barrier();
    const bool pays = could && auction_pays(team, p) && auction(team, p);
    if (pays) {
      for (int64_t j = lane; j < p.cols; j += lanes) p.v[j] = static_cast<double>(p.price[j]);
    }
    for (int64_t j = lane; j < p.cols; j += lanes) p.row_of[j] = -1;
    for (int64_t i = lane; i < p.rows; i += lanes) {
      p.col_of[i] = -1;
      p.list[0][i] = static_cast<int32_t>(i);
    }
    if (lane == 0) control.count[0] = static_cast<int32_t>(p.rows);
    team.barrier();
    broken = true;
    for (int repeat = 0; broken && repeat < p.settings.repeats; ++repeat) {
      int which = 0;
      const int32_t left = reduce_rows(team, p, pays, pays && repeat == 0, which);
      if (lane == 0) {
        ++control.statistics.repeats;
        control.statistics.free_after += left;
      }
      if (left > 0) {
        sort_rows(team, p, left, which);
        if (!augment_rows(team, p, p.list[1 - which], left)) return Status::kInfeasible;
      }
      if (!certified(team, p)) continue;
      if ((control.flags & P::kBroken) != 0) break;
      broken = false;
    }
  }
  if (!broken) return Status::kOk;

  team.barrier();
  if (team.group_index() == 0) {
    auto& group = team.group();
    const AssignmentWorkspace work(p.plain, p.rows, p.cols);
    const CostView<T> view{p.cost, p.rows, p.cols, p.cols, 1, p.sign};
    const Status found = solve_assignment(group, view, work);
    group.barrier();
    for (int64_t i = group.lane(); i < p.rows; i += group.lanes()) p.col_of[i] = work.col_of[i];
    for (int64_t j = group.lane(); j < p.cols; j += group.lanes()) p.row_of[j] = work.row_of[j];
    if (group.lane() == 0) {
      control.statistics.plain = 1;
      control.flags = static_cast<uint32_t>(found);
    }
  }
  team.barrier();
  const auto status = static_cast<Status>(control.flags);
  team.barrier();
  return status;
}

}  // namespace diffaccel
