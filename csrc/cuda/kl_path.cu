#include "../core/kl_expansion.h"
#include "../ops/kl_path_checks.h"
#include "launch.cuh"

namespace diffaccel {
namespace {

constexpr int kTimes = 8;  // times summed in registers at once

// x0 [B, D], alpha [S], coeff [S, M] -> path [B, S, D]
template <class T>
__global__ void kl_path_kernel(const T* x0, const double* alpha, const double* coeff, T* path, int64_t rows,
                               int64_t elements, int64_t times, int64_t terms, NoiseStream stream,
                               uint32_t first_sample) {
  using W = wide_t<T>;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint32_t sample = first_sample + static_cast<uint32_t>(row);
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      for (int64_t begin = 0; begin < times; begin += kTimes) {
        const int block = static_cast<int>(times - begin < kTimes ? times - begin : kTimes);
        W sum[kTimes][4] = {};
        for (int64_t k = 0; k < terms; ++k) {
          const Normals n = normal4(stream, counter, sample, static_cast<uint32_t>(k));
          DIFFACCEL_UNROLL
          for (int s = 0; s < kTimes; ++s) {
            if (s >= block) break;
            const W weight = static_cast<W>(coeff[(begin + s) * terms + k]);
            for (int w = 0; w < 4; ++w)
              sum[s][w] = k == 0 ? weight * static_cast<W>(n.z[w]) : mul_add(weight, static_cast<W>(n.z[w]), sum[s][w]);
          }
        }
        DIFFACCEL_UNROLL
        for (int s = 0; s < kTimes; ++s) {
          if (s >= block) break;
          const W scale = static_cast<W>(alpha[begin + s]);
          for (int w = 0; w < 4; ++w) {
            const int64_t e = first + w * kLanes;
            if (e < elements)
              path[(row * times + begin + s) * elements + e] =
                  static_cast<T>(mul_add(scale, static_cast<W>(x0[row * elements + e]), sum[s][w]));
          }
        }
      }
    });
  }
}

// x0 [B, *], alpha [S], coeff [S, M] -> [B, S, *]
Tensor kl_path_cuda(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff_in, int64_t seed, int64_t step,
                    int64_t first_sample) {
  const NoiseStream stream = check_kl_path(x0_in, alpha_in, coeff_in, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0);
  const int64_t times = alpha_in.size(0), terms = coeff_in.size(1);
  std::vector<int64_t> shape = shape_of(x0);
  shape.insert(shape.begin() + 1, times);
  Tensor out = empty_contiguous(x0, shape, x0.scalar_type());
  if (out.numel() == 0) return out;
  const Launch launch(x0);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double), coeff = contiguous_as(coeff_in, ScalarType::Double);
  dispatch_floating(x0.scalar_type(), "kl_path", [&](auto zero) {
    using T = decltype(zero);
    kl_path_kernel<T><<<noise_grid(rows, elements), kBlock, 0, launch.stream()>>>(
        static_cast<const T*>(x0.const_data_ptr()), static_cast<const double*>(alpha.const_data_ptr()),
        static_cast<const double*>(coeff.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), rows, elements,
        times, terms, stream, static_cast<uint32_t>(first_sample));
  });
  Launch::check("kl_path");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("kl_path", TORCH_BOX(&diffaccel::kl_path_cuda)); }
