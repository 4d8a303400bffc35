// Launch helpers: torch's stream, grid sizes, error checks.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

#include "../ops/common.h"

namespace diffaccel {

constexpr int kBlock = 256;

// Work on x's device and torch's current stream there.
class Launch {
 public:
  explicit Launch(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream) == 0,
                    "no CUDA stream from torch");
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

  // Call after each launch.
  static void check(const char* op) {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, op, ": CUDA launch failed: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline unsigned blocks_for(int64_t items, int64_t most = 65535) {
  return static_cast<unsigned>(std::clamp<int64_t>((items + kBlock - 1) / kBlock, 1, most));
}

// Grid over (counters of a sample, samples): x and y stride.
inline dim3 noise_grid(int64_t rows, int64_t elements) {
  return {blocks_for(group_count(elements) * kLanes, 4096), static_cast<unsigned>(std::min<int64_t>(rows, 65535)), 1};
}

// Calls f(counter, element of word 0) for this thread's share of a sample's counters.
template <class F>
__device__ void for_counters(int64_t elements, const F& f) {
  const int64_t counters = group_count(elements) * kLanes;
  for (int64_t n = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; n < counters; n += int64_t{gridDim.x} * blockDim.x) {
    const int64_t first = n / kLanes * kGroup + n % kLanes;
    if (first < elements) f(static_cast<uint32_t>(n), first);
  }
}

// The four elements of a counter in a row x [D], the first of them given; 0 beyond the end.
template <class W, class T>
struct Four {
  W x[4] = {};
  __device__ Four(const T* row, int64_t first, int64_t elements) {
    DIFFACCEL_UNROLL
    for (int w = 0; w < 4; ++w)
      if (first + w * kLanes < elements) x[w] = static_cast<W>(row[first + w * kLanes]);
  }
};

}  // namespace diffaccel
