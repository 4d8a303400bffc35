#include "../core/kl_expansion.h"

#include "kl_path_checks.h"

namespace diffaccel {
namespace {

// x0 [B, *], alpha [S], coeff [S, M] -> the same path at S times [B, S, *]
Tensor kl_path_cpu(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff_in, int64_t seed, int64_t step,
                   int64_t first_sample) {
  const NoiseStream stream = check_kl_path(x0_in, alpha_in, coeff_in, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0);
  const int64_t times = alpha_in.size(0), terms = coeff_in.size(1);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double), coeff = contiguous_as(coeff_in, ScalarType::Double);
  std::vector<int64_t> shape = shape_of(x0);
  shape.insert(shape.begin() + 1, times);
  Tensor out = empty_contiguous(x0, shape, x0.scalar_type());
  if (out.numel() == 0) return out;

  const double* a = static_cast<const double*>(alpha.const_data_ptr());
  const double* c = static_cast<const double*>(coeff.const_data_ptr());
  dispatch_floating(x0.scalar_type(), "kl_path", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const T* source = static_cast<const T*>(x0.const_data_ptr());
    T* path = static_cast<T*>(out.mutable_data_ptr());
    parallel_groups(rows, elements, terms, [&](int64_t row, int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        // Times in blocks whose sums stay in first-level cache; one block covers most calls.
        constexpr int64_t kBlock = 16;
        alignas(64) W sum[kBlock][kGroup];
        GroupBuffer z;
        for (int64_t g = begin; g < end; ++g) {
          const int size = group_size(g, elements);
          const T* x = source + row * elements + g * kGroup;
          for (int64_t first = 0; first < times; first += kBlock) {
            const int64_t block = times - first < kBlock ? times - first : kBlock;
            for (int64_t k = 0; k < terms; ++k) {
              normal_group(stream, g, static_cast<uint32_t>(first_sample + row), static_cast<uint32_t>(k), z.v);
              for (int64_t s = 0; s < block; ++s) {
                const W weight = static_cast<W>(c[(first + s) * terms + k]);
                W* acc = sum[s];
                if (k == 0) {
                  for (int e = 0; e < kGroup; ++e) acc[e] = weight * static_cast<W>(z.v[e]);
                } else {
                  for (int e = 0; e < kGroup; ++e) acc[e] = mul_add(weight, static_cast<W>(z.v[e]), acc[e]);
                }
              }
            }
            for (int64_t s = 0; s < block; ++s) {
              const W scale = static_cast<W>(a[first + s]);
              T* target = path + (row * times + first + s) * elements + g * kGroup;
              for (int e = 0; e < size; ++e)
                target[e] = static_cast<T>(mul_add(scale, static_cast<W>(x[e]), sum[s][e]));
            }
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
  m.def("kl_path(Tensor x0, Tensor alpha, Tensor coeff, int seed, int step, int first_sample) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("kl_path", TORCH_BOX(&diffaccel::kl_path_cpu)); }
