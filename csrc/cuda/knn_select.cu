#include "../core/knn_select.h"

#include "../ops/knn_select_checks.h"
#include "../ops/knn_select_screen.h"
#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

__device__ double warp_sum(double mine) {
  for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_xor_sync(~0u, mine, offset);
  return mine;
}

// This warp's score of a candidate.
template <class T>
__device__ double warp_score(Metric metric, const T* x, const T* n, int64_t elements) {
  using W = wide_t<T>;
  double score = 0;
  for (int64_t e = threadIdx.x % 32; e < elements; e += 32)
    score += static_cast<double>(score_element(metric, static_cast<W>(x[e]), static_cast<W>(n[e])));
  return warp_sum(score);
}

// n [k, D] -> |n_j|^2 [k]; a warp a candidate
template <class T, class W>
__global__ void __launch_bounds__(kBlock) square_norm_kernel(const T* n, W* n_squared, int64_t k, int64_t elements) {
  const int64_t warps = int64_t{gridDim.x} * (kBlock / 32);
  for (int64_t j = blockIdx.x * int64_t{kBlock / 32} + threadIdx.x / 32; j < k; j += warps) {
    double sum = 0;
    for (int64_t e = threadIdx.x % 32; e < elements; e += 32) {
      const double value = static_cast<double>(n[j * elements + e]);
      sum = fused(value, value, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) n_squared[j] = static_cast<W>(sum);
  }
}

// x [B, D], candidates [B, k, D] (item stride k D) or [k, D] (item stride 0) -> winner [B]; a block a sample, a warp a
// candidate. With dots [B, k] and n_squared [k], only candidates that may be the best are read.
template <class T, class W>
__global__ void __launch_bounds__(kBlock)
    knn_select_kernel(const T* x, const T* candidates, int64_t item_stride, const W* dots, const W* n_squared,
                      int64_t* winner, int64_t rows, int64_t elements, int64_t k, Metric metric) {
  __shared__ BlockTeam::Shared shared;
  BlockTeam team(shared);
  const EstimateWeights weights(metric);
  const int warp = team.lane() / 32, warps = team.lanes() / 32;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* source = x + row * elements;
    const W* row_dots = dots == nullptr ? nullptr : dots + row * k;
    W highest = INFINITY;
    if (dots != nullptr) {
      double x_squared = 0;
      for (int64_t e = team.lane(); e < elements; e += team.lanes()) {
        const double value = static_cast<double>(source[e]);
        x_squared = fused(value, value, x_squared);
      }
      Best least{INFINITY, INT64_MIN}, longest{0.0, INT64_MIN};  // the longest as the least of the negative
      for (int64_t j = team.lane(); j < k; j += team.lanes()) {
        const double value = static_cast<double>(estimate(weights, row_dots[j], n_squared[j]));
        if (value < least.cost) least.cost = value;
        const double length = static_cast<double>(n_squared[j]);
        if (length < INFINITY && -length < longest.cost) longest.cost = -length;
      }
      const double x_norm = sqrt(team.sum(x_squared)), n_norm = sqrt(-team.best(longest).cost);
      const double error = estimate_error<W>(elements, x_norm, n_norm);
      highest = static_cast<W>(team.best(least).cost + 2.0 * error);
    }
    // Estimates that overflow may hide a score that does not: then all are scored.
    for (int pass = dots == nullptr ? 1 : 0; pass < 2; ++pass) {
      Best mine{INFINITY, INT64_MIN};
      for (int64_t j = warp; j < k; j += warps) {
        if (pass == 0 && !may_be_best(estimate(weights, row_dots[j], n_squared[j]), highest)) continue;
        const Best candidate{warp_score(metric, source, candidates + row * item_stride + j * elements, elements), -j};
        if (better(candidate, mine)) mine = candidate;
      }
      const Best best = team.best(mine);
      if (team.lane() == 0) winner[row] = best.rank == INT64_MIN ? 0 : -best.rank;
      if (best.cost < INFINITY) break;
    }
  }
}

// x [B, *], candidates [B, k, *] or a shared pool [k, *] -> int64 [B]
Tensor knn_select_cuda(const Tensor& x_in, const Tensor& candidates_in, int64_t metric_code) {
  const bool shared = check_knn_select(x_in, candidates_in, metric_code);
  const Tensor x = torch::stable::contiguous(x_in), candidates = torch::stable::contiguous(candidates_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x), k = candidates.size(shared ? 0 : 1);
  Tensor out = empty_contiguous(x, {rows}, ScalarType::Long);
  if (rows == 0) return out;
  const Launch launch(x);
  const Metric metric = static_cast<Metric>(metric_code);
  int64_t* winner = static_cast<int64_t*>(out.mutable_data_ptr());
  const auto grid = [](int64_t items) { return static_cast<unsigned>(std::min<int64_t>(items, 1 << 20)); };
  dispatch_floating(x.scalar_type(), "knn_select", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const T* source = static_cast<const T*>(x.const_data_ptr());
    const T* pool = static_cast<const T*>(candidates.const_data_ptr());
    if (!shared || !screening_pays(rows, k, elements)) {
      knn_select_kernel<T, W><<<grid(rows), kBlock, 0, launch.stream()>>>(
          source, pool, shared ? 0 : k * elements, nullptr, nullptr, winner, rows, elements, k, metric);
      return;
    }
    Tensor n_squared = empty_contiguous(x, {k}, sizeof(W) == sizeof(double) ? ScalarType::Double : ScalarType::Float);
    square_norm_kernel<T, W><<<grid((k + 7) / 8), kBlock, 0, launch.stream()>>>(
        pool, static_cast<W*>(n_squared.mutable_data_ptr()), k, elements);
    Tensor flat = torch::stable::view(x, {{rows, elements}});
    const Tensor flat_pool = torch::stable::view(candidates, {{k, elements}});
    const int64_t step = screened_rows(rows, k);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      const Tensor products = all_products(torch::stable::narrow(flat, 0, first, count), flat_pool, elements);
      knn_select_kernel<T, W><<<grid(count), kBlock, 0, launch.stream()>>>(
          source + first * elements, pool, 0, static_cast<const W*>(products.const_data_ptr()),
          static_cast<const W*>(n_squared.const_data_ptr()), winner + first, count, elements, k, metric);
    }
  });
  Launch::check("knn_select");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("knn_select", TORCH_BOX(&diffaccel::knn_select_cuda)); }
