#include "solver_step_checks.h"

namespace diffaccel {
namespace {

// x [*], outputs J x [*], all contiguous -> a x + sum_j b_j outputs_j, written to out [*], which may be one of them
void solver_step_into(const Tensor& x, const std::vector<Tensor>& outputs, double a, const std::vector<double>& b,
                      ScalarType stored, Tensor& out) {
  const int64_t elements = x.numel();
  if (elements == 0) return;
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
        with_simd([&]() DIFFACCEL_SIMD_BODY { solver_step_range(c, source, m, target, begin, end); });
      });
    });
  });
}

// x [*], outputs J x [*] -> a x + sum_j b_j outputs_j [*]
Tensor solver_step_cpu(const Tensor& x_in, std::vector<Tensor> outputs, double a, std::vector<double> b) {
  const ScalarType stored = check_solver_step(x_in, outputs, b);
  const Tensor x = torch::stable::contiguous(x_in);
  Tensor out = empty_contiguous(x, shape_of(x), x.scalar_type());
  solver_step_into(x, outputs, a, b, stored, out);
  return out;
}

// the same, written to out [*], contiguous
void solver_step_out_cpu(const Tensor& x_in, std::vector<Tensor> outputs, double a, std::vector<double> b, Tensor out) {
  const ScalarType stored = check_solver_step(x_in, outputs, b);
  check_solver_step_out(x_in, out);
  solver_step_into(torch::stable::contiguous(x_in), outputs, a, b, stored, out);
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def("solver_step(Tensor x, Tensor[] outputs, float a, float[] b) -> Tensor");
  m.def("solver_step.out(Tensor x, Tensor[] outputs, float a, float[] b, *, Tensor(a!) out) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) {
  m.impl("solver_step", TORCH_BOX(&diffaccel::solver_step_cpu));
  m.impl("solver_step.out", TORCH_BOX(&diffaccel::solver_step_out_cpu));
}
