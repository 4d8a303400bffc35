// Normal equations of a least-squares fit, streamed in float64: G = D D^T and r = D y for directions D [J, E], residual
// y.
#pragma once

#include "hd.h"

namespace diffaccel {

constexpr int kMaxDirections = 16;
constexpr int64_t kGramChunk = 16384;  // elements per partial sum: fixed, so that no thread count changes the result

// Partial sums per chunk: the upper triangle of G row by row, then r.
DIFFACCEL_HD constexpr int gram_terms(int directions) { return directions * (directions + 1) / 2 + directions; }

// <a, b> over [begin, end) in eight double lanes of fixed order.
template <class A, class B>
DIFFACCEL_INLINE double dot_chunk(const A* a, const B* b, int64_t begin, int64_t end) {
  double lanes[8] = {};
  int64_t e = begin;
  for (; e + 8 <= end; e += 8)
    for (int l = 0; l < 8; ++l) lanes[l] += static_cast<double>(a[e + l]) * static_cast<double>(b[e + l]);
  for (int l = 0; e + l < end; ++l) lanes[l] += static_cast<double>(a[e + l]) * static_cast<double>(b[e + l]);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

}  // namespace diffaccel
