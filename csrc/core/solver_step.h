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

}  // namespace diffaccel
