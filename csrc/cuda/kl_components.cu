#include "../core/kl_expansion.h"
#include "../ops/kl_components_checks.h"
#include "launch.cuh"

namespace diffaccel {
namespace {

// x0 [B, D], alpha, sigma [B] -> x_t, noise [B, M, D]
template <class T>
__global__ void kl_components_kernel(const T* x0, const double* alpha, const double* sigma, T* x_t, T* noise,
                                     int64_t rows, int64_t elements, int64_t terms, NoiseStream stream,
                                     uint32_t first_sample) {
  using W = wide_t<T>;
  for (int64_t component = blockIdx.y; component < rows * terms; component += gridDim.y) {
    const int64_t row = component / terms;
    const W scale = static_cast<W>(alpha[row]), spread = static_cast<W>(sigma[row]);
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      const Normals n =
          normal4(stream, counter, first_sample + static_cast<uint32_t>(row), static_cast<uint32_t>(component % terms));
      for (int w = 0; w < 4; ++w) {
        const int64_t e = first + w * kLanes;
        if (e >= elements) break;
        const T rounded = static_cast<T>(n.z[w]);
        const W value = static_cast<W>(rounded);
        noise[component * elements + e] = rounded;
        x_t[component * elements + e] =
            static_cast<T>(mul_add(scale, static_cast<W>(x0[row * elements + e]), spread * value));
      }
    });
  }
}

// x0 [B, *], alpha [B], sigma [B] -> alpha x_0 + sigma Z_k [B, M, *] and Z_k [B, M, *]
std::tuple<Tensor, Tensor> kl_components_cuda(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& sigma_in,
                                              int64_t terms, int64_t seed, int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_kl_components(x0_in, alpha_in, sigma_in, terms, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0);
  std::vector<int64_t> shape = shape_of(x0);
  shape.insert(shape.begin() + 1, terms);
  Tensor x_t = empty_contiguous(x0, shape, x0.scalar_type());
  Tensor noise = empty_contiguous(x0, shape, x0.scalar_type());
  if (x_t.numel() == 0) return {x_t, noise};
  const Launch launch(x0);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double), sigma = contiguous_as(sigma_in, ScalarType::Double);
  dispatch_floating(x0.scalar_type(), "kl_components", [&](auto zero) {
    using T = decltype(zero);
    kl_components_kernel<T><<<noise_grid(rows * terms, elements), kBlock, 0, launch.stream()>>>(
        static_cast<const T*>(x0.const_data_ptr()), static_cast<const double*>(alpha.const_data_ptr()),
        static_cast<const double*>(sigma.const_data_ptr()), static_cast<T*>(x_t.mutable_data_ptr()),
        static_cast<T*>(noise.mutable_data_ptr()), rows, elements, terms, stream, static_cast<uint32_t>(first_sample));
  });
  Launch::check("kl_components");
  return {x_t, noise};
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("kl_components", TORCH_BOX(&diffaccel::kl_components_cuda)); }
