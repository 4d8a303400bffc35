#include "launch.cuh"

namespace diffaccel {
namespace {

// out [B, D]
template <class T>
__global__ void gaussian_noise_kernel(T* out, int64_t rows, int64_t elements, NoiseStream stream,
                                      uint32_t first_sample) {
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    T* target = out + row * elements;
    for_counters(elements, [&](uint32_t counter, int64_t first) {
      const Normals n = normal4(stream, counter, first_sample + static_cast<uint32_t>(row), 0);
      for (int w = 0; w < 4; ++w)
        if (first + w * kLanes < elements) target[first + w * kLanes] = static_cast<T>(n.z[w]);
    });
  }
}

// like [B, *] -> noise [B, *]
Tensor gaussian_noise_cuda(const Tensor& like, int64_t seed, int64_t step, int64_t first_sample) {
  STD_TORCH_CHECK(like.dim() >= 1, "gaussian_noise: expected a tensor with a sample dimension, got a scalar");
  const int64_t rows = like.size(0), elements = elements_per_row(like);
  const NoiseStream noise = check_noise_arguments("gaussian_noise", rows, elements, seed, step, first_sample);
  Tensor out = empty_contiguous(like, shape_of(like), like.scalar_type());
  if (out.numel() == 0) return out;
  const Launch launch(out);
  dispatch_floating(like.scalar_type(), "gaussian_noise", [&](auto zero) {
    using T = decltype(zero);
    gaussian_noise_kernel<T><<<noise_grid(rows, elements), kBlock, 0, launch.stream()>>>(
        static_cast<T*>(out.mutable_data_ptr()), rows, elements, noise, static_cast<uint32_t>(first_sample));
  });
  Launch::check("gaussian_noise");
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("gaussian_noise", TORCH_BOX(&diffaccel::gaussian_noise_cuda)); }
