// The teams (core/team.h) of a GPU: a warp, a block of whole warps (at most 1024 threads), a cooperative grid.
#pragma once

#include <cooperative_groups.h>

#include "../core/ordered.h"
#include "../core/team.h"

namespace diffaccel {

// The lanes of one warp, which reduce in registers.
struct WarpLanes {
  static constexpr unsigned kAll = ~0u;
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }
  __device__ static constexpr int lanes() { return 32; }

  __device__ static uint32_t least(uint32_t x) { return __reduce_min_sync(kAll, x); }
  __device__ static uint64_t least(uint64_t x) {
    const auto high = static_cast<uint32_t>(x >> 32), low = static_cast<uint32_t>(x);
    const uint32_t least_high = least(high);
    return static_cast<uint64_t>(least_high) << 32 | least(high == least_high ? low : ~0u);
  }
  __device__ static float least(float x) { return float_from_ordered(least(ordered(x))); }
  __device__ static double least(double x) { return double_from_ordered(least(ordered(x))); }
  __device__ static int64_t sum(int64_t x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(kAll, x, offset);
    return x;
  }
  __device__ static Best best(const Best& mine) {
    const uint64_t cost = ordered(mine.cost), least_cost = least(cost);
    // The greatest rank: the complement turns the order around.
    const uint64_t rank = least(cost == least_cost ? ~ordered(mine.rank) : ~uint64_t{0});
    return {double_from_ordered(least_cost), int_from_ordered(~rank)};
  }
};

class WarpTeam {
 public:
  __device__ static int lane() { return WarpLanes::lane(); }
  __device__ static constexpr int lanes() { return 32; }
  __device__ static void barrier() { __syncwarp(); }
  __device__ static Best best(const Best& mine) {
    __syncwarp();
    return WarpLanes::best(mine);
  }
};

class BlockTeam {
 public:
  struct Shared {
    Best best[2][32];
    double sum[32];
  };

  __device__ explicit BlockTeam(Shared& shared) : shared_(shared) {}
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return static_cast<int>(blockDim.x); }
  __device__ void barrier() const { __syncthreads(); }

  __device__ WarpLanes warp() const { return {}; }
  __device__ int warp_index() const { return static_cast<int>(threadIdx.x / 32); }
  __device__ int warps() const { return static_cast<int>(blockDim.x / 32); }
  __device__ BlockTeam& group() { return *this; }
  __device__ static constexpr int group_index() { return 0; }
  __device__ static constexpr int groups() { return 1; }

  // One barrier is enough: two calls write different halves, and a third begins after all lanes have read the first.
  __device__ Best best(Best mine) const {
    mine = WarpLanes::best(mine);
    half_ ^= 1;
    if (threadIdx.x % 32 == 0) shared_.best[half_][threadIdx.x / 32] = mine;
    __syncthreads();
    const unsigned warps = blockDim.x / 32, in_warp = threadIdx.x % 32;
    return WarpLanes::best(shared_.best[half_][in_warp < warps ? in_warp : 0]);
  }

  // The order of additions depends on the block's size alone.
  __device__ double sum(double mine) const {
    for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_xor_sync(~0u, mine, offset);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared_.sum[threadIdx.x / 32] = mine;
    __syncthreads();
    double total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += shared_.sum[w];
    __syncthreads();
    return total;
  }

 private:
  Shared& shared_;
  mutable int half_ = 0;
};

// All blocks of a cooperative launch; each block is a group. Consecutive warps lie in different blocks, so that a few
// of them spread over the multiprocessors.
class GridTeam {
 public:
  __device__ explicit GridTeam(BlockTeam::Shared& shared) : block_(shared) {}
  __device__ int lane() const { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }
  __device__ int lanes() const { return static_cast<int>(gridDim.x * blockDim.x); }
  __device__ void barrier() const { cooperative_groups::this_grid().sync(); }

  __device__ WarpLanes warp() const { return {}; }
  __device__ int warp_index() const { return static_cast<int>(threadIdx.x / 32 * gridDim.x + blockIdx.x); }
  __device__ int warps() const { return static_cast<int>(gridDim.x * (blockDim.x / 32)); }
  __device__ BlockTeam& group() { return block_; }
  __device__ int group_index() const { return static_cast<int>(blockIdx.x); }
  __device__ int groups() const { return static_cast<int>(gridDim.x); }

 private:
  BlockTeam block_;
};

}  // namespace diffaccel
