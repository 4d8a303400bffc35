// What every op shares: the stable-ABI headers, dtype dispatch, shape checks, and row-parallel loops.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <tuple>
#include <vector>

#include "../core/gaussian_noise.h"
#include "../core/simd.h"

namespace diffaccel {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Calls f(T{}) with the element type of a floating tensor.
template <class F>
void dispatch_floating(ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(c10::Half{});
    case ScalarType::BFloat16: return f(c10::BFloat16{});
    default: STD_TORCH_CHECK(false, op, ": expected a float32, float64, float16 or bfloat16 tensor");
  }
}

inline int64_t elements_per_row(const Tensor& x) {
  int64_t elements = 1;
  for (int64_t d = 1; d < x.dim(); ++d) elements *= x.size(d);
  return elements;
}

// Checks the arguments that every counter-based op has; `rows` samples of `elements` elements.
inline NoiseStream check_noise_arguments(const char* op, int64_t rows, int64_t elements, int64_t seed, int64_t step,
                                         int64_t first_sample) {
  STD_TORCH_CHECK(step >= 0 && step < kMaxIndex, op, ": step must be in [0, 2^32), got ", step);
  STD_TORCH_CHECK(first_sample >= 0 && first_sample + rows <= kMaxIndex, op,
                  ": first_sample must be >= 0 and first_sample + rows <= 2^32, got ", first_sample);
  STD_TORCH_CHECK(elements <= kMaxElements, op, ": a sample has at most 2^34 elements, got ", elements);
  return {static_cast<uint64_t>(seed), static_cast<uint32_t>(step)};
}

inline Tensor contiguous_as(const Tensor& x, ScalarType dtype) {
  return torch::stable::contiguous(x.scalar_type() == dtype ? x : torch::stable::to(x, dtype));
}

// Asks for huge pages where memory is large: what an allocator has not had before is else paid for 4 KB at a time,
// which takes longer than writing it. A hint, which may be ignored.
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline Tensor empty_contiguous(const Tensor& like, const std::vector<int64_t>& shape, ScalarType dtype) {
  Tensor out = torch::stable::new_empty(like, {shape.data(), shape.size()}, dtype);
  if (out.is_cpu()) prefer_huge_pages(out.data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  return out;
}

inline std::vector<int64_t> shape_of(const Tensor& x) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < x.dim(); ++d) shape.push_back(x.size(d));
  return shape;
}

// Runs body(row, first_group, end_group) over all groups of all rows, in parallel. The split does not change results:
// a group's numbers depend on nothing but its position.
template <class F>
void parallel_groups(int64_t rows, int64_t elements, int64_t cost_per_group, const F& body) {
  const int64_t groups = group_count(elements);
  const int64_t grain = 1 + 1024 / (cost_per_group < 1 ? 1 : cost_per_group);
  torch::stable::parallel_for(0, rows * groups, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t row = begin / groups;
      const int64_t row_end = (row + 1) * groups < end ? (row + 1) * groups : end;
      body(row, begin - row * groups, row_end - row * groups);
      begin = row_end;
    }
  });
}

}  // namespace diffaccel
