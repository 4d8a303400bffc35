// The teams (core/team.h) made of host threads: the algorithms of CUDA blocks and grids under ThreadSanitizer.
#pragma once

#include <algorithm>
#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "core/team.h"

namespace diffaccel {

// A warp of threads, which reduce through memory of their own.
class ThreadWarp {
 public:
  struct Shared {
    explicit Shared(int count) : gate(count), slots(static_cast<size_t>(count)) {}
    std::barrier<> gate;
    std::vector<uint64_t> slots;
  };

  ThreadWarp(Shared& shared, int lane) : shared_(shared), lane_(lane) {}
  int lane() const { return lane_; }
  int lanes() const { return static_cast<int>(shared_.slots.size()); }

  template <class X>
  X least(X x) const {
    return reduce(x, [](X a, X b) { return std::min(a, b); });
  }
  int64_t sum(int64_t x) const {
    return reduce(x, [](int64_t a, int64_t b) { return a + b; });
  }

 private:
  template <class X, class F>
  X reduce(X x, const F& f) const {
    static_assert(sizeof(X) <= sizeof(uint64_t));
    std::memcpy(&shared_.slots[static_cast<size_t>(lane_)], &x, sizeof(X));
    shared_.gate.arrive_and_wait();
    X result{};
    for (size_t lane = 0; lane < shared_.slots.size(); ++lane) {
      std::memcpy(&x, &shared_.slots[lane], sizeof(X));
      result = lane == 0 ? x : f(result, x);
    }
    shared_.gate.arrive_and_wait();
    return result;
  }

  Shared& shared_;
  int lane_;
};

// A block: one level with reductions, or two levels of which it is the only group. Its threads form warps of `width`.
class ThreadTeam {
 public:
  struct Shared {
    explicit Shared(int count, int width = 1)
        : gate(count), best(static_cast<size_t>(count)), sum(static_cast<size_t>(count)) {
      for (int warp = 0; warp < count / width; ++warp) warps.push_back(std::make_unique<ThreadWarp::Shared>(width));
    }
    std::barrier<> gate;
    std::vector<std::unique_ptr<ThreadWarp::Shared>> warps;
    std::vector<Best> best;
    std::vector<double> sum;
  };

  ThreadTeam(Shared& shared, int lane) : shared_(shared), lane_(lane) {}
  int lane() const { return lane_; }
  int lanes() const { return static_cast<int>(shared_.best.size()); }
  void barrier() const { shared_.gate.arrive_and_wait(); }

  ThreadWarp warp() const { return {*shared_.warps[static_cast<size_t>(warp_index())], lane_ % (lanes() / warps())}; }
  int warp_index() const { return lane_ / (lanes() / warps()); }
  int warps() const { return static_cast<int>(shared_.warps.size()); }
  ThreadTeam& group() { return *this; }
  static constexpr int group_index() { return 0; }
  static constexpr int groups() { return 1; }

  Best best(Best mine) const {
    shared_.best[static_cast<size_t>(lane_)] = mine;
    barrier();
    for (const Best& other : shared_.best)
      if (better(other, mine)) mine = other;
    barrier();
    return mine;
  }

  double sum(double mine) const {
    shared_.sum[static_cast<size_t>(lane_)] = mine;
    barrier();
    double total = 0;
    for (const double part : shared_.sum) total += part;
    barrier();
    return total;
  }

 private:
  Shared& shared_;
  int lane_;
};

// A grid: groups of threads.
class ThreadGrid {
 public:
  struct Shared {
    Shared(int groups, int lanes, int width) : gate(groups * lanes) {
      for (int group = 0; group < groups; ++group) blocks.push_back(std::make_unique<ThreadTeam::Shared>(lanes, width));
    }
    std::barrier<> gate;
    std::vector<std::unique_ptr<ThreadTeam::Shared>> blocks;
  };

  ThreadGrid(Shared& shared, int group, int lane)
      : shared_(shared), index_(group), block_(*shared.blocks[static_cast<size_t>(group)], lane) {}
  int lane() const { return index_ * block_.lanes() + block_.lane(); }
  int lanes() const { return groups() * block_.lanes(); }
  void barrier() const { shared_.gate.arrive_and_wait(); }

  ThreadWarp warp() const { return block_.warp(); }
  int warp_index() const { return block_.warp_index() * groups() + index_; }
  int warps() const { return groups() * block_.warps(); }
  ThreadTeam& group() { return block_; }
  int group_index() const { return index_; }
  int groups() const { return static_cast<int>(shared_.blocks.size()); }

 private:
  Shared& shared_;
  int index_;
  ThreadTeam block_;
};

// Runs body(team) on `lanes` threads, in warps of `width`, and waits for them.
inline void run_team(int lanes, const std::function<void(ThreadTeam&)>& body, int width = 1) {
  ThreadTeam::Shared shared(lanes, width);
  std::vector<std::thread> threads;
  for (int lane = 0; lane < lanes; ++lane)
    threads.emplace_back([&shared, &body, lane] {
      ThreadTeam team(shared, lane);
      body(team);
    });
  for (std::thread& thread : threads) thread.join();
}

// Runs body(team) on `groups` groups of `lanes` threads and waits for them.
inline void run_grid(int groups, int lanes, const std::function<void(ThreadGrid&)>& body, int width = 1) {
  ThreadGrid::Shared shared(groups, lanes, width);
  std::vector<std::thread> threads;
  for (int n = 0; n < groups * lanes; ++n)
    threads.emplace_back([&shared, &body, n, lanes] {
      ThreadGrid team(shared, n / lanes, n % lanes);
      body(team);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace diffaccel
