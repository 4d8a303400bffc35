#include "../ops/kl_path_checks.h"
#include "kl_table.cuh"

namespace diffaccel {
namespace {

// Times summed in registers at once, all from one making of Z_k.
template <class W>
constexpr int kPathTimes = sizeof(W) == sizeof(double) ? 8 : 16;

// x0 [B, D], alpha [S] -> path [B, S, D]
template <class T, int kTimes>
__global__ void kl_path_kernel(const T* x0, const double* alpha, KlBlocks<wide_t<T>> table, T* path, int64_t rows,
                               int64_t elements, int64_t times, int64_t terms, NoiseStream stream,
                               uint32_t first_sample) {
  using W = wide_t<T>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint32_t sample = first_sample + static_cast<uint32_t>(row);
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      const Four<W, T> x(x0 + row * elements, first, elements);
      for (int64_t block = 0; block < table.blocks; ++block) {
        W sum[kTimes][4] = {};
        kl_sum_counter<false, kTimes>(stream, counter, sample, table, block, terms, sum);
        DIFFACCEL_UNROLL
        for (int s = 0; s < kTimes; ++s) {
          const int64_t time = block * kTimes + s;
          if (time >= times) break;
          const W scale = static_cast<W>(alpha[time]);
          DIFFACCEL_UNROLL
          for (int w = 0; w < 4; ++w) {
            const int64_t e = first + w * kLanes;
            if (e >= elements) break;
            path[(row * times + time) * elements + e] = static_cast<T>(mul_add(scale, x.x[w], sum[s][w]));
          }
        }
      }
    });
  }
}

// x0 [B, *], alpha [S], coeff [S, M] -> [B, S, *]
Tensor kl_path_cuda(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff, int64_t seed, int64_t step,
                    int64_t first_sample) {
  const NoiseStream stream = check_kl_path(x0_in, alpha_in, coeff, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0);
  const int64_t times = alpha_in.size(0), terms = coeff.size(1);
  std::vector<int64_t> shape = shape_of(x0);
  shape.insert(shape.begin() + 1, times);
  Tensor out = empty_contiguous(x0, shape, x0.scalar_type());
  if (out.numel() == 0) return out;
  const Launch launch(x0);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double);
  dispatch_floating(x0.scalar_type(), "kl_path", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const auto run = [&]<int kTimes>(std::integral_constant<int, kTimes>) {
      const KlDeviceTable<false, kTimes, W> table("kl_path", x0, coeff, 1, times, terms, nullptr, launch);
      kl_path_kernel<T, kTimes><<<noise_grid(rows, elements), kBlock, 0, launch.stream()>>>(
          static_cast<const T*>(x0.const_data_ptr()), static_cast<const double*>(alpha.const_data_ptr()), table.view(),
          static_cast<T*>(out.mutable_data_ptr()), rows, elements, times, terms, stream,
          static_cast<uint32_t>(first_sample));
    };
    if (times <= 4)
      run(std::integral_constant<int, 4>{});
    else
      run(std::integral_constant<int, kPathTimes<W>>{});
  });
  Launch::check("kl_path");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("kl_path", TORCH_BOX(&diffaccel::kl_path_cuda)); }
