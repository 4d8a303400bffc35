// RowScan for the vectors of DIFFACCEL_WIDTH bytes; row_scan.h includes this once for each instruction set.

namespace diffaccel {

template <class T>
struct RowScan<T, DIFFACCEL_WIDTH> {
  using S = Vectors<T, DIFFACCEL_WIDTH>;
  using V = typename S::V;
  static constexpr int kCount = S::kCount;

  DIFFACCEL_TARGET static inline T least_lane(V a) {
    a = S::min(a, S::template exchange<0>(a));
    if constexpr (S::kSteps > 1) a = S::min(a, S::template exchange<1>(a));
    if constexpr (S::kSteps > 2) a = S::min(a, S::template exchange<2>(a));
    if constexpr (S::kSteps > 3) a = S::min(a, S::template exchange<3>(a));
    return S::first(a);
  }

  template <int kStep>
  DIFFACCEL_TARGET static inline void exchange_two(V& first, V& second) {
    const V f = S::template exchange<kStep>(first), s = S::template exchange<kStep>(second);
    second = S::min(S::max(first, f), S::min(second, s));
    first = S::min(first, f);
  }

  DIFFACCEL_TARGET static T least(const T* cost, const T* price, int64_t n) {
    V a = S::set(std::numeric_limits<T>::infinity()), b = a, c = a, d = a;
    int64_t j = 0;
    for (; j + 4 * kCount <= n; j += 4 * kCount) {
      a = S::min(a, S::sub(S::load(cost + j), S::load(price + j)));
      b = S::min(b, S::sub(S::load(cost + j + kCount), S::load(price + j + kCount)));
      c = S::min(c, S::sub(S::load(cost + j + 2 * kCount), S::load(price + j + 2 * kCount)));
      d = S::min(d, S::sub(S::load(cost + j + 3 * kCount), S::load(price + j + 3 * kCount)));
    }
    for (; j + kCount <= n; j += kCount) a = S::min(a, S::sub(S::load(cost + j), S::load(price + j)));
    T best = least_lane(S::min(S::min(a, b), S::min(c, d)));
    for (; j < n; ++j) best = std::min(best, cost[j] - price[j]);
    return best;
  }

  // The same where few columns are expected.
  DIFFACCEL_TARGET static int64_t few_below(const T* cost, const T* price, T bound, int64_t n, int32_t* columns,
                                            int64_t ahead = 0) {
    const V limit = S::set(bound);
    int64_t count = 0, j = 0;
    for (; j + 4 * kCount <= n; j += 4 * kCount) {
      uint32_t mask[4];
      for (int v = 0; v < 4; ++v) {
        prefetch_ahead(cost + j + v * kCount, ahead);
        mask[v] = S::below(S::sub(S::load(cost + j + v * kCount), S::load(price + j + v * kCount)), limit);
      }
      if ((mask[0] | mask[1] | mask[2] | mask[3]) == 0) continue;
      for (int64_t v = 0; v < 4; ++v)
        for (; mask[v] != 0; mask[v] &= mask[v] - 1)
          columns[count++] = static_cast<int32_t>(j + v * kCount) + __builtin_ctz(mask[v]);
    }
    for (; j < n; ++j) {
      columns[count] = static_cast<int32_t>(j);
      count += cost[j] - price[j] < bound ? 1 : 0;
    }
    return count;
  }

