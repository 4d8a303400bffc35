// Exact linear sum assignment on one CPU thread, fast: an auction for the bulk, Jonker-Volgenant to the end.
//
//  1. Prices start at the column means (square) or at 0.
//  2. D. P. Bertsekas' auction, scaled in epsilon, in the cost's own precision. A row bids from a cache of its cheapest
//     columns: prices only fall, so every other column stays at or above the reduced cost that bounded the cache.
//  3. In float64: each row to its exact cheapest column, augmenting row reduction, shortest augmenting paths
//     (R. Jonker, A. Volgenant, Computing 38, 1987).
//  4. A certificate in float64: every row holds a column of least reduced cost, which proves that no assignment is
//     cheaper. Rows that do not (rounding) are freed and 3 repeats.
//
// Costs with ties, with forbidden pairs or where the auction exceeds its budget skip 2. Where the certificate cannot be
// had, the shortest augmenting paths of hungarian.h decide. Every loop is bounded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "collect_below.h"
#include "hungarian.h"
#include "lanes.h"
#include "simd.h"

namespace diffaccel {

// A row's cheapest columns at some prices.
template <class T>
struct RowCache {
  static constexpr int kColumns = 32;
  T cost[kColumns];
  int32_t column[kColumns];
  T bound;  // every other column has a reduced cost of at least this
  T gap;    // bound - least reduced cost that filled the cache well
  int32_t count;
};

template <class T, int W>
class DenseAssignment {
 public:
  static constexpr int64_t kSmallest = 16;     // fewer columns than a vector has
  static constexpr int64_t kAuctionFrom = 96;  // below, the auction does not pay

  static constexpr int64_t bytes(int64_t rows, int64_t cols) {
    const int64_t fast = rows * static_cast<int64_t>(sizeof(RowCache<T>) + 16) +
                         cols * static_cast<int64_t>(5 * sizeof(double) + 2 * sizeof(T) + 3 * sizeof(int32_t)) + 2048;
    return std::max(fast, AssignmentWorkspace::bytes(rows, cols)) + 64;
  }

  // cost [rows, cols], rows <= cols, row-major, to be minimised; memory: bytes(rows, cols), aligned to 16.
  DenseAssignment(const T* cost, int64_t rows, int64_t cols, void* memory)
      : cost_(cost), rows_(rows), cols_(cols), memory_(memory) {
    auto* at = static_cast<std::byte*>(memory);
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64;
    const auto take = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
      at += (count * static_cast<int64_t>(sizeof(*pointer)) + 63) / 64 * 64;
    };
    take(v_, cols);
    take(open_v_, cols);
    take(distance_, cols);
    take(label_, cols);
    take(closed_at_, cols);
    take(price_, cols);
    take(scratch_cost_, cols + kCollectSlack);
    take(cache_, rows);
    take(row_of_, cols);
    take(closed_, cols);
    take(scratch_column_, cols + kCollectSlack);
    take(col_of_, rows);
    take(free_, rows);
  }

  // columns [rows]: the column of each row.
  DIFFACCEL_INLINE Status run(int32_t* columns) {
    if (cols_ < kSmallest) return plain(columns);
    bool finite = column_sums();
    if (!finite) {
      bool forbidden = false;
      for (int64_t k = 0; k < rows_ * cols_; ++k) {
        if (!(cost_[k] > -kInfinity)) return Status::kInvalid;
        forbidden |= cost_[k] == kInfinity;
      }
      if (!forbidden) return plain(columns);  // the sums overflowed
    }
    cached_ = false;
    const bool square = rows_ == cols_;
    if (square && finite && rows_ >= kAuctionFrom) cached_ = auction();
    if (cached_) {
      for (int64_t j = 0; j < cols_; ++j) v_[j] = price_[j];
    } else if (square && finite) {
      column_minima();
    } else {
      for (int64_t j = 0; j < cols_; ++j) v_[j] = 0;
    }
    for (int64_t i = 0; i < rows_; ++i) col_of_[i] = -1;
    for (int64_t j = 0; j < cols_; ++j) row_of_[j] = -1;
    if (!greedy()) return plain(columns);
    for (int round = 0; round < 8; ++round) {
      reduce_rows(2);
      for (int64_t k = 0; k < num_free_; ++k)
        if (!augment(free_[k])) return plain(columns);
      if (certified()) {
        for (int64_t i = 0; i < rows_; ++i) columns[i] = col_of_[i];
        return Status::kOk;
      }
    }
    return plain(columns);
  }

