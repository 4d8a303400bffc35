#include <algorithm>

#include "kl_path_checks.h"
#include "kl_table.h"

namespace diffaccel {
namespace {

// x0 [B, *], alpha [S], coeff [S, M] -> the same path at S times [B, S, *]
Tensor kl_path_cpu(const Tensor& x0_in, const Tensor& alpha_in, const Tensor& coeff, int64_t seed, int64_t step,
                   int64_t first_sample) {
  const NoiseStream stream = check_kl_path(x0_in, alpha_in, coeff, seed, step, first_sample);
  const Tensor x0 = torch::stable::contiguous(x0_in);
  const int64_t rows = x0.size(0), elements = elements_per_row(x0);
  const int64_t times = alpha_in.size(0), terms = coeff.size(1);
  const Tensor alpha = contiguous_as(alpha_in, ScalarType::Double);
  std::vector<int64_t> shape = shape_of(x0);
  shape.insert(shape.begin() + 1, times);
  Tensor out = empty_contiguous(x0, shape, x0.scalar_type());
  if (out.numel() == 0) return out;

  const double* a = static_cast<const double*>(alpha.const_data_ptr());
  dispatch_floating(x0.scalar_type(), "kl_path", [&](auto zero) {
    using T = decltype(zero);
    using W = wide_t<T>;
    const T* source = static_cast<const T*>(x0.const_data_ptr());
    T* path = static_cast<T*>(out.mutable_data_ptr());
    const KlTable<W> table(coeff, 1, times, terms, nullptr);
    parallel_groups(rows, elements, table.cost(), [&](int64_t row, int64_t begin, int64_t end) {
      with_simd([&]() DIFFACCEL_SIMD_BODY {
        alignas(64) W sum[kKlTimes][kGroup];
        for (int64_t g = begin; g < end; ++g) {
          const int size = group_size(g, elements);
          const T* x = source + row * elements + g * kGroup;
          for (int64_t block = 0; block < table.blocks(); ++block) {
            const int64_t first = block * kKlTimes;
            const int here = table.times_of(block);
            std::fill(sum[0], sum[0] + here * kGroup, W{0});  // for times without noise
            table.template sum<false>(stream, g, static_cast<uint32_t>(first_sample + row), 0, block, sum);
            for (int s = 0; s < here; ++s) {
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
