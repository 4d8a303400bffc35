// Vectors of W bytes for scans of a matrix row, by the compilers' vector extension. Host only.
//
// Every function is inlined into a body compiled for one instruction set (simd.h). They find minima and the lowest
// index that attains them, and sum nothing across lanes, so every width gives the same answer. A row has at least
// kCount elements: the last vector overlaps the one before.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "hd.h"

namespace diffaccel {

template <class E, int W>
struct Lanes {
  static constexpr int kCount = W / static_cast<int>(sizeof(E));
  static constexpr E kInfinity = std::numeric_limits<E>::infinity();
  using Int = std::conditional_t<sizeof(E) == 8, int64_t, int32_t>;
  typedef E Vector __attribute__((vector_size(W)));
  typedef Int Index __attribute__((vector_size(W)));

  template <class T>
  static DIFFACCEL_INLINE void load(Vector& out, const T* from) {
    if constexpr (std::is_same_v<T, E>) {
      std::memcpy(&out, from, W);
    } else {
      typedef T Narrow __attribute__((vector_size(kCount * sizeof(T))));
      Narrow narrow;
      std::memcpy(&narrow, from, sizeof(narrow));
      out = __builtin_convertvector(narrow, Vector);
    }
  }

  static DIFFACCEL_INLINE void iota(Index& out) {
    for (int k = 0; k < kCount; ++k) out[k] = k;
  }

  template <int kBy, class X, size_t... k>
  static DIFFACCEL_INLINE void fold(X& x, std::index_sequence<k...>) {
    const X other = __builtin_shufflevector(x, x, ((k + kBy) % kCount)...);
    x = other < x ? other : x;
  }

  // The least of all lanes.
  template <class X>
  static DIFFACCEL_INLINE auto least(const X& of) {
    X x = of;
    constexpr auto all = std::make_index_sequence<kCount>();
    if constexpr (kCount > 8) fold<8>(x, all);
    if constexpr (kCount > 4) fold<4>(x, all);
    if constexpr (kCount > 2) fold<2>(x, all);
    fold<1>(x, all);
    return x[0];
  }

  template <int kBy, size_t... k>
  static DIFFACCEL_INLINE void fold_two(Vector& first, Vector& second, std::index_sequence<k...>) {
    const Vector f = __builtin_shufflevector(first, first, ((k + kBy) % kCount)...);
    const Vector s = __builtin_shufflevector(second, second, ((k + kBy) % kCount)...);
    const Vector loser = f < first ? first : f;
    second = s < second ? s : second;
    second = loser < second ? loser : second;
    first = f < first ? f : first;
  }

  // first[0], second[0] = the two least of all lanes, given the two least of each.
  static DIFFACCEL_INLINE void least_two(Vector& first, Vector& second) {
    constexpr auto all = std::make_index_sequence<kCount>();
    if constexpr (kCount > 8) fold_two<8>(first, second, all);
    if constexpr (kCount > 4) fold_two<4>(first, second, all);
    if constexpr (kCount > 2) fold_two<2>(first, second, all);
    fold_two<1>(first, second, all);
  }

  // f(first element) for every vector of n elements; the last one overlaps.
  template <class F>
  static DIFFACCEL_INLINE void for_each(int64_t n, const F& f) {
    int64_t j = 0;
    for (; j + kCount <= n; j += kCount) f(j);
    if (j < n) f(n - kCount);
  }

  // min_j cost[j] - price[j]
  template <class T>
  static DIFFACCEL_INLINE E reduced_min(const T* cost, const E* price, int64_t n) {
    Vector best = kInfinity - Vector{};
    for_each(n, [&](int64_t j) __attribute__((always_inline)) {
      Vector c, p;
      load(c, cost + j);
      load(p, price + j);
      c -= p;
      best = c < best ? c : best;
    });
    return least(best);
  }

  struct Two {
    E first, second;
    int64_t column;  // lowest one that attains `first`; -1: all are infinite
  };

  // The two least of cost[j] - price[j].
  template <class T>
  static DIFFACCEL_INLINE Two reduced_two(const T* cost, const E* price, int64_t n) {
    Vector first = kInfinity - Vector{}, second = first;
    Index lane, where, here;
    iota(lane);
    here = lane;
    where = lane - lane + std::numeric_limits<Int>::max();
    const auto take = [&](const Vector& r) __attribute__((always_inline)) {
      const Vector loser = r < first ? first : r;
      second = loser < second ? loser : second;
      where = r < first ? here : where;
      first = r < first ? r : first;
    };
    int64_t j = 0;
    Vector c, p;
    for (; j + kCount <= n; j += kCount) {
      load(c, cost + j);
      load(p, price + j);
      c -= p;
      take(c);
      here += kCount;
    }
    if (j < n) {
      load(c, cost + n - kCount);
      load(p, price + n - kCount);
      const int64_t overlap = j - (n - kCount);
      c = lane < static_cast<Int>(overlap) ? kInfinity - Vector{} : c - p;
      here = lane + static_cast<Int>(n - kCount);
      take(c);
    }
    const Vector mine = first;
    least_two(first, second);
    const Index none = lane - lane + std::numeric_limits<Int>::max();
    const Int column = least(mine == first ? where : none);
    return {first[0], second[0], first[0] < kInfinity ? static_cast<int64_t>(column) : -1};
  }

  // distance[j] = min(distance[j], cost[j] - price[j] + offset); returns the least distance.
  template <class T>
  static DIFFACCEL_INLINE E relax(const T* cost, const E* price, E offset, E* distance, int64_t n) {
    Vector best = kInfinity - Vector{};
    for_each(n, [&](int64_t j) __attribute__((always_inline)) {
      Vector c, p, d;
      load(c, cost + j);
      load(p, price + j);
      load(d, distance + j);
      c = (c - p) + offset;
      d = c < d ? c : d;
      std::memcpy(distance + j, &d, W);
      best = d < best ? d : best;
    });
    return least(best);
  }
};

}  // namespace diffaccel