  struct Statistics {
    int64_t bids = 0, scans = 0, reductions = 0, full_scans = 0, paths = 0, relaxed = 0, rounds = 0;
  } statistics;

 private:
  using D = Lanes<double, W>;
  using P = Lanes<T, W>;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  const T* row(int64_t i) const { return cost_ + i * cols_; }
  double reduced(int64_t i, int64_t j) const { return static_cast<double>(row(i)[j]) - v_[j]; }

  Status plain(int32_t* columns) {
    SerialTeam team;
    const AssignmentWorkspace work(memory_, rows_, cols_);
    const Status status = solve_assignment(team, CostView<T>{cost_, rows_, cols_, cols_, 1, 1.0}, work);
    for (int64_t i = 0; i < rows_; ++i) columns[i] = work.col_of[i];
    return status;
  }

  // v = column sums; false: some are not finite.
  DIFFACCEL_INLINE bool column_sums() {
    for (int64_t j = 0; j < cols_; ++j) v_[j] = 0;
    int64_t i = 0;
    for (; i + 4 <= rows_; i += 4) {
      const T *a = row(i), *b = a + cols_, *c = b + cols_, *d = c + cols_;
      for (int64_t j = 0; j < cols_; ++j)
        v_[j] += (static_cast<double>(a[j]) + static_cast<double>(b[j])) +
                 (static_cast<double>(c[j]) + static_cast<double>(d[j]));
    }
    for (; i < rows_; ++i)
      for (int64_t j = 0; j < cols_; ++j) v_[j] += static_cast<double>(row(i)[j]);
    bool finite = true;
    for (int64_t j = 0; j < cols_; ++j) finite &= std::isfinite(v_[j]);
    return finite;
  }

  DIFFACCEL_INLINE void column_minima() {
    for (int64_t j = 0; j < cols_; ++j) v_[j] = static_cast<double>(cost_[j]);
    for (int64_t i = 1; i < rows_; ++i) {
      const T* c = row(i);
      for (int64_t j = 0; j < cols_; ++j) {
        const double value = static_cast<double>(c[j]);
        v_[j] = value < v_[j] ? value : v_[j];
      }
    }
  }

  // ---- The auction -------------------------------------------------------------------------------------------------

  // Whether most sampled rows attain their least cost twice or have a mean far beyond their cheapest costs: there the
  // auction does not pay.
  bool tied_or_skewed() const {
    constexpr int kSamples = 9;
    int votes = 0;
    for (int s = 0; s < kSamples; ++s) {
      const T* c = row(s * (rows_ - 1) / (kSamples - 1));
      double sum = 0;
      for (int64_t j = 0; j < cols_; ++j) {
        scratch_cost_[j] = c[j];
        sum += static_cast<double>(c[j]);
      }
      std::nth_element(scratch_cost_, scratch_cost_ + kFill, scratch_cost_ + cols_);
      std::sort(scratch_cost_, scratch_cost_ + kFill);
      const double count = static_cast<double>(cols_), least = static_cast<double>(scratch_cost_[0]);
      const double width = static_cast<double>(scratch_cost_[kFill]) - least;
      votes += scratch_cost_[0] == scratch_cost_[1] || sum / count - least > 0.5 * count * width ? 1 : 0;
    }
    return 2 * votes > kSamples;
  }

