#include "../core/knn_select.h"

#include "../ops/knn_select_checks.h"
#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

// x [B, D], candidates [B, k, D] (item stride k D) or [k, D] (item stride 0) -> winner [B]; a block a sample, a warp a
// candidate
template <class T>
__global__ void knn_select_kernel(const T* x, const T* candidates, int64_t item_stride, int64_t* winner, int64_t rows,
                                  int64_t elements, int64_t k, Metric metric) {
  using W = wide_t<T>;
  __shared__ BlockTeam::Shared shared;
  BlockTeam team(shared);
  const int in_warp = team.lane() % 32, warp = team.lane() / 32, warps = team.lanes() / 32;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* source = x + row * elements;
    Best mine{INFINITY, INT64_MIN};
    for (int64_t j = warp; j < k; j += warps) {
      const T* candidate = candidates + row * item_stride + j * elements;
      double score = 0;
      for (int64_t e = in_warp; e < elements; e += 32)
        score += static_cast<double>(score_element(metric, static_cast<W>(source[e]), static_cast<W>(candidate[e])));
      for (int offset = 16; offset > 0; offset /= 2) score += __shfl_xor_sync(~0u, score, offset);
      if (better({score, -j}, mine)) mine = {score, -j};
    }
    const Best best = team.best(mine);
    if (team.lane() == 0) winner[row] = best.rank == INT64_MIN ? 0 : -best.rank;
  }
}

// x [B, *], candidates [B, k, *] or a shared pool [k, *] -> int64 [B]
Tensor knn_select_cuda(const Tensor& x_in, const Tensor& candidates_in, int64_t metric) {
  const bool shared = check_knn_select(x_in, candidates_in, metric);
  const Tensor x = torch::stable::contiguous(x_in), candidates = torch::stable::contiguous(candidates_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x), k = candidates.size(shared ? 0 : 1);
  Tensor out = empty_contiguous(x, {rows}, ScalarType::Long);
  if (rows == 0) return out;
  const Launch launch(x);
  dispatch_floating(x.scalar_type(), "knn_select", [&](auto zero) {
    using T = decltype(zero);
    knn_select_kernel<T><<<static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20)), kBlock, 0, launch.stream()>>>(
        static_cast<const T*>(x.const_data_ptr()), static_cast<const T*>(candidates.const_data_ptr()),
        shared ? 0 : k * elements, static_cast<int64_t*>(out.mutable_data_ptr()), rows, elements, k,
        static_cast<Metric>(metric));
  });
  Launch::check("knn_select");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("knn_select", TORCH_BOX(&diffaccel::knn_select_cuda)); }
