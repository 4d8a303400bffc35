#include "../core/knn_select.h"

#include "knn_select_checks.h"

namespace diffaccel {
namespace {

// x [B, *], candidates [B, k, *] or a shared pool [k, *] -> int64 [B]
Tensor knn_select_cpu(const Tensor& x_in, const Tensor& candidates_in, int64_t metric) {
  const bool shared = check_knn_select(x_in, candidates_in, metric);
  const Tensor x = torch::stable::contiguous(x_in), candidates = torch::stable::contiguous(candidates_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x), k = candidates.size(shared ? 0 : 1);
  Tensor out = empty_contiguous(x, {rows}, ScalarType::Long);
  if (rows == 0) return out;
  int64_t* winner = static_cast<int64_t*>(out.mutable_data_ptr());
  dispatch_floating(x.scalar_type(), "knn_select", [&](auto zero) {
    using T = decltype(zero);
    const T* source = static_cast<const T*>(x.const_data_ptr());
    const T* pool = static_cast<const T*>(candidates.const_data_ptr());
    torch::stable::parallel_for(0, rows, 1 + 65536 / (k * elements + 1), [&](int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        for (int64_t row = begin; row < end; ++row) {
          const T* own = pool + (shared ? 0 : row * k * elements);
          Best best{INFINITY, 0};
          for (int64_t j = 0; j < k; ++j) {
            const Best candidate{
                score_row(static_cast<Metric>(metric), source + row * elements, own + j * elements, elements), -j};
            if (better(candidate, best)) best = candidate;
          }
          winner[row] = -best.rank;
        }
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) { m.def("knn_select(Tensor x, Tensor candidates, int metric) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("knn_select", TORCH_BOX(&diffaccel::knn_select_cpu)); }