  DIFFACCEL_INLINE bool auction() {
    if (tied_or_skewed()) return false;
    const double per_row = 1.0 / static_cast<double>(rows_);
    T largest = 0;
    for (int64_t j = 0; j < cols_; ++j) {
      price_[j] = static_cast<T>(v_[j] * per_row);
      largest = std::max(largest, std::abs(price_[j]));
    }
    // Sampled rows: the gap between the two least reduced costs, and the one that fills a cache.
    constexpr int kSamples = 33;
    T gap[kSamples], fill[kSamples];
    for (int s = 0; s < kSamples; ++s) {
      const T* c = row(s * (rows_ - 1) / (kSamples - 1));
      for (int64_t j = 0; j < cols_; ++j) {
        scratch_cost_[j] = c[j] - price_[j];
        largest = std::max(largest, std::abs(c[j]));
      }
      std::nth_element(scratch_cost_, scratch_cost_ + kFill, scratch_cost_ + cols_);
      std::nth_element(scratch_cost_, scratch_cost_ + 1, scratch_cost_ + kFill);
      const T least = *std::min_element(scratch_cost_, scratch_cost_ + 2);
      gap[s] = scratch_cost_[1] - least;
      fill[s] = scratch_cost_[kFill] - least;
    }
    std::nth_element(gap, gap + kSamples / 2, gap + kSamples);
    std::nth_element(fill, fill + kSamples / 2, fill + kSamples);
    const T typical = gap[kSamples / 2], width = fill[kSamples / 2];
    const T finest = 8 * std::numeric_limits<T>::epsilon() * largest;
    if (!(typical > 8 * finest) || !(largest < std::numeric_limits<T>::max() / 16) || !(width > 0)) return false;

    for (int64_t i = 0; i < rows_; ++i) {
      cache_[i].bound = -std::numeric_limits<T>::infinity();
      cache_[i].gap = width;
      cache_[i].count = 0;
    }
    const int64_t bid_budget = 256 * rows_, tie_budget = rows_ / 4;
    T epsilon = static_cast<T>(kFirstEpsilon) * typical;
    const T last = std::max(static_cast<T>(kLastEpsilon) * typical, finest);
    while (true) {
      for (int64_t j = 0; j < cols_; ++j) row_of_[j] = -1;
      for (int64_t start = 0; start < rows_; ++start) {
        auto i = static_cast<int32_t>(start);
        while (i >= 0) {
          if (tied_ > tie_budget) return false;
          // Caches that serve too few bids: heavy tails.
          if (statistics.scans > 3 * rows_ + statistics.bids / 3 && statistics.bids < 16 * rows_) return false;
          if (++statistics.bids > bid_budget) return true;  // a good start nevertheless
          const int32_t j = bid(i, epsilon);
          std::swap(i, row_of_[j]);
        }
      }
      if (!(epsilon > last)) return true;
      epsilon = std::max(epsilon / static_cast<T>(kDivide), last);
    }
  }

  static constexpr int kFill = 24;
  static constexpr double kFirstEpsilon = 0.4, kLastEpsilon = 0.003, kDivide = 8;

  // The two least reduced costs in a row's cache.
  struct Bid {
    T first, second;
    int32_t column;
  };

  DIFFACCEL_INLINE Bid best_in_cache(const RowCache<T>& cache) const {
    typename P::Vector first = P::kInfinity - typename P::Vector{}, second = first;
    typename P::Index lane, where;
    P::iota(lane);
    where = lane;
    T r[RowCache<T>::kColumns];
    const int padded = (cache.count + P::kCount - 1) / P::kCount * P::kCount;
    for (int k = 0; k < padded; ++k) r[k] = cache.cost[k] - price_[cache.column[k]];
    for (int k = 0; k < padded; k += P::kCount) {
      typename P::Vector x;
      P::load(x, r + k);
      const typename P::Vector loser = x < first ? first : x;
      second = loser < second ? loser : second;
      where = x < first ? lane + k : where;
      first = x < first ? x : first;
    }
    const T least = P::least(first);
    const typename P::Index none = lane - lane + RowCache<T>::kColumns;
    const auto k = P::least(first == least ? where : none);
    const T others = P::least(where == k ? second : first), same = P::least(second);
    return {least, others < same ? others : same, cache.column[k]};
  }

