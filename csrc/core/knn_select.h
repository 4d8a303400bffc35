// Nearest of explicit candidates: arg-min over j of |x - n_j|^2 (l2) or of -<x, n_j> (dot), without a B x k x D array.
//
// The answer is defined by score_row. For a pool that all samples share, one matrix product gives every <x, n_j> and so
// an estimate of every score; a bound on its rounding errors leaves one or two candidates a sample that could be the
// best, and only they are scored. So the answer is that of scoring them all, whatever the matrix product's order of
// additions.
#pragma once

#include "gaussian_noise.h"
#include "knn_noise.h"

namespace diffaccel {

// Elements after which partial sums move to double, and of one matrix product.
constexpr int64_t kSelectChunk = 4096;

// One element's share of the score.
template <class W>
DIFFACCEL_INLINE W score_element(Metric metric, W x, W n) {
  return metric == Metric::kL2 ? (x - n) * (x - n) : -x * n;
}

// Sum of share(e) over the elements: partial sums over 64 lanes in a fixed order (host loops; the lanes vectorise).
template <class W, class F>
DIFFACCEL_INLINE double sum_elements(int64_t elements, const F& share) {
  double sum = 0;
  const int64_t whole = elements / kGroup * kGroup;
  for (int64_t first = 0; first < whole; first += kSelectChunk) {
    const int64_t end = whole - first < kSelectChunk ? whole : first + kSelectChunk;
    W lanes[kGroup] = {};
    for (int64_t e = first; e < end; e += kGroup)
      for (int l = 0; l < kGroup; ++l) lanes[l] += share(e + l);
    double wide[8] = {};
    for (int l = 0; l < kGroup; ++l) wide[l % 8] += static_cast<double>(lanes[l]);
    for (const double part : wide) sum += part;
  }
  for (int64_t e = whole; e < elements; ++e) sum += static_cast<double>(share(e));
  return sum;
}

// Score of one candidate.
template <class T, class W = wide_t<T>>
DIFFACCEL_INLINE double score_row(Metric metric, const T* x, const T* n, int64_t elements) {
  if (metric == Metric::kL2)
    return sum_elements<W>(
        elements, [&](int64_t e) { return score_element(Metric::kL2, static_cast<W>(x[e]), static_cast<W>(n[e])); });
  return sum_elements<W>(
      elements, [&](int64_t e) { return score_element(Metric::kDot, static_cast<W>(x[e]), static_cast<W>(n[e])); });
}

template <class T, class W = wide_t<T>>
DIFFACCEL_INLINE double square_norm(const T* x, int64_t elements) {
  return sum_elements<W>(elements, [&](int64_t e) { return static_cast<W>(x[e]) * static_cast<W>(x[e]); });
}

// Estimate of a score less |x|^2, which all candidates share: n_weight |n|^2 - dot_weight <x, n>.
struct EstimateWeights {
  float n, dot;
  DIFFACCEL_HD explicit EstimateWeights(Metric metric)
      : n(metric == Metric::kL2 ? 1.0f : 0.0f), dot(metric == Metric::kL2 ? 2.0f : 1.0f) {}
};
template <class W>
DIFFACCEL_INLINE W estimate(const EstimateWeights& weights, W dot, W n_squared) {
  return mul_add(static_cast<W>(weights.n), n_squared, -static_cast<W>(weights.dot) * dot);
}

// Bound on |estimate + |x|^2 - score_row| for vectors of these lengths. A product's error is at most (terms + a few)
// rounding units times |x||n| in any order of additions (Higham, "Accuracy and Stability of Numerical
// Algorithms", 3.1). A float32 product may also round its inputs, to TF32 or bfloat16, if torch's matmul precision says
// so: 2^-8 |x||n|. The sums over lanes have terms / 64.
template <class W>
DIFFACCEL_HD inline double estimate_error(int64_t elements, double x_norm, double n_norm) {
  const bool wide = sizeof(W) == sizeof(double);
  const double unit = wide ? 1.1102230246251565e-16 : 5.9604644775390625e-8, inputs = wide ? 0.0 : 0.00392;
  const double count = static_cast<double>(elements), both = x_norm + n_norm;
  return 2.0 * (unit * (count + 16.0) + inputs) * x_norm * n_norm + 4.0 * unit * (count / 64.0 + 16.0) * both * both;
}

// Whether a candidate may be the best, where every score is at most `highest` for some candidate. Also true for an
// estimate that is not finite: it says nothing.
template <class W>
DIFFACCEL_INLINE bool may_be_best(W value, W highest) {
  return !((value > highest) & (value < INFINITY));  // no branch: lanes run it together
}

}  // namespace diffaccel
