#include "kl_sample_checks.h"
#include "kl_table.h"

namespace diffaccel {
namespace {

// x0 [B, *], alpha [B] or [B, S], coeff [B, M] or [B, S, M] -> x_t and unit-variance noise, [B, *] or [B, S, *]
std::tuple<Tensor, Tensor> kl_sample_cpu(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff, int64_t seed,
                                         int64_t step, int64_t first_sample) {
  const NoiseStream stream = check_kl_sample(x0_in, alpha_in, coeff, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0), terms = coeff.size(coeff.dim() - 1);
  const int64_t times = alpha_in.dim() == 2 ? alpha_in.size(1) : 1;
  Tensor x_t = empty_contiguous(x0, kl_sample_shape(x0, alpha_in), x0.scalar_type());
  Tensor noise = empty_contiguous(x0, kl_sample_shape(x0, alpha_in), x0.scalar_type());
  if (x_t.numel() == 0) return {x_t, noise};

  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double);
  const double* a = static_cast<const double*>(alpha.const_data_ptr());
  std::vector<double> sigma(static_cast<size_t>(rows * times));
  with_coefficients(coeff, [&](const auto* c) {
    for (int64_t n = 0; n < rows * times; ++n) sigma[static_cast<size_t>(n)] = kl_sigma(c + n * terms, terms);
  });
  const KlTable<float> table(coeff, rows, times, terms, sigma.data());

  dispatch_floating(x0.scalar_type(), "kl_sample", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const T* source = static_cast<const T*>(x0.const_data_ptr());
    T* noised = static_cast<T*>(x_t.mutable_data_ptr());
    T* drawn = static_cast<T*>(noise.mutable_data_ptr());
    parallel_groups(rows, elements, table.cost(), [&](int64_t row, int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        alignas(64) float sum[kKlTimes][kGroup];
        for (int64_t g = begin; g < end; ++g) {
          const int size = group_size(g, elements);
          const T* x = source + row * elements + g * kGroup;
          for (int64_t block = 0; block < table.blocks(); ++block) {
            table.sum<true>(stream, g, static_cast<uint32_t>(first_sample + row), row, block, sum);
            for (int s = 0; s < table.times_of(block); ++s) {
              const int64_t time = row * times + block * kKlTimes + s, at = time * elements + g * kGroup;
              const W scale = static_cast<W>(a[time]), spread = static_cast<W>(sigma[static_cast<size_t>(time)]);
              for (int e = 0; e < size; ++e) {
                // The noise as it is returned, so that x_t and target agree in half precision too.
                const T rounded = static_cast<T>(sum[s][e]);
                const W value = static_cast<W>(rounded);
                drawn[at + e] = rounded;
                noised[at + e] = static_cast<T>(mul_add(scale, static_cast<W>(x[e]), spread * value));
              }
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
  m.def("kl_sample(Tensor x0, Tensor alpha, Tensor coeff, int seed, int step, int first_sample) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("kl_sample", TORCH_BOX(&diffaccel::kl_sample_cpu)); }
