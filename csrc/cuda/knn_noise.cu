#include "../core/knn_noise.h"

#include "../ops/knn_noise_checks.h"
#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

// x [B, D] -> noise [B, D]; one block a sample
template <class T>
__global__ void knn_noise_kernel(const T* x, T* out, int64_t rows, int64_t elements, int64_t k, Metric metric,
                                 NoiseStream stream, uint32_t first_sample) {
  using W = wide_t<T>;
  __shared__ BlockTeam::Shared shared;
  BlockTeam team(shared);
  const int64_t counters = group_count(elements) * kLanes;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* source = x + row * elements;
    T* target = out + row * elements;
    const uint32_t sample = first_sample + static_cast<uint32_t>(row);
    Combination c{1.0, 0.0};
    if (k > 1) {
      double x_squared = 0, g_squared = 0, g_dot_x = 0;
      for (int64_t n = team.lane(); n < counters; n += team.lanes()) {
        const Normals g = normal4(stream, static_cast<uint32_t>(n), sample, 0);
        for (int w = 0; w < 4; ++w) {
          const int64_t e = n / kLanes * kGroup + n % kLanes + w * kLanes;
          if (e >= elements) break;
          const double value = static_cast<double>(source[e]), z = static_cast<double>(g.z[w]);
          x_squared += value * value;
          g_squared += z * z;
          g_dot_x += z * value;
        }
      }
      const double x_norm = sqrt(team.sum(x_squared));
      g_squared = team.sum(g_squared);
      g_dot_x = team.sum(g_dot_x);
      const CandidatePair pair = best_candidate(team, stream, sample, k, elements, metric, x_norm);
      c = combine(pair, metric, x_norm, x_norm > 0 ? g_dot_x / x_norm : 0.0, g_squared);
    }
    const W p = static_cast<W>(c.p), q = static_cast<W>(c.q);
    for (int64_t n = team.lane(); n < counters; n += team.lanes()) {
      const Normals g = normal4(stream, static_cast<uint32_t>(n), sample, 0);
      for (int w = 0; w < 4; ++w) {
        const int64_t e = n / kLanes * kGroup + n % kLanes + w * kLanes;
        if (e >= elements) break;
        const W z = static_cast<W>(g.z[w]);
        target[e] = static_cast<T>(k > 1 ? mul_add(p, z, q * static_cast<W>(source[e])) : z);
      }
    }
  }
}

// x [B, *] -> noise [B, *]
Tensor knn_noise_cuda(const Tensor& x_in, int64_t k, int64_t metric, int64_t seed, int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_knn_noise(x_in, k, metric, seed, step, first_sample);
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x);
  Tensor out = empty_contiguous(x, shape_of(x), x.scalar_type());
  if (out.numel() == 0) return out;
  const Launch launch(x);
  dispatch_floating(x.scalar_type(), "knn_noise", [&](auto zero) {
    using T = decltype(zero);
    knn_noise_kernel<T><<<static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20)), kBlock, 0, launch.stream()>>>(
        static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), rows, elements, k,
        static_cast<Metric>(metric), stream, static_cast<uint32_t>(first_sample));
  });
  Launch::check("knn_noise");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("knn_noise", TORCH_BOX(&diffaccel::knn_noise_cuda)); }
