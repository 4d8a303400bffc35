// Nearest of explicit candidates: arg-min over j of |x - n_j|^2 (l2) or of -<x, n_j> (dot), without a B x k x D array.
#pragma once

#include "gaussian_noise.h"
#include "knn_noise.h"

namespace diffaccel {

// One element's share of the score.
template <class W>
DIFFACCEL_INLINE W score_element(Metric metric, W x, W n) {
  return metric == Metric::kL2 ? (x - n) * (x - n) : -x * n;
}

// Score of one candidate, partial sums over 64 lanes in a fixed order (host loops; the lanes vectorise).
template <class T, class W = wide_t<T>>
DIFFACCEL_INLINE double score_row(Metric metric, const T* x, const T* n, int64_t elements) {
  W lanes[kGroup] = {};
  int64_t e = 0;
  for (; e + kGroup <= elements; e += kGroup)
    for (int l = 0; l < kGroup; ++l)
      lanes[l] += score_element(metric, static_cast<W>(x[e + l]), static_cast<W>(n[e + l]));
  for (int l = 0; e + l < elements; ++l)
    lanes[l] += score_element(metric, static_cast<W>(x[e + l]), static_cast<W>(n[e + l]));
  double sum = 0;
  for (int l = 0; l < kGroup; ++l) sum += static_cast<double>(lanes[l]);
  return sum;
}

}  // namespace diffaccel