  DIFFACCEL_TARGET static int64_t columns_below(const T* cost, const T* price, T bound, int64_t n, int32_t* columns,
                                                int64_t ahead = 0) {
    const V limit = S::set(bound);
    int64_t count = 0, j = 0;
    for (; j + kCount <= n; j += kCount) {
      prefetch_ahead(cost + j, ahead);
      const uint32_t mask = S::below(S::sub(S::load(cost + j), S::load(price + j)), limit);
      S::store_columns(columns + count, j, mask);
      count += __builtin_popcount(mask);
    }
    for (; j < n; ++j) {
      columns[count] = static_cast<int32_t>(j);
      count += cost[j] - price[j] < bound ? 1 : 0;
    }
    return count;
  }

#if DIFFACCEL_WIDTH == 64
  // Gathered prices come in halves of a vector: joining them costs more than it saves.
  template <class C>
  DIFFACCEL_TARGET static BestTwo<T> best_two(const C* cost, const int32_t* column, const T* price, int64_t n) {
    return RowScan<T, 32>::best_two(cost, column, price, n);
  }
#else
  template <class C>
  DIFFACCEL_TARGET static BestTwo<T> best_two(const C* cost, const int32_t* column, const T* price, int64_t n) {
    V r[64 / kCount];
    V first = S::set(std::numeric_limits<T>::infinity()), second = first;
    for (int64_t k = 0; k < n; k += kCount) {
      const V x = S::sub(S::load(cost + k), S::gather(price, column + k));
      r[k / kCount] = x;
      second = S::min(second, S::max(first, x));
      first = S::min(first, x);
    }
    exchange_two<0>(first, second);
    if constexpr (S::kSteps > 1) exchange_two<1>(first, second);
    if constexpr (S::kSteps > 2) exchange_two<2>(first, second);
    if constexpr (S::kSteps > 3) exchange_two<3>(first, second);
    uint64_t where = 0;
    for (int64_t k = 0; k < n; k += kCount) where |= static_cast<uint64_t>(S::equal(r[k / kCount], first)) << k;
    return {S::first(first), S::first(second), static_cast<int64_t>(__builtin_ctzll(where | (uint64_t{1} << 63)))};
  }
#endif

  // a[0] = the sum of all vectors of a
  template <size_t kVectors>
  DIFFACCEL_TARGET static inline void add_up(V (&a)[kVectors]) {
    for (size_t half = kVectors / 2; half > 0; half /= 2)
      for (size_t v = 0; v < half; ++v) a[v] = S::add(a[v], a[v + half]);
  }

  // Whether 0 or NaN was summed up in each lane.
  DIFFACCEL_TARGET static inline bool all_zero(V a) { return S::equal(a, a) == (uint32_t{1} << kCount) - 1; }

  // mean_of_32
  DIFFACCEL_TARGET static inline T mean(V (&x)[32 / kCount]) {
    for (V& v : x) v = S::mul(v, S::set(static_cast<T>(0.03125)));
    add_up(x);
    V sum = S::add(x[0], S::template exchange<0>(x[0]));
    sum = S::add(sum, S::template exchange<1>(sum));
    if constexpr (S::kSteps > 2) sum = S::add(sum, S::template exchange<2>(sum));
    if constexpr (S::kSteps > 3) sum = S::add(sum, S::template exchange<3>(sum));
    return S::first(sum);
  }

  DIFFACCEL_TARGET static T level(const T* cost, const T* price, int64_t n, int64_t ahead, T& not_finite) {
    constexpr int kVectors = 32 / kCount;
    V best[kVectors], zero[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      best[v] = S::set(std::numeric_limits<T>::infinity());
      zero[v] = S::set(0);
    }
    int64_t j = 0;
    for (; j + 32 <= n; j += 32) {
      for (int v = 0; v < kVectors; ++v) prefetch_ahead(cost + j + v * kCount, ahead);
      for (int v = 0; v < kVectors; ++v) {
        const V c = S::load(cost + j + v * kCount);
        best[v] = S::min(best[v], S::sub(c, S::load(price + j + v * kCount)));
        zero[v] = S::fused(c, S::set(0), zero[v]);
      }
    }
    add_up(zero);
    if (!all_zero(zero[0])) not_finite = std::numeric_limits<T>::quiet_NaN();
    if (j < n) {
      T least[32];
      for (int v = 0; v < kVectors; ++v) S::store(least + v * kCount, best[v]);
      for (; j < n; ++j) {
        least[j % 32] = std::min(least[j % 32], cost[j] - price[j]);
        not_finite += cost[j] - cost[j];
      }
      for (int v = 0; v < kVectors; ++v) best[v] = S::load(least + v * kCount);
    }
    return mean(best);
  }

