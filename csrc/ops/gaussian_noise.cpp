#include "../core/normal_group.h"

#include "common.h"

namespace diffaccel {
namespace {

// like [B, *] -> noise [B, *]
Tensor gaussian_noise_cpu(const Tensor& like, int64_t seed, int64_t step, int64_t first_sample) {
  STD_TORCH_CHECK(like.dim() >= 1, "gaussian_noise: expected a tensor with a sample dimension, got a scalar");
  const int64_t rows = like.size(0), elements = elements_per_row(like);
  const NoiseStream stream = check_noise_arguments("gaussian_noise", rows, elements, seed, step, first_sample);
  Tensor out = empty_contiguous(like, shape_of(like), like.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(like.scalar_type(), "gaussian_noise", [&](auto zero) {
    using T = decltype(zero);
    T* data = static_cast<T*>(out.mutable_data_ptr());
    parallel_groups(rows, elements, 1, [&](int64_t row, int64_t begin, int64_t end) {
      const uint32_t sample = static_cast<uint32_t>(first_sample + row);
      T* target = data + row * elements;
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        alignas(64) float z[kGroup];
        for (int64_t g = begin; g < end; ++g) {
          normal_group(stream, g, sample, 0, z);
          const int size = group_size(g, elements);
          for (int e = 0; e < size; ++e) target[g * kGroup + e] = static_cast<T>(z[e]);
        }
      });
    });
  });
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def("gaussian_noise(Tensor like, int seed, int step, int first_sample) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("gaussian_noise", TORCH_BOX(&diffaccel::gaussian_noise_cpu)); }
