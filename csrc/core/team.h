// A team runs one algorithm together: one thread (here), a CUDA warp, block or grid (cuda/block_team.cuh), or host
// threads (tests/cpp/thread_team.h, where ThreadSanitizer finds a missing barrier).
//
// A team offers lane(), lanes() and barrier(). A one-level team also offers reductions over all lanes whose result does
// not depend on the lane count (best) or only through rounding (sum); a reduction is a barrier too: what any lane wrote
// before it is seen by every lane after it.
//
// A two-level team consists of warps() warps, whose lanes reduce without touching memory (warp(): least, sum), and of
// groups() groups, each a one-level team (group()). A warp's lane 0 speaks for it.
#pragma once

#include "hd.h"

namespace diffaccel {

// A candidate for an arg-min: the least cost wins, ties go to the greater rank.
struct Best {
  double cost;
  int64_t rank;
};

DIFFACCEL_INLINE bool better(const Best& a, const Best& b) {
  return a.cost < b.cost || (a.cost == b.cost && a.rank > b.rank);
}

// A warp of one lane.
struct SerialWarp {
  static DIFFACCEL_INLINE constexpr int lane() { return 0; }
  static DIFFACCEL_INLINE constexpr int lanes() { return 1; }
  template <class X>
  static DIFFACCEL_INLINE X least(X x) {
    return x;
  }
  static DIFFACCEL_INLINE int64_t sum(int64_t x) { return x; }
};

struct SerialTeam {
  static constexpr int lane() { return 0; }
  static constexpr int lanes() { return 1; }
  static void barrier() {}
  static Best best(Best mine) { return mine; }
  static double sum(double mine) { return mine; }

  static constexpr SerialWarp warp() { return {}; }
  static constexpr int warp_index() { return 0; }
  static constexpr int warps() { return 1; }
  SerialTeam& group() { return *this; }
  static constexpr int group_index() { return 0; }
  static constexpr int groups() { return 1; }
};

}  // namespace diffaccel
