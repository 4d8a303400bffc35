// One solver update, x_next = a x + sum_j b_j m_j, in one pass over memory.
#pragma once

#include "hd.h"

namespace diffaccel {

constexpr int kMaxOutputs = 16;  // stored model outputs that one update may combine

template <class W>
struct StepCoefficients {
  W a;
  W b[kMaxOutputs];
  int count;
};

// Element of the update; products and sums are rounded one by one, left to right, as eager tensor code does.
template <class X, class M, class W = wide_t<X>>
DIFFACCEL_INLINE W solver_step_element(const StepCoefficients<W>& c, const X* x, const M* const* outputs, int64_t i) {
  W acc = c.a * static_cast<W>(x[i]);
  for (int j = 0; j < c.count; ++j) acc = mul_add(c.b[j], static_cast<W>(outputs[j][i]), acc);
  return acc;
}

// target[e] = a source[e] + sum_j b[j] outputs[j][e] for e in [first, end): the same roundings, J known to the compiler
// so that the sum stays in a register. target may be source or an output, since an element reads no other.
template <int J, class Source, class M, class Target, class W>
DIFFACCEL_INLINE void solver_step_span(W a, const W* b, const Source* source, const M* const* outputs, Target* target,
                                       int64_t first, int64_t end) {
#if !defined(__CUDACC__)
#pragma GCC ivdep
#endif
  for (int64_t e = first; e < end; ++e) {
    W acc = a * static_cast<W>(source[e]);
    DIFFACCEL_UNROLL
    for (int j = 0; j < J; ++j) acc = mul_add(b[j], static_cast<W>(outputs[j][e]), acc);
    target[e] = static_cast<Target>(acc);
  }
}

constexpr int kFusedOutputs = 4;  // outputs that one loop reads beside the state

template <class Source, class M, class Target, class W>
DIFFACCEL_INLINE void solver_step_few(W a, const W* b, int count, const Source* source, const M* const* outputs,
                                      Target* target, int64_t first, int64_t end) {
  switch (count) {
    case 0: return solver_step_span<0>(a, b, source, outputs, target, first, end);
    case 1: return solver_step_span<1>(a, b, source, outputs, target, first, end);
    case 2: return solver_step_span<2>(a, b, source, outputs, target, first, end);
    case 3: return solver_step_span<3>(a, b, source, outputs, target, first, end);
    default: return solver_step_span<4>(a, b, source, outputs, target, first, end);
  }
}

// solver_step_element for e in [first, end). More than kFusedOutputs outputs take turns over a block that stays in
// first-level cache; its sum comes back with the factor 1, which rounds nothing.
template <class X, class M, class W = wide_t<X>>
DIFFACCEL_INLINE void solver_step_range(const StepCoefficients<W>& c, const X* x, const M* const* outputs, X* target,
                                        int64_t first, int64_t end) {
  if (c.count <= kFusedOutputs) return solver_step_few(c.a, c.b, c.count, x, outputs, target, first, end);
  constexpr int64_t kBlock = 1024;
  alignas(64) W acc[kBlock];
  for (; first < end; first += kBlock) {
    const int64_t size = end - first < kBlock ? end - first : kBlock;
    const M* part[kMaxOutputs];
    for (int j = 0; j < c.count; ++j) part[j] = outputs[j] + first;
    solver_step_few(c.a, c.b, kFusedOutputs, x + first, part, acc, 0, size);
    int done = kFusedOutputs;
    for (; c.count - done > kFusedOutputs; done += kFusedOutputs)
      solver_step_few(W{1}, c.b + done, kFusedOutputs, acc, part + done, acc, 0, size);
    solver_step_few(W{1}, c.b + done, c.count - done, acc, part + done, target + first, 0, size);
  }
}

}  // namespace diffaccel
