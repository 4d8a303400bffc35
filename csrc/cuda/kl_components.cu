#include "../core/kl_expansion.h"
#include "../ops/kl_components_checks.h"
#include "launch.cuh"

namespace diffaccel {
namespace {

constexpr int kTerms = 4;  // terms for which a thread reads x_0 once; even, so that antithetic pairs stay together

// x0 [B, D], alpha, sigma [B] -> x_t, noise [B, M, D]
template <bool kAntithetic, class T>
__global__ void kl_components_kernel(const T* x0, const double* alpha, const double* sigma, T* x_t, T* noise,
                                     int64_t rows, int64_t elements, int64_t terms, NoiseStream stream,
                                     uint32_t first_sample) {
  using W = wide_t<T>;
  const int64_t blocks = (terms + kTerms - 1) / kTerms;
  for (int64_t n = blockIdx.y; n < rows * blocks; n += gridDim.y) {
    const int64_t row = n / blocks, begin = n % blocks * kTerms;
    const int64_t end = begin + kTerms < terms ? begin + kTerms : terms;
    const W scale = static_cast<W>(alpha[row]), spread = static_cast<W>(sigma[row]);
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      const Four<W, T> x(x0 + row * elements, first, elements);
      Normals z = {};
      for (int64_t term = begin; term < end; ++term) {
        if (kAntithetic && term % 2 == 1) {
          for (int w = 0; w < 4; ++w) z.z[w] = -z.z[w];
        } else {
          z = normal4(stream, counter, first_sample + static_cast<uint32_t>(row), static_cast<uint32_t>(term));
        }
        const int64_t at = (row * terms + term) * elements + first;
        for (int w = 0; w < 4; ++w) {
          if (first + w * kLanes >= elements) break;
          const T rounded = static_cast<T>(z.z[w]);
          const W value = static_cast<W>(rounded);
          noise[at + w * kLanes] = rounded;
          x_t[at + w * kLanes] = static_cast<T>(mul_add(scale, x.x[w], spread * value));
        }
      }
    });
  }
}

// x0 [B, *], alpha [B], sigma [B] -> alpha x_0 + sigma Z_k [B, M, *] and Z_k [B, M, *]
std::tuple<Tensor, Tensor> kl_components_cuda(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& sigma_in,
                                              int64_t terms, int64_t seed, int64_t step, int64_t first_sample,
                                              int64_t draws) {
  const NoiseStream stream = check_kl_components(x0_in, alpha_in, sigma_in, terms, seed, step, first_sample, draws);
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
    const auto kernel = static_cast<Draws>(draws) == Draws::kAntithetic ? kl_components_kernel<true, T>
                                                                        : kl_components_kernel<false, T>;
    kernel<<<noise_grid(rows * ((terms + kTerms - 1) / kTerms), elements), kBlock, 0, launch.stream()>>>(
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
