#include "../core/normal_group.h"

#include "kl_components_checks.h"

namespace diffaccel {
namespace {

// x0 [B, *], alpha [B], sigma [B] -> alpha x_0 + sigma Z_k [B, M, *] and Z_k [B, M, *]
std::tuple<Tensor, Tensor> kl_components_cpu(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& sigma_in,
                                             int64_t terms, int64_t seed, int64_t step, int64_t first_sample,
                                             int64_t draws) {
  const NoiseStream stream = check_kl_components(x0_in, alpha_in, sigma_in, terms, seed, step, first_sample, draws);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double), sigma = contiguous_as(sigma_in, ScalarType::Double);
  std::vector<int64_t> shape = shape_of(x0);
  shape.insert(shape.begin() + 1, terms);
  Tensor x_t = empty_contiguous(x0, shape, x0.scalar_type());
  Tensor noise = empty_contiguous(x0, shape, x0.scalar_type());
  if (x_t.numel() == 0) return {x_t, noise};

  const double* a = static_cast<const double*>(alpha.const_data_ptr());
  const double* s = static_cast<const double*>(sigma.const_data_ptr());
  dispatch_floating(x0.scalar_type(), "kl_components", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const T* source = static_cast<const T*>(x0.const_data_ptr());
    T* noised = static_cast<T*>(x_t.mutable_data_ptr());
    T* drawn = static_cast<T*>(noise.mutable_data_ptr());
    const int64_t pair = static_cast<Draws>(draws) == Draws::kAntithetic ? 2 : 1;  // terms of one drawing
    const int64_t drawings = (terms + pair - 1) / pair;
    parallel_groups(rows * drawings, elements, pair, [&](int64_t drawing, int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        const int64_t row = drawing / drawings, first = drawing % drawings * pair;
        const int64_t last = first + pair < terms ? first + pair : terms;
        const W scale = static_cast<W>(a[row]), spread = static_cast<W>(s[row]);
        alignas(64) float z[kGroup];
        for (int64_t g = begin; g < end; ++g) {
          normal_group(stream, g, static_cast<uint32_t>(first_sample + row), static_cast<uint32_t>(first), z);
          const T* x = source + row * elements + g * kGroup;
          const int size = group_size(g, elements);
          for (int64_t term = first; term < last; ++term) {
            const float sign = term == first ? 1.0f : -1.0f;
            const int64_t at = (row * terms + term) * elements + g * kGroup;
            for (int e = 0; e < size; ++e) {
              // The noise as it is returned, so that x_t and target agree in half precision too.
              const T rounded = static_cast<T>(sign * z[e]);
              const W value = static_cast<W>(rounded);
              drawn[at + e] = rounded;
              noised[at + e] = static_cast<T>(mul_add(scale, static_cast<W>(x[e]), spread * value));
            }
          }
        }
      });
    });
  });
  return {x_t, noise};
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def(
      "kl_components(Tensor x0, Tensor alpha, Tensor sigma, int num_terms, int seed, int step, int first_sample, "
      "int draws=0) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("kl_components", TORCH_BOX(&diffaccel::kl_components_cpu)); }