  DIFFACCEL_TARGET static T level_of_some(const T* cost, const T* price, int64_t n, int64_t every) {
    V best[32 / kCount];
    for (V& b : best) b = S::set(std::numeric_limits<T>::infinity());
    for (int64_t j = 0; j + 32 <= n; j += every)
      for (int v = 0; v < 32 / kCount; ++v)
        best[v] = S::min(best[v], S::sub(S::load(cost + j + v * kCount), S::load(price + j + v * kCount)));
    return mean(best);
  }

  DIFFACCEL_TARGET static void lower_one(const T* cost, int64_t n, T* plain, T& not_finite) {
    V zero = S::set(0);
    const auto at = [&](int64_t j) DIFFACCEL_TARGET {
      const V c = S::load(cost + j);
      S::store(plain + j, S::min(S::load(plain + j), c));
      zero = S::fused(c, S::set(0), zero);
    };
    int64_t j = 0;
    for (; j + kCount <= n; j += kCount) at(j);
    if (j < n) at(n - kCount);
    if (!all_zero(zero)) not_finite = std::numeric_limits<T>::quiet_NaN();
  }

  template <bool kFirst>
  DIFFACCEL_TARGET static void lower(const T* const (&cost)[4], const T (&level)[4], int64_t n, T* plain, T* shifted,
                                     int64_t ahead, T& not_finite) {
    const V shift[4] = {S::set(level[0]), S::set(level[1]), S::set(level[2]), S::set(level[3])};
    V zero = S::set(0);
    const auto at = [&](int64_t j) DIFFACCEL_TARGET {
      V p = S::load(plain + j), s = S::load(shifted + j);
      for (int r = 0; r < 4; ++r) {
        const V c = S::load(cost[r] + j);
        p = S::min(p, c);
        s = S::min(s, S::sub(c, shift[r]));
        if constexpr (kFirst) {
          prefetch_ahead(cost[r] + j, ahead);
          zero = S::fused(c, S::set(0), zero);
        }
      }
      S::store(plain + j, p);
      S::store(shifted + j, s);
    };
    int64_t j = 0;
    for (; j + kCount <= n; j += kCount) at(j);
    if (j < n) at(n - kCount);
    if (kFirst && !all_zero(zero)) not_finite = std::numeric_limits<T>::quiet_NaN();
  }

  template <class C>
  DIFFACCEL_TARGET static int64_t find_reduced(const C* cost, const T* price, T sought, int64_t n) {
    const V x = S::set(sought);
    int64_t j = 0;
    for (; j + kCount <= n; j += kCount) {
      const uint32_t mask = S::equal(S::sub(S::load(cost + j), S::load(price + j)), x);
      if (mask != 0) return j + __builtin_ctz(mask);
    }
    while (j < n && static_cast<T>(cost[j]) - price[j] != sought) ++j;
    return j;
  }

  DIFFACCEL_TARGET static int64_t find(const T* value, T sought, const int32_t* owner, int64_t n) {
    const V x = S::set(sought);
    int64_t found = n, j = 0;
    for (; j + kCount <= n; j += kCount) {
      for (uint32_t mask = S::equal(S::load(value + j), x); mask != 0; mask &= mask - 1) {
        const int64_t at = j + __builtin_ctz(mask);
        if (owner[at] < 0) return at;
        found = std::min(found, at);
      }
    }
    for (; j < n; ++j) {
      if (value[j] != sought) continue;
      if (owner[j] < 0) return j;
      found = std::min(found, j);
    }
    return found;
  }
};

}  // namespace diffaccel
