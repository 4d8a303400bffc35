#include "../ops/kl_sample_checks.h"
#include "kl_table.cuh"

namespace diffaccel {
namespace {

// x0 [B, D]; alpha, sigma [B, S]; x_t, noise [B, S, D]
template <class T, int kTimes>
__global__ void kl_sample_kernel(const T* x0, const double* alpha, const double* sigma, KlBlocks<float> table, T* x_t,
                                 T* noise, int64_t rows, int64_t elements, int64_t times, int64_t terms,
                                 NoiseStream stream, uint32_t first_sample) {
  using W = wide_t<T>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint32_t sample = first_sample + static_cast<uint32_t>(row);
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      const Four<W, T> x(x0 + row * elements, first, elements);
      for (int64_t block = 0; block < table.blocks; ++block) {
        float sum[kTimes][4] = {};
        kl_sum_counter<true, kTimes>(stream, counter, sample, table, row * table.blocks + block, terms, sum);
        DIFFACCEL_UNROLL
        for (int s = 0; s < kTimes; ++s) {
          if (block * kTimes + s >= times) break;
          const int64_t time = row * times + block * kTimes + s;
          const W scale = static_cast<W>(alpha[time]), spread = static_cast<W>(sigma[time]);
          DIFFACCEL_UNROLL
          for (int w = 0; w < 4; ++w) {
            const int64_t e = first + w * kLanes;
            if (e >= elements) break;
            const T rounded = static_cast<T>(sum[s][w]);
            const W value = static_cast<W>(rounded);
            noise[time * elements + e] = rounded;
            x_t[time * elements + e] = static_cast<T>(mul_add(scale, x.x[w], spread * value));
          }
        }
      }
    });
  }
}

// x0 [B, *], alpha [B] or [B, S], coeff [B, M] or [B, S, M] -> x_t and unit-variance noise, [B, *] or [B, S, *]
std::tuple<Tensor, Tensor> kl_sample_cuda(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff,
                                          int64_t seed, int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_kl_sample(x0_in, alpha_in, coeff, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0), terms = coeff.size(coeff.dim() - 1);
  const int64_t times = alpha_in.dim() == 2 ? alpha_in.size(1) : 1;
  Tensor x_t = empty_contiguous(x0, kl_sample_shape(x0, alpha_in), x0.scalar_type());
  Tensor noise = empty_contiguous(x0, kl_sample_shape(x0, alpha_in), x0.scalar_type());
  if (x_t.numel() == 0) return {x_t, noise};
  const Launch launch(x0);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double);
  Tensor sigma = empty_contiguous(x0, {rows, times}, ScalarType::Double);
  double* s = static_cast<double*>(sigma.mutable_data_ptr());
  const auto run = [&]<int kTimes>(std::integral_constant<int, kTimes>) {
    const KlDeviceTable<true, kTimes, float> table("kl_sample", x0, coeff, rows, times, terms, s, launch);
    dispatch_floating(x0.scalar_type(), "kl_sample", [&](auto zero) {
      using T = decltype(zero);
      kl_sample_kernel<T, kTimes><<<noise_grid(rows, elements), kBlock, 0, launch.stream()>>>(
          static_cast<const T*>(x0.const_data_ptr()), static_cast<const double*>(alpha.const_data_ptr()), s,
          table.view(), static_cast<T*>(x_t.mutable_data_ptr()), static_cast<T*>(noise.mutable_data_ptr()), rows,
          elements, times, terms, stream, static_cast<uint32_t>(first_sample));
    });
    Launch::check("kl_sample");
  };
  if (times == 1)
    run(std::integral_constant<int, 1>{});
  else
    run(std::integral_constant<int, 8>{});
  return {x_t, noise};
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("kl_sample", TORCH_BOX(&diffaccel::kl_sample_cuda)); }
