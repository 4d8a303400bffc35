#include "../core/knn_select.h"

#include <algorithm>

#include "knn_select_checks.h"
#include "knn_select_screen.h"

namespace diffaccel {
namespace {

template <class T>
DIFFACCEL_INLINE Best score_candidate(Metric metric, const T* x, const T* candidates, int64_t elements, int64_t j) {
  return {score_row(metric, x, candidates + j * elements, elements), -j};
}

// The best of candidates [k, D] for x [D].
template <class T>
DIFFACCEL_INLINE int64_t best_of_all(Metric metric, const T* x, const T* candidates, int64_t k, int64_t elements) {
  Best best{INFINITY, 0};
  for (int64_t j = 0; j < k; ++j) {
    const Best candidate = score_candidate(metric, x, candidates, elements, j);
    if (better(candidate, best)) best = candidate;
  }
  return -best.rank;
}

// The best of a pool [k, D] for x [D], from <x, n_j> [k] and |n_j|^2 [k], whose largest finite root is n_norm.
template <class T, class W>
DIFFACCEL_INLINE int64_t screened_best(Metric metric, const T* x, const T* pool, int64_t k, int64_t elements,
                                       const W* dots, const W* n_squared, double n_norm) {
  const EstimateWeights weights(metric);
  W lanes[kGroup];
  for (W& lane : lanes) lane = INFINITY;
  const int64_t whole = k / kGroup * kGroup;
  for (int64_t first = 0; first < whole; first += kGroup)
    for (int l = 0; l < kGroup; ++l) {
      const W value = estimate(weights, dots[first + l], n_squared[first + l]);
      lanes[l] = value < lanes[l] ? value : lanes[l];
    }
  W least = INFINITY;
  for (int64_t j = whole; j < k; ++j) {
    const W value = estimate(weights, dots[j], n_squared[j]);
    least = value < least ? value : least;
  }
  for (const W lane : lanes) least = lane < least ? lane : least;
  // The bound holds for both sides; its spare covers this sum's own rounding.
  const double error = estimate_error<W>(elements, sqrt(square_norm(x, elements)), n_norm);
  const W highest = static_cast<W>(static_cast<double>(least) + 2.0 * error);

  Best best{INFINITY, INT64_MIN};
  int64_t pending = -1;  // the first candidate is scored only if there is a second
  const auto consider = [&](int64_t j) DIFFACCEL_SIMD_BODY {
    if (!may_be_best(estimate(weights, dots[j], n_squared[j]), highest)) return;
    if (best.rank == INT64_MIN && pending < 0) {
      pending = j;
      return;
    }
    if (best.rank == INT64_MIN) best = score_candidate(metric, x, pool, elements, pending);
    const Best candidate = score_candidate(metric, x, pool, elements, j);
    if (better(candidate, best)) best = candidate;
  };
  for (int64_t first = 0; first < whole; first += kGroup) {
    int32_t any = 0;
    for (int l = 0; l < kGroup; ++l)
      any |= may_be_best(estimate(weights, dots[first + l], n_squared[first + l]), highest) ? 1 : 0;
    if (any == 0) continue;
    for (int l = 0; l < kGroup; ++l) consider(first + l);
  }
  for (int64_t j = whole; j < k; ++j) consider(j);
  if (best.rank == INT64_MIN && pending >= 0 && highest < INFINITY && least > -INFINITY) return pending;
  // Estimates that overflow may have hidden a score that does not.
  if (!(best.cost < INFINITY)) return best_of_all(metric, x, pool, k, elements);
  return -best.rank;
}

template <class T>
void select_shared(const Tensor& x, const Tensor& pool, Metric metric, int64_t elements, int64_t* winner) {
  using W = wide_t<T>;
  const int64_t rows = x.size(0), k = pool.size(0), step = screened_rows(rows, k);
  const T* source = static_cast<const T*>(x.const_data_ptr());
  const T* candidates = static_cast<const T*>(pool.const_data_ptr());
  std::vector<W> n_squared(static_cast<size_t>(k));
  torch::stable::parallel_for(0, k, 1 + 65536 / (elements + 1), [&](int64_t begin, int64_t end) {
    with_simd([&]() DIFFACCEL_SIMD_BODY {
      for (int64_t j = begin; j < end; ++j)
        n_squared[static_cast<size_t>(j)] = static_cast<W>(square_norm(candidates + j * elements, elements));
    });
  });
  W largest = 0;
  for (const W value : n_squared)
    if (value > largest && value < INFINITY) largest = value;
  const double n_norm = sqrt(static_cast<double>(largest));
  Tensor flat = torch::stable::view(x, {{rows, elements}}), flat_pool = torch::stable::view(pool, {{k, elements}});
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    const Tensor products = all_products(torch::stable::narrow(flat, 0, first, count), flat_pool, elements);
    const W* dots = static_cast<const W*>(products.const_data_ptr());
    torch::stable::parallel_for(0, count, 1 + 65536 / (k + elements), [&](int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        for (int64_t row = begin; row < end; ++row)
          winner[first + row] = screened_best(metric, source + (first + row) * elements, candidates, k, elements,
                                              dots + row * k, n_squared.data(), n_norm);
      });
    });
  }
}

template <class T>
void select_each(const Tensor& x, const Tensor& candidates, Metric metric, int64_t elements, int64_t k,
                 int64_t item_stride, int64_t* winner) {
  const T* source = static_cast<const T*>(x.const_data_ptr());
  const T* from = static_cast<const T*>(candidates.const_data_ptr());
  torch::stable::parallel_for(0, x.size(0), 1 + 65536 / (k * elements + 1), [&](int64_t begin, int64_t end) {
    with_simd([&]() DIFFACCEL_SIMD_BODY {
      for (int64_t row = begin; row < end; ++row)
        winner[row] = best_of_all(metric, source + row * elements, from + row * item_stride, k, elements);
    });
  });
}

// x [B, *], candidates [B, k, *] or a shared pool [k, *] -> int64 [B]
Tensor knn_select_cpu(const Tensor& x_in, const Tensor& candidates_in, int64_t metric_code) {
  const bool shared = check_knn_select(x_in, candidates_in, metric_code);
  const Tensor x = torch::stable::contiguous(x_in), candidates = torch::stable::contiguous(candidates_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x), k = candidates.size(shared ? 0 : 1);
  Tensor out = empty_contiguous(x, {rows}, ScalarType::Long);
  if (rows == 0) return out;
  const Metric metric = static_cast<Metric>(metric_code);
  int64_t* winner = static_cast<int64_t*>(out.mutable_data_ptr());
  dispatch_floating(x.scalar_type(), "knn_select", [&](auto zero) {
    using T = decltype(zero);
    if (shared && screening_pays(rows, k, elements)) return select_shared<T>(x, candidates, metric, elements, winner);
    select_each<T>(x, candidates, metric, elements, k, shared ? 0 : k * elements, winner);
  });
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) { m.def("knn_select(Tensor x, Tensor candidates, int metric) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("knn_select", TORCH_BOX(&diffaccel::knn_select_cpu)); }