  // Row i takes its cheapest column and lowers that column's price until its second cheapest is epsilon cheaper.
  DIFFACCEL_INLINE int32_t bid(int64_t i, T epsilon) {
    RowCache<T>& cache = cache_[i];
    Bid best{0, 0, 0};
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (cache.count > 0) best = best_in_cache(cache);
      if (cache.count > 0 && best.first < cache.bound) break;
      if (attempt == 0) fill(i);
    }
    const T second = std::min(best.second, cache.bound);
    price_[best.column] -= (second > best.first ? second - best.first : 0) + epsilon;
    return best.column;
  }

  // Fills row i's cache at today's prices.
  DIFFACCEL_INLINE void fill(int64_t i) {
    ++statistics.scans;
    RowCache<T>& cache = cache_[i];
    const T* c = row(i);
    const T least = P::reduced_min(c, price_, cols_);
    T bound = least + cache.gap;
    int64_t count = collect_below<W>(c, price_, bound, cols_, scratch_column_, scratch_cost_);
    if (count > RowCache<T>::kColumns) {
      // Lower the bound until the cache holds them; none are left where the least is tied too often.
      T width = cache.gap;
      for (int attempt = 0; count > RowCache<T>::kColumns; ++attempt) {
        width = attempt < 24 ? width * (static_cast<T>(RowCache<T>::kColumns - 4) / static_cast<T>(count)) : 0;
        bound = least + width;
        int64_t kept = 0;
        for (int64_t k = 0; k < count; ++k) {
          const T value = scratch_cost_[k];
          const int32_t column = scratch_column_[k];
          scratch_column_[kept] = column;
          scratch_cost_[kept] = value;
          kept += value - price_[column] < bound ? 1 : 0;
        }
        count = kept;
      }
      cache.gap = width;
    } else if (count < kFill / 2) {
      cache.gap *= static_cast<T>(1.5);
    }
    if (count == 0) {
      ++tied_;
      int64_t j = 0;
      while (j + 1 < cols_ && c[j] - price_[j] > least) ++j;
      scratch_column_[0] = static_cast<int32_t>(j);
      scratch_cost_[0] = c[j];
      count = 1;
    }
    cache.bound = bound;
    cache.count = static_cast<int32_t>(count);
    for (int64_t k = 0; k < RowCache<T>::kColumns; ++k) {
      cache.cost[k] = k < count ? scratch_cost_[k] : P::kInfinity;
      cache.column[k] = k < count ? scratch_column_[k] : scratch_column_[0];
    }
  }

  // ---- The exact end, in float64 -----------------------------------------------------------------------------------

  // The two least reduced costs of row i. From the cache, `second` may be a lower bound of it.
  DIFFACCEL_INLINE typename D::Two least_two(int64_t i) {
    if (cached_) {
      const RowCache<T>& cache = cache_[i];
      const double bound =
          static_cast<double>(cache.bound) -
          2 * static_cast<double>(std::numeric_limits<T>::epsilon()) * std::abs(static_cast<double>(cache.bound));
      typename D::Two best{kInfinity, kInfinity, -1};
      for (int32_t k = 0; k < cache.count; ++k) {
        const double r = static_cast<double>(cache.cost[k]) - v_[cache.column[k]];
        if (r < best.first) {
          best.second = best.first;
          best.first = r;
          best.column = cache.column[k];
        } else if (r < best.second) {
          best.second = r;
        }
      }
      if (best.first < bound) {
        best.second = std::min(best.second, bound);
        return best;
      }
    }
    ++statistics.full_scans;
    return D::reduced_two(row(i), v_, cols_);
  }

  // The lowest free column that attains row i's least reduced cost, else the given one.
  int64_t prefer_free(int64_t i, double least, int64_t column) const {
    if (row_of_[column] < 0) return column;
    for (int64_t j = column + 1; j < cols_; ++j)
      if (row_of_[j] < 0 && reduced(i, j) == least) return j;
    return column;
  }

  // Every row takes its cheapest column where that is free; the others become the free rows.
  DIFFACCEL_INLINE bool greedy() {
    num_free_ = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      const typename D::Two two = least_two(i);
      if (two.column < 0) return false;
      const int64_t j = two.second > two.first ? two.column : prefer_free(i, two.first, two.column);
      if (row_of_[j] < 0)
        assign(i, j);
      else
        free_[num_free_++] = static_cast<int32_t>(i);
    }
    return true;
  }

  void assign(int64_t i, int64_t j) {
    row_of_[j] = static_cast<int32_t>(i);
    col_of_[i] = static_cast<int32_t>(j);
  }

  // Augmenting row reduction: a free row takes its cheapest column and lowers its price to the second cheapest; the
  // row that held it goes on at once, or waits where nothing was gained.
  DIFFACCEL_INLINE void reduce_rows(int sweeps) {
    int64_t budget = 8 * num_free_ + 64;
    for (int sweep = 0; sweep < sweeps && num_free_ > 0; ++sweep) {
      const int64_t waiting = num_free_;
      num_free_ = 0;
      for (int64_t k = 0; k < waiting; ++k) {
        int32_t i = free_[k];
        while (i >= 0) {
          if (--budget < 0) {
            free_[num_free_++] = i;
            break;
          }
          ++statistics.reductions;
          const typename D::Two two = least_two(i);
          int64_t j = two.column;
          if (two.second < kInfinity && two.second > two.first) {
            const double price = v_[j] - (two.second - two.first);
            const bool lower = price < v_[j];
            v_[j] = price;
            const int32_t owner = row_of_[j];
            assign(i, j);
            if (owner >= 0) col_of_[owner] = -1;
            if (owner >= 0 && !lower) free_[num_free_++] = owner;
            i = lower ? owner : -1;
          } else {
            j = prefer_free(i, two.first, j);
            if (row_of_[j] < 0)
              assign(i, j);
            else
              free_[num_free_++] = i;
            i = -1;
          }
        }
      }
    }
  }

  // The shortest augmenting path from a free row; false: there is none.
  DIFFACCEL_INLINE bool augment(int32_t start) {
    ++statistics.paths;
    for (int64_t j = 0; j < cols_; ++j) {
      distance_[j] = kInfinity;
      open_v_[j] = v_[j];
    }
    int64_t num_closed = 0, sink = -1;
    int64_t i = start;
    double reached = -kInfinity, offset = 0;
    while (true) {
      ++statistics.relaxed;
      const double least = D::relax(row(i), open_v_, offset, distance_, cols_);
      if (!(least < kInfinity)) return false;
      reached = std::max(reached, least);
      int64_t j = 0;
      while (j < cols_ && distance_[j] != least) ++j;
      if (j == cols_) return false;
      if (row_of_[j] >= 0) {
        for (int64_t other = j + 1; other < cols_; ++other) {
          if (distance_[other] == least && row_of_[other] < 0) {
            j = other;
            break;
          }
        }
      }
      label_[j] = least;
      if (row_of_[j] < 0) {
        sink = j;
        break;
      }
      closed_[num_closed] = static_cast<int32_t>(j);
      closed_at_[num_closed++] = reached;
      distance_[j] = kInfinity;
      open_v_[j] = -kInfinity;
      i = row_of_[j];
      offset = reached - reduced(i, j);
    }
    // Back along the path: the first row of the tree from which a column got its label. Rows and columns that change
    // hands are behind those still to be read.
    for (int64_t j = sink;;) {
      int32_t from = start;
      double at = 0;
      for (int64_t k = 0; reduced(from, j) + at != label_[j]; ++k) {
        if (k == num_closed) return false;
        from = row_of_[closed_[k]];
        at = closed_at_[k] - reduced(from, closed_[k]);
      }
      const int64_t next = col_of_[from];
      assign(from, j);
      if (from == start) break;
      j = next;
    }
    for (int64_t k = 0; k < num_closed; ++k) v_[closed_[k]] += closed_at_[k] - reached;
    return true;
  }

  // Whether every row holds a column of least reduced cost, up to rounding; the rows that do not become the free rows.
  DIFFACCEL_INLINE bool certified() {
    ++statistics.rounds;
    num_free_ = 0;
    for (int64_t i = 0; i < rows_; ++i) {
      const int64_t j = col_of_[i];
      const double held = static_cast<double>(row(i)[j]), mine = held - v_[j];
      const double rounding = 0x1p-51 * (std::abs(held) + std::abs(v_[j]));
      if (mine - D::reduced_min(row(i), v_, cols_) <= rounding) continue;
      free_[num_free_++] = static_cast<int32_t>(i);
      row_of_[j] = -1;
      col_of_[i] = -1;
    }
    return num_free_ == 0;
  }

  const T* cost_;
  int64_t rows_, cols_;
  void* memory_;
  bool cached_ = false;  // the row caches hold
  int64_t num_free_ = 0;
  int64_t tied_ = 0;         // row scans that found the least cost too often for a cache
  double* v_;                // [cols] column prices
  double* open_v_;           // [cols] the same, -inf: the column is on the tree
  double* distance_;         // [cols] shortest path lengths, inf: the column is on the tree
  double* label_;            // [cols] path length at which a column joined the tree
  double* closed_at_;        // [cols] the same in the order of joining, never falling
  T* price_;                 // [cols] the auction's prices
  T* scratch_cost_;          // [cols]
  RowCache<T>* cache_;       // [rows]
  int32_t* row_of_;          // [cols] row assigned to each column, -1: free
  int32_t* closed_;          // [cols] columns on the tree, in order
  int32_t* scratch_column_;  // [cols]
  int32_t* col_of_;          // [rows] column assigned to each row, -1: free
  int32_t* free_;            // [rows] rows without a column
};

