#include "../core/hungarian.h"

#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

constexpr int kMostThreads = 256;

// cost [items, R, C] -> columns [items, R]; a block a problem, scratch of its own
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    hungarian_kernel(const T* cost, int64_t items, int64_t R, int64_t C, double sign, unsigned char* scratch,
                     int64_t scratch_bytes, int64_t* columns) {
  __shared__ BlockTeam::Shared shared;
  BlockTeam team(shared);
  const bool tall = R > C;
  const int64_t rows = tall ? C : R, cols = tall ? R : C;
  const AssignmentWorkspace work(scratch + blockIdx.x * scratch_bytes, rows, cols);
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const CostView<T> view{cost + item * R * C, rows, cols, tall ? 1 : C, tall ? C : 1, sign};
    const Status status = solve_assignment(team, view, work);
    write_assignment(team, work, R, C, status, columns + item * R);
    team.barrier();  // the answer is read before the next problem overwrites the workspace
  }
}

// cost [..., R, C] -> int64 [..., R]; an invalid or infeasible problem gets -1 in every row (nothing synchronises)
Tensor hungarian_cuda(const Tensor& cost_in, bool maximize) {
  STD_TORCH_CHECK(cost_in.dim() >= 2, "hungarian: expected a cost of shape [..., R, C], got ", cost_in.dim(),
                  " dimensions");
  const Tensor cost = torch::stable::contiguous(cost_in);
  std::vector<int64_t> shape = shape_of(cost);
  const int64_t C = shape.back();
  shape.pop_back();
  const int64_t R = shape.back();
  STD_TORCH_CHECK(R < INT32_MAX && C < INT32_MAX, "hungarian: at most 2^31 - 2 rows and columns");
  Tensor out = empty_contiguous(cost, shape, ScalarType::Long);
  const int64_t items = R == 0 ? 0 : out.numel() / R;
  if (items == 0) return out;
  const Launch launch(cost);
  const int64_t rows = std::min(R, C), cols = std::max(R, C);
  const int64_t blocks = std::min<int64_t>(items, 1024), bytes = AssignmentWorkspace::bytes(rows, cols);
  Tensor scratch = empty_contiguous(cost, {blocks * bytes}, ScalarType::Byte);
  const int threads = static_cast<int>(std::clamp<int64_t>((cols + 31) / 32 * 32, 32, kMostThreads));
  dispatch_floating(cost.scalar_type(), "hungarian", [&](auto zero) {
    using T = decltype(zero);
    hungarian_kernel<T><<<static_cast<unsigned>(blocks), threads, 0, launch.stream()>>>(
        static_cast<const T*>(cost.const_data_ptr()), items, R, C, maximize ? -1.0 : 1.0,
        static_cast<unsigned char*>(scratch.mutable_data_ptr()), bytes, static_cast<int64_t*>(out.mutable_data_ptr()));
  });
  Launch::check("hungarian");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("hungarian", TORCH_BOX(&diffaccel::hungarian_cuda)); }
