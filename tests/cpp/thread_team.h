// The team (core/team.h) made of host threads: the CUDA block's algorithm under ThreadSanitizer.
#pragma once

#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#include "core/team.h"

namespace diffaccel {

class ThreadTeam {
 public:
  struct Shared {
    explicit Shared(int count) : gate(count), best(static_cast<size_t>(count)), sum(static_cast<size_t>(count)) {}
    std::barrier<> gate;
    std::vector<Best> best;
    std::vector<double> sum;
  };

  ThreadTeam(Shared& shared, int lane) : shared_(shared), lane_(lane) {}
  int lane() const { return lane_; }
  int lanes() const { return static_cast<int>(shared_.best.size()); }
  void barrier() const { shared_.gate.arrive_and_wait(); }

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

// Runs body(team) on `lanes` threads and waits for them.
inline void run_team(int lanes, const std::function<void(ThreadTeam&)>& body) {
  ThreadTeam::Shared shared(lanes);
  std::vector<std::thread> threads;
  for (int lane = 0; lane < lanes; ++lane)
    threads.emplace_back([&shared, &body, lane] {
      ThreadTeam team(shared, lane);
      body(team);
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace diffaccel
