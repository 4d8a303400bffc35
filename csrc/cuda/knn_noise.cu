#include "../core/knn_order.h"

#include "../ops/knn_noise_checks.h"
#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

// Largest sample whose g stays in shared memory between the passes; beyond it g is made again.
constexpr int64_t kSharedElements = 8192;

// Element of word 0 of counter n; words are 16 elements apart.
__device__ int64_t first_element(int64_t n) { return n / kLanes * kGroup + n % kLanes; }

// out [D] = p g + q x in W; kept [D] is g, or null
template <class W, class T>
__device__ void combine_row(const BlockTeam& team, const NoiseStream& stream, uint32_t sample, const T* x,
                            int64_t elements, const float* kept, const Combination& c, T* out) {
  const W p = static_cast<W>(c.p), q = static_cast<W>(c.q);
  if (kept != nullptr) {
    for (int64_t e = team.lane(); e < elements; e += team.lanes())
      out[e] = static_cast<T>(mul_add(p, static_cast<W>(kept[e]), q * static_cast<W>(x[e])));
    return;
  }
  for (int64_t n = team.lane(); first_element(n) < elements; n += team.lanes()) {
    const Normals g = normal4(stream, static_cast<uint32_t>(n), sample, 0);
    for (int w = 0; w < 4; ++w) {
      const int64_t e = first_element(n) + w * kLanes;
      if (e < elements) out[e] = static_cast<T>(mul_add(p, static_cast<W>(g.z[w]), q * static_cast<W>(x[e])));
    }
  }
}

// x [B, D] -> noise [B, D]; one block a sample. Device memory: x is read once (the second pass finds a row in the
// cache) and the noise written once, 8 bytes an element in float32; nothing else is stored.
template <class T>
__global__ void __launch_bounds__(kBlock)
    knn_noise_kernel(const T* x, T* out, int64_t rows, int64_t elements, NearestLaw law, Metric metric,
                     NoiseStream stream, uint32_t first_sample, bool keep) {
  __shared__ BlockTeam::Shared shared;
  extern __shared__ float row_noise[];
  BlockTeam team(shared);
  float* kept = keep ? row_noise : nullptr;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* source = x + row * elements;
    T* target = out + row * elements;
    const uint32_t sample = first_sample + static_cast<uint32_t>(row);
    if (law.k == 1) {  // the plain noise, bit for bit
      for (int64_t n = team.lane(); first_element(n) < elements; n += team.lanes()) {
        const Normals g = normal4(stream, static_cast<uint32_t>(n), sample, 0);
        for (int w = 0; w < 4; ++w) {
          const int64_t e = first_element(n) + w * kLanes;
          if (e < elements) target[e] = static_cast<T>(g.z[w]);
        }
      }
      continue;
    }
    RowSums sums{0, 0, 0};
    for (int64_t n = team.lane(); first_element(n) < elements; n += team.lanes()) {
      const Normals g = normal4(stream, static_cast<uint32_t>(n), sample, 0);
      for (int w = 0; w < 4; ++w) {
        const int64_t e = first_element(n) + w * kLanes;
        if (e >= elements) break;
        const double value = static_cast<double>(source[e]), z = static_cast<double>(g.z[w]);
        sums.x_squared = fused(value, value, sums.x_squared);
        sums.g_squared = fused(z, z, sums.g_squared);
        sums.g_dot_x = fused(z, value, sums.g_dot_x);
        if (keep) kept[e] = g.z[w];
      }
    }
    sums = {team.sum(sums.x_squared), team.sum(sums.g_squared), team.sum(sums.g_dot_x)};
    const double x_norm = sqrt(sums.x_squared);
    Combination c{NAN, NAN};
    if (x_norm < kLargestNorm) {
      const CandidatePair pair = choose(team, stream, law, metric, sample, x_norm);
      c = combine(pair, metric, x_norm, x_norm > 0 ? sums.g_dot_x / x_norm : 0.0, sums.g_squared);
    }
    if (elements > kSmallSample && fits_single(sums.x_squared)) {
      combine_row<wide_t<T>>(team, stream, sample, source, elements, kept, c, target);
    } else {
      combine_row<double>(team, stream, sample, source, elements, kept, c, target);
    }
    team.barrier();  // before the next row overwrites g
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
  const bool keep = k > 1 && elements <= kSharedElements;
  dispatch_floating(x.scalar_type(), "knn_noise", [&](auto zero) {
    using T = decltype(zero);
    knn_noise_kernel<T><<<static_cast<unsigned>(std::min<int64_t>(rows, 1 << 20)), kBlock,
                          keep ? static_cast<size_t>(elements) * sizeof(float) : 0, launch.stream()>>>(
        static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(out.mutable_data_ptr()), rows, elements,
        NearestLaw(k, elements), static_cast<Metric>(metric), stream, static_cast<uint32_t>(first_sample), keep);
  });
  Launch::check("knn_noise");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("knn_noise", TORCH_BOX(&diffaccel::knn_noise_cuda)); }
