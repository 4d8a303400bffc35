#include "../ops/kl_sample_checks.h"
#include "kl_normalise.cuh"

namespace diffaccel {
namespace {

// x0, x_t, noise [B, D]; alpha, sigma [B]; weights [B, M]
template <class T>
__global__ void kl_sample_kernel(const T* x0, const double* alpha, const double* sigma, const float* weights, T* x_t,
                                 T* noise, int64_t rows, int64_t elements, int64_t terms, NoiseStream stream,
                                 uint32_t first_sample) {
  using W = wide_t<T>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const W scale = static_cast<W>(alpha[row]), spread = static_cast<W>(sigma[row]);
    const uint32_t sample = first_sample + static_cast<uint32_t>(row);
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      float sum[4] = {};
      for (int64_t k = 0; k < terms; ++k) {
        const Normals n = normal4(stream, counter, sample, static_cast<uint32_t>(k));
        const float weight = weights[row * terms + k];
        for (int w = 0; w < 4; ++w) sum[w] = k == 0 ? weight * n.z[w] : fused(weight, n.z[w], sum[w]);
      }
      for (int w = 0; w < 4; ++w) {
        if (first + w * kLanes >= elements) break;
        const int64_t at = row * elements + first + w * kLanes;
        const T rounded = static_cast<T>(sum[w]);
        const W value = static_cast<W>(rounded);
        noise[at] = rounded;
        x_t[at] = static_cast<T>(mul_add(scale, static_cast<W>(x0[at]), spread * value));
      }
    });
  }
}

// x0 [B, *], alpha [B], coeff [B, M] -> x_t [B, *], unit-variance noise [B, *]
std::tuple<Tensor, Tensor> kl_sample_cuda(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff_in,
                                          int64_t seed, int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_kl_sample(x0_in, alpha_in, coeff_in, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0), terms = coeff_in.size(1);
  Tensor x_t = empty_contiguous(x0, shape_of(x0), x0.scalar_type());
  Tensor noise = empty_contiguous(x0, shape_of(x0), x0.scalar_type());
  if (x0.numel() == 0) return {x_t, noise};
  const Launch launch(x0);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double), coeff = contiguous_as(coeff_in, ScalarType::Double);
  Tensor weights = empty_contiguous(x0, {rows, terms}, ScalarType::Float);
  Tensor sigma = empty_contiguous(x0, {rows}, ScalarType::Double);
  float* w = static_cast<float*>(weights.mutable_data_ptr());
  double* s = static_cast<double*>(sigma.mutable_data_ptr());
  kl_normalise_kernel<<<blocks_for(rows), kBlock, 0, launch.stream()>>>(
      static_cast<const double*>(coeff.const_data_ptr()), rows, terms, w, s);
  Launch::check("kl_sample");
  dispatch_floating(x0.scalar_type(), "kl_sample", [&](auto zero) {
    using T = decltype(zero);
    kl_sample_kernel<T><<<noise_grid(rows, elements), kBlock, 0, launch.stream()>>>(
        static_cast<const T*>(x0.const_data_ptr()), static_cast<const double*>(alpha.const_data_ptr()), s, w,
        static_cast<T*>(x_t.mutable_data_ptr()), static_cast<T*>(noise.mutable_data_ptr()), rows, elements, terms,
        stream, static_cast<uint32_t>(first_sample));
  });
  Launch::check("kl_sample");
  return {x_t, noise};
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("kl_sample", TORCH_BOX(&diffaccel::kl_sample_cuda)); }
