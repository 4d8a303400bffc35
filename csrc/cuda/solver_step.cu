#include "../ops/solver_step_checks.h"
#include "launch.cuh"

namespace diffaccel {
namespace {

template <class M>
struct Outputs {
  const M* data[kMaxOutputs];
};

// x, target [E]
template <class X, class M, class W>
__global__ void solver_step_kernel(StepCoefficients<W> c, const X* x, Outputs<M> outputs, X* target, int64_t elements) {
  for (int64_t e = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; e < elements; e += int64_t{gridDim.x} * blockDim.x)
    target[e] = static_cast<X>(solver_step_element(c, x, outputs.data, e));
}

// x [*], outputs J x [*], all contiguous -> a x + sum_j b_j outputs_j, written to out [*], which may be one of them
void solver_step_into(const Tensor& x, const std::vector<Tensor>& outputs, double a, const std::vector<double>& b,
                      ScalarType stored, Tensor& out, const Launch& launch) {
  if (x.numel() == 0) return;
  dispatch_floating(x.scalar_type(), "solver_step", [&](auto x_zero) {
    dispatch_floating(stored, "solver_step", [&](auto m_zero) {
      using X = decltype(x_zero);
      using M = decltype(m_zero);
      using W = wide_t<X>;
      StepCoefficients<W> c{static_cast<W>(a), {}, static_cast<int>(b.size())};
      Outputs<M> m{};
      for (int j = 0; j < c.count; ++j) {
        c.b[j] = static_cast<W>(b[static_cast<size_t>(j)]);
        m.data[j] = static_cast<const M*>(outputs[static_cast<size_t>(j)].const_data_ptr());
      }
      solver_step_kernel<<<blocks_for(x.numel()), kBlock, 0, launch.stream()>>>(
          c, static_cast<const X*>(x.const_data_ptr()), m, static_cast<X*>(out.mutable_data_ptr()), x.numel());
    });
  });
  Launch::check("solver_step");
}

// x [*], outputs J x [*] -> a x + sum_j b_j outputs_j [*]
Tensor solver_step_cuda(const Tensor& x_in, std::vector<Tensor> outputs, double a, std::vector<double> b) {
  const ScalarType stored = check_solver_step(x_in, outputs, b);
  const Tensor x = torch::stable::contiguous(x_in);
  const Launch launch(x);
  Tensor out = empty_contiguous(x, shape_of(x), x.scalar_type());
  solver_step_into(x, outputs, a, b, stored, out, launch);
  return out;
}

// the same, written to out [*], contiguous
void solver_step_out_cuda(const Tensor& x_in, std::vector<Tensor> outputs, double a, std::vector<double> b,
                          Tensor out) {
  const ScalarType stored = check_solver_step(x_in, outputs, b);
  check_solver_step_out(x_in, out);
  const Tensor x = torch::stable::contiguous(x_in);
  const Launch launch(x);
  solver_step_into(x, outputs, a, b, stored, out, launch);
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) {
  m.impl("solver_step", TORCH_BOX(&diffaccel::solver_step_cuda));
  m.impl("solver_step.out", TORCH_BOX(&diffaccel::solver_step_out_cuda));
}
