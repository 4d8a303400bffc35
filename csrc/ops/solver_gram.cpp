#include <algorithm>

#include "solver_gram_checks.h"

namespace diffaccel {
namespace {

// directions J x [*], residual [*] -> Gram matrix [J, J], right-hand side [J], both float64
std::tuple<Tensor, Tensor> solver_gram_cpu(std::vector<Tensor> directions, const Tensor& residual_in) {
  const ScalarType stored = check_solver_gram(directions, residual_in);
  const int count = static_cast<int>(directions.size());
  const Tensor residual = torch::stable::contiguous(residual_in);
  const int64_t elements = residual.numel();
  const int64_t chunks = (elements + kGramChunk - 1) / kGramChunk;
  const int terms = gram_terms(count);
  std::vector<double> partial(static_cast<size_t>(chunks * terms));
  dispatch_floating(residual.scalar_type(), "solver_gram", [&](auto r_zero) {
    dispatch_floating(stored, "solver_gram", [&](auto d_zero) {
      using R = decltype(r_zero);
      using D = decltype(d_zero);
      const R* r = static_cast<const R*>(residual.const_data_ptr());
      const D* d[kMaxDirections] = {};
      for (int j = 0; j < count; ++j) d[j] = static_cast<const D*>(directions[static_cast<size_t>(j)].const_data_ptr());
      torch::stable::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
        with_simd([&]() DIFFACCEL_SIMD_BODY {
          for (int64_t chunk = begin; chunk < end; ++chunk) {
            const int64_t first = chunk * kGramChunk, last = std::min(elements, first + kGramChunk);
            double* out = partial.data() + chunk * terms;
            for (int i = 0; i < count; ++i)
              for (int j = i; j < count; ++j) *out++ = dot_chunk(d[i], d[j], first, last);
            for (int i = 0; i < count; ++i) *out++ = dot_chunk(d[i], r, first, last);
          }
        });
      });
    });
  });
  std::vector<double> sum(static_cast<size_t>(terms), 0.0);
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int t = 0; t < terms; ++t) sum[static_cast<size_t>(t)] += partial[static_cast<size_t>(chunk * terms + t)];

  Tensor gram = empty_contiguous(residual, {count, count}, ScalarType::Double);
  Tensor rhs = empty_contiguous(residual, {count}, ScalarType::Double);
  double* g = static_cast<double*>(gram.mutable_data_ptr());
  double* y = static_cast<double*>(rhs.mutable_data_ptr());
  size_t t = 0;
  for (int i = 0; i < count; ++i)
    for (int j = i; j < count; ++j, ++t) g[i * count + j] = g[j * count + i] = sum[t];
  for (int i = 0; i < count; ++i, ++t) y[i] = sum[t];
  return {gram, rhs};
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def("solver_gram(Tensor[] directions, Tensor residual) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("solver_gram", TORCH_BOX(&diffaccel::solver_gram_cpu)); }
