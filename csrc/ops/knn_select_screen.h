// The matrix product behind knn_select with a shared pool, the same for every device.
#pragma once

#include <algorithm>

#include "../core/knn_select.h"
#include "common.h"

namespace diffaccel {

// Few samples or candidates share too little for a product; both ways give the same answer.
inline bool screening_pays(int64_t rows, int64_t k, int64_t elements) { return rows >= 4 && k >= 4 && elements >= 1; }

// Samples whose estimates are held at a time: 16 MiB of float32, and for a huge pool 16 samples.
inline int64_t screened_rows(int64_t rows, int64_t k) {
  const int64_t most = std::max<int64_t>(16, (int64_t{1} << 22) / k);
  return std::min(rows, most);
}

// x [B, D], pool [k, D] -> float32 (float64 for float64) [B, k] of <x_i, n_j>. A 16-bit pool is widened by chunks of D.
inline Tensor all_products(Tensor x, Tensor pool, int64_t elements) {
  const ScalarType wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  if (x.scalar_type() == wide) return torch::stable::matmul(x, torch::stable::transpose(pool, 0, 1));
  Tensor sum = torch::stable::new_zeros(x, {{x.size(0), pool.size(0)}}, wide);
  for (int64_t first = 0; first < elements; first += kSelectChunk) {
    const int64_t length = std::min(kSelectChunk, elements - first);
    const Tensor part = contiguous_as(torch::stable::narrow(x, 1, first, length), wide);
    const Tensor other = contiguous_as(torch::stable::narrow(pool, 1, first, length), wide);
    sum = torch::stable::subtract(sum, torch::stable::matmul(part, torch::stable::transpose(other, 0, 1)), -1.0);
  }
  return sum;
}

}  // namespace diffaccel
