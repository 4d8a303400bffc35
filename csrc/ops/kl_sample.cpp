#include "../core/kl_expansion.h"

#include "kl_sample_checks.h"

namespace diffaccel {
namespace {

// x0 [B, *], alpha [B], coeff [B, M] -> x_t [B, *], unit-variance noise [B, *]
std::tuple<Tensor, Tensor> kl_sample_cpu(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff_in,
                                         int64_t seed, int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_kl_sample(x0_in, alpha_in, coeff_in, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0), terms = coeff_in.size(1);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double), coeff = contiguous_as(coeff_in, ScalarType::Double);
  Tensor x_t = empty_contiguous(x0, shape_of(x0), x0.scalar_type());
  Tensor noise = empty_contiguous(x0, shape_of(x0), x0.scalar_type());
  if (x0.numel() == 0) return {x_t, noise};

  const double* a = static_cast<const double*>(alpha.const_data_ptr());
  const double* c = static_cast<const double*>(coeff.const_data_ptr());
  std::vector<float> weights(static_cast<size_t>(rows * terms));
  std::vector<double> sigma(static_cast<size_t>(rows));
  for (int64_t row = 0; row < rows; ++row)
    sigma[static_cast<size_t>(row)] = kl_normalise(c + row * terms, terms, weights.data() + row * terms);

  dispatch_floating(x0.scalar_type(), "kl_sample", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const T* source = static_cast<const T*>(x0.const_data_ptr());
    T* noised = static_cast<T*>(x_t.mutable_data_ptr());
    T* drawn = static_cast<T*>(noise.mutable_data_ptr());
    parallel_groups(rows, elements, terms, [&](int64_t row, int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        const W scale = static_cast<W>(a[row]), spread = static_cast<W>(sigma[static_cast<size_t>(row)]);
        GroupBuffer z;
        for (int64_t g = begin; g < end; ++g) {
          kl_sum_group(stream, g, static_cast<uint32_t>(first_sample + row), weights.data() + row * terms, terms, z);
          const int64_t at = row * elements + g * kGroup;
          const int size = group_size(g, elements);
          for (int e = 0; e < size; ++e) {
            // The noise as it is returned, so that x_t and target agree in half precision too.
            const T rounded = static_cast<T>(z.v[e]);
            const W value = static_cast<W>(rounded);
            drawn[at + e] = rounded;
            noised[at + e] = static_cast<T>(mul_add(scale, static_cast<W>(source[at + e]), spread * value));
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
  m.def("kl_sample(Tensor x0, Tensor alpha, Tensor coeff, int seed, int step, int first_sample) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("kl_sample", TORCH_BOX(&diffaccel::kl_sample_cpu)); }