template <class T>
constexpr int64_t assignment_bytes_cpu(int64_t rows, int64_t cols) {
  return DenseAssignment<T, 16>::bytes(rows, cols);
}

// The problem of a view as a row-major matrix to be minimised, in blocks that suit either layout of the source.
template <class U, class T>
void copy_problem(const CostView<T>& view, U* out) {
  constexpr int64_t kBlock = 16;
  for (int64_t first = 0; first < view.rows; first += kBlock) {
    const int64_t last = std::min(first + kBlock, view.rows);
    for (int64_t begin = 0; begin < view.cols; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, view.cols);
      for (int64_t i = first; i < last; ++i)
        for (int64_t j = begin; j < end; ++j) out[i * view.cols + j] = static_cast<U>(view(i, j));
    }
  }
}

// Solves min sum_i cost[i, columns[i]] of a row-major cost [rows, cols], rows <= cols, as solve_assignment does but for
// ties: they give an assignment of equal total, a constant cost the identity. memory: assignment_bytes_cpu, aligned
// to 16.
template <class T>
Status solve_assignment_cpu(const T* cost, int64_t rows, int64_t cols, void* memory, int32_t* columns) {
  Status status = Status::kOk;
#if defined(__x86_64__) && defined(__GNUC__)
  switch (simd_level()) {
    case Simd::kAvx512:
      run_avx512([&]() DIFFACCEL_SIMD_BODY { status = DenseAssignment<T, 64>(cost, rows, cols, memory).run(columns); });
      return status;
    case Simd::kAvx2:
      run_avx2([&]() DIFFACCEL_SIMD_BODY { status = DenseAssignment<T, 32>(cost, rows, cols, memory).run(columns); });
      return status;
    case Simd::kPortable: break;
  }
#endif
  return DenseAssignment<T, 16>(cost, rows, cols, memory).run(columns);
}

}  // namespace diffaccel
