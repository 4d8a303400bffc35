#include "../core/knn_noise.h"

#include "knn_noise_checks.h"

namespace diffaccel {
namespace {

template <class T>
DIFFACCEL_INLINE double square_norm(const T* x, int64_t elements) {
  using W = wide_t<T>;
  W lanes[kGroup] = {};
  for (int64_t first = 0; first < elements; first += kGroup) {
    const int size = group_size(first / kGroup, elements);
    for (int e = 0; e < size; ++e) {
      const W value = static_cast<W>(x[first + e]);
      lanes[e] += value * value;
    }
  }
  double sum = 0;
  for (int e = 0; e < kGroup; ++e) sum += static_cast<double>(lanes[e]);
  return sum;
}

// One sample: x [D] -> noise [D].
template <class T>
DIFFACCEL_INLINE void knn_noise_sample(const NoiseStream& stream, uint32_t sample, const T* x, int64_t elements,
                                       int64_t k, Metric metric, T* out) {
  using W = wide_t<T>;
  SerialTeam team;
  const double x_norm = sqrt(square_norm(x, elements));
  const CandidatePair pair = best_candidate(team, stream, sample, k, elements, metric, x_norm);

  alignas(64) float z[kGroup];
  W squares[kGroup] = {}, products[kGroup] = {};
  for (int64_t g = 0; g < group_count(elements); ++g) {
    normal_group(stream, g, sample, 0, z);
    const int size = group_size(g, elements);
    for (int e = 0; e < size; ++e) {
      const W value = static_cast<W>(z[e]);
      squares[e] += value * value;
      products[e] += value * static_cast<W>(x[g * kGroup + e]);
      if constexpr (sizeof(T) >= sizeof(float)) out[g * kGroup + e] = static_cast<T>(z[e]);
    }
  }
  double g_squared = 0, g_dot_x = 0;
  for (int e = 0; e < kGroup; ++e) {
    g_squared += static_cast<double>(squares[e]);
    g_dot_x += static_cast<double>(products[e]);
  }
  const Combination c = combine(pair, metric, x_norm, x_norm > 0 ? g_dot_x / x_norm : 0.0, g_squared);
  const W p = static_cast<W>(c.p), q = static_cast<W>(c.q);
  for (int64_t g = 0; g < group_count(elements); ++g) {
    const int size = group_size(g, elements);
    T* target = out + g * kGroup;
    const T* source = x + g * kGroup;
    // A wide output holds g already; a narrow one has rounded it away, so g is made again.
    if constexpr (sizeof(T) < sizeof(float)) normal_group(stream, g, sample, 0, z);
    for (int e = 0; e < size; ++e) {
      W value;
      if constexpr (sizeof(T) < sizeof(float)) {
        value = static_cast<W>(z[e]);
      } else {
        value = static_cast<W>(target[e]);
      }
      target[e] = static_cast<T>(mul_add(p, value, q * static_cast<W>(source[e])));
    }
  }
}

// x [B, *] -> noise [B, *]
Tensor knn_noise_cpu(const Tensor& x_in, int64_t k, int64_t metric, int64_t seed, int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_knn_noise(x_in, k, metric, seed, step, first_sample);
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x);
  Tensor out = empty_contiguous(x, shape_of(x), x.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(x.scalar_type(), "knn_noise", [&](auto zero) {
    using T = decltype(zero);
    const T* source = static_cast<const T*>(x.const_data_ptr());
    T* target = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(0, rows, 1 + 65536 / (elements + 64 * k), [&](int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        alignas(64) float z[kGroup];
        for (int64_t row = begin; row < end; ++row) {
          const uint32_t sample = static_cast<uint32_t>(first_sample + row);
          if (k > 1) {
            knn_noise_sample(stream, sample, source + row * elements, elements, k, static_cast<Metric>(metric),
                             target + row * elements);
            continue;
          }
          for (int64_t g = 0; g < group_count(elements); ++g) {  // k = 1: the plain noise, bit for bit
            normal_group(stream, g, sample, 0, z);
            const int size = group_size(g, elements);
            for (int e = 0; e < size; ++e) target[row * elements + g * kGroup + e] = static_cast<T>(z[e]);
          }
        }
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def("knn_noise(Tensor x, int k, int metric, int seed, int step, int first_sample) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("knn_noise", TORCH_BOX(&diffaccel::knn_noise_cpu)); }
