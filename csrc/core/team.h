// A team runs one algorithm together: one thread (here), a CUDA block (cuda/block_team.cuh), or host threads
// (tests/cpp/thread_team.h, where ThreadSanitizer finds a missing barrier).
//
// A team offers lane(), lanes(), barrier(), and all-lanes reductions whose result does not depend on the lane count
// (best) or only through rounding (sum). Every reduction begins and ends with a barrier.
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

struct SerialTeam {
  static constexpr int lane() { return 0; }
  static constexpr int lanes() { return 1; }
  static void barrier() {}
  static Best best(Best mine) { return mine; }
  static double sum(double mine) { return mine; }
};

}  // namespace diffaccel
