#include "../core/knn_order.h"
#include "../core/normal_group.h"

#include <type_traits>

#include "knn_noise_checks.h"

namespace diffaccel {
namespace {

// Elements of a 16-bit sample whose g is kept in float; beyond it is made again.
constexpr int64_t kKeptElements = 16384;

// Sums over 16 lanes in W, moved to double every 64 groups.
template <class W>
struct LaneSums {
  W x_squared[kLanes] = {}, g_squared[kLanes] = {}, g_dot_x[kLanes] = {};

  DIFFACCEL_INLINE void add(int lane, W g, W x) {
    x_squared[lane] = fused(x, x, x_squared[lane]);
    g_squared[lane] = fused(g, g, g_squared[lane]);
    g_dot_x[lane] = fused(g, x, g_dot_x[lane]);
  }
  DIFFACCEL_INLINE void move_to(RowSums& sums) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.x_squared += static_cast<double>(x_squared[lane]);
      sums.g_squared += static_cast<double>(g_squared[lane]);
      sums.g_dot_x += static_cast<double>(g_dot_x[lane]);
      x_squared[lane] = g_squared[lane] = g_dot_x[lane] = 0;
    }
  }
};

// Makes g [D], stores it in kept [D] unless that is null, and sums on the way.
template <class W, class T, class G>
DIFFACCEL_INLINE RowSums generate(const NoiseStream& stream, uint32_t sample, const T* x, int64_t elements, G* kept) {
  RowSums sums{0, 0, 0};
  LaneSums<W> lanes;
  alignas(64) float z[kGroup];
  const int64_t full = elements / kGroup;
  for (int64_t g = 0; g < full; ++g) {
    normal_group(stream, g, sample, 0, z);
    const T* source = x + g * kGroup;
    for (int word = 0; word < 4; ++word)
      for (int lane = 0; lane < kLanes; ++lane) {
        const int e = word * kLanes + lane;
        lanes.add(lane, static_cast<W>(z[e]), static_cast<W>(source[e]));
      }
    if (kept != nullptr)
      for (int e = 0; e < kGroup; ++e) kept[g * kGroup + e] = static_cast<G>(z[e]);
    if (g % 64 == 63) lanes.move_to(sums);
  }
  if (full * kGroup < elements) {
    normal_group(stream, full, sample, 0, z);
    for (int e = 0; full * kGroup + e < elements; ++e) {
      lanes.add(e % kLanes, static_cast<W>(z[e]), static_cast<W>(x[full * kGroup + e]));
      if (kept != nullptr) kept[full * kGroup + e] = static_cast<G>(z[e]);
    }
  }
  lanes.move_to(sums);
  return sums;
}

// out = p g + q x in W; kept [D] is g, or null: then g is made again.
template <class W, class T, class G>
DIFFACCEL_INLINE void combine_row(const NoiseStream& stream, uint32_t sample, const T* x, int64_t elements,
                                  const G* kept, const Combination& c, T* out) {
  const W p = static_cast<W>(c.p), q = static_cast<W>(c.q);
  if (kept != nullptr) {
    for (int64_t e = 0; e < elements; ++e)
      out[e] = static_cast<T>(mul_add(p, static_cast<W>(kept[e]), q * static_cast<W>(x[e])));
    return;
  }
  alignas(64) float z[kGroup];
  for (int64_t g = 0; g < group_count(elements); ++g) {
    normal_group(stream, g, sample, 0, z);
    const int size = group_size(g, elements);
    for (int e = 0; e < size; ++e)
      out[g * kGroup + e] = static_cast<T>(mul_add(p, static_cast<W>(z[e]), q * static_cast<W>(x[g * kGroup + e])));
  }
}

// One sample in W: x [D] -> noise [D]. False where |x|^2 leaves W's range, unless `last`.
template <class W, class T, class G>
DIFFACCEL_INLINE bool knn_noise_row(const NoiseStream& stream, const NearestLaw& law, Metric metric, uint32_t sample,
                                    const T* x, int64_t elements, G* kept, bool last, T* out) {
  const RowSums sums = generate<W>(stream, sample, x, elements, kept);
  if (!last && !fits_single(sums.x_squared)) return false;
  const double x_norm = sqrt(sums.x_squared);
  Combination c{NAN, NAN};
  if (x_norm < kLargestNorm) {
    SerialTeam team;
    const CandidatePair pair = metric == Metric::kL2 && law.k <= kDirectK
                                   ? nearest_drawn_lanes(stream, law.across, sample, law.k, x_norm)
                                   : choose(team, stream, law, metric, sample, x_norm);
    c = combine(pair, metric, x_norm, x_norm > 0 ? sums.g_dot_x / x_norm : 0.0, sums.g_squared);
  }
  combine_row<W>(stream, sample, x, elements, kept, c, out);
  return true;
}

// The plain noise of one sample.
template <class T>
DIFFACCEL_INLINE void plain_row(const NoiseStream& stream, uint32_t sample, int64_t elements, T* out) {
  alignas(64) float z[kGroup];
  for (int64_t g = 0; g < group_count(elements); ++g) {
    normal_group(stream, g, sample, 0, z);
    const int size = group_size(g, elements);
    for (int e = 0; e < size; ++e) out[g * kGroup + e] = static_cast<T>(z[e]);
  }
}

// x [B, *] -> noise [B, *]
Tensor knn_noise_cpu(const Tensor& x_in, int64_t k, int64_t metric_code, int64_t seed, int64_t step,
                     int64_t first_sample) {
  const NoiseStream stream = check_knn_noise(x_in, k, metric_code, seed, step, first_sample);
  const Tensor x = torch::stable::contiguous(x_in);
  const int64_t rows = x.size(0), elements = elements_per_row(x);
  Tensor out = empty_contiguous(x, shape_of(x), x.scalar_type());
  if (out.numel() == 0) return out;
  const NearestLaw law(k, elements);
  const Metric metric = static_cast<Metric>(metric_code);
  dispatch_floating(x.scalar_type(), "knn_noise", [&](auto zero) {
    using T = decltype(zero);
    constexpr bool kNarrow = sizeof(T) < sizeof(float);
    using G = std::conditional_t<kNarrow, float, T>;
    const T* source = static_cast<const T*>(x.const_data_ptr());
    T* target = static_cast<T*>(out.mutable_data_ptr());
    torch::stable::parallel_for(0, rows, 1 + 65536 / (elements + 1024), [&](int64_t begin, int64_t end) {
      std::vector<float> scratch(kNarrow && k > 1 && elements <= kKeptElements ? static_cast<size_t>(elements) : 0);
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        for (int64_t row = begin; row < end; ++row) {
          const uint32_t sample = static_cast<uint32_t>(first_sample + row);
          const T* from = source + row * elements;
          T* to = target + row * elements;
          if (k == 1) {
            plain_row(stream, sample, elements, to);
            continue;
          }
          G* kept = nullptr;  // a wide output holds g until the second pass
          if constexpr (kNarrow) {
            if (!scratch.empty()) kept = scratch.data();
          } else {
            kept = to;
          }
          if (elements > kSmallSample &&
              knn_noise_row<wide_t<T>>(stream, law, metric, sample, from, elements, kept, false, to))
            continue;
          knn_noise_row<double>(stream, law, metric, sample, from, elements, kept, true, to);
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
