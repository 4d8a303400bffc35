// The team (core/team.h) that is one CUDA block of whole warps, at most 1024 threads.
#pragma once

#include "../core/team.h"

namespace diffaccel {

class BlockTeam {
 public:
  struct Shared {
    Best best[32];
    double sum[32];
  };

  __device__ explicit BlockTeam(Shared& shared) : shared_(shared) {}
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return static_cast<int>(blockDim.x); }
  __device__ void barrier() const { __syncthreads(); }

  __device__ Best best(Best mine) const {
    for (int offset = 16; offset > 0; offset /= 2) {
      const Best other{__shfl_xor_sync(~0u, mine.cost, offset), __shfl_xor_sync(~0u, mine.rank, offset)};
      if (better(other, mine)) mine = other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared_.best[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = shared_.best[0];
    for (unsigned w = 1; w < blockDim.x / 32; ++w)
      if (better(shared_.best[w], mine)) mine = shared_.best[w];
    __syncthreads();
    return mine;
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
};

}  // namespace diffaccel
