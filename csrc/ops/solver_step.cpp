#include "solver_step_checks.h"

namespace diffaccel {
namespace {

// x [*], outputs J x [*] -> a x + sum_j b_j outputs_j [*]
Tensor solver_step_cpu(const Tensor& x_in, std::vector<Tensor> outputs, double a, std::vector<double> b) {
  const ScalarType stored = check_solver_step(x_in, outputs, b);
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t elements = x.numel();
  Tensor out = empty_contiguous(x, shape_of(x), x.scalar_type());
  if (elements == 0) return out;
  dispatch_floating(x.scalar_type(), "solver_step", [&](auto x_zero) {
    dispatch_floating(stored, "solver_step", [&](auto m_zero) {
      using X = decltype(x_zero);
      using M = decltype(m_zero);
      using W = wide_t<X>;
      StepCoefficients<W> c{static_cast<W>(a), {}, static_cast<int>(b.size())};
      const M* m[kMaxOutputs] = {};
      for (int j = 0; j < c.count; ++j) {
        c.b[j] = static_cast<W>(b[static_cast<size_t>(j)]);
        m[j] = static_cast<const M*>(outputs[static_cast<size_t>(j)].const_data_ptr());
      }
      const X* source = static_cast<const X*>(x.const_data_ptr());
      X* target = static_cast<X*>(out.mutable_data_ptr());
      torch::stable::parallel_for(0, elements, 16384, [&](int64_t begin, int64_t end) {
        with_simd([&]() DIFFACCEL_SIMD_BODY {
          // Outputs one by one over a block that stays in first-level cache: every loop has one stream and vectorises.
          constexpr int64_t kBlock = 1024;
          alignas(64) W acc[kBlock];
          for (int64_t first = begin; first < end; first += kBlock) {
            const int64_t size = end - first < kBlock ? end - first : kBlock;
            const X* xs = source + first;
            for (int64_t e = 0; e < size; ++e) acc[e] = c.a * static_cast<W>(xs[e]);
            for (int j = 0; j < c.count; ++j) {
              const M* ms = m[j] + first;
              const W bj = c.b[j];
              for (int64_t e = 0; e < size; ++e) acc[e] = mul_add(bj, static_cast<W>(ms[e]), acc[e]);
            }
            X* xt = target + first;
            for (int64_t e = 0; e < size; ++e) xt[e] = static_cast<X>(acc[e]);
          }
        });
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def("solver_step(Tensor x, Tensor[] outputs, float a, float[] b) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("solver_step", TORCH_BOX(&diffaccel::solver_step_cpu)); }
