// Exact linear sum assignment on one CPU thread, fast: an auction for the bulk, Jonker-Volgenant to the end.
//
//  1. Prices start near those of the answer (hungarian_cpu_start.h), at the column minima, or at 0 (rectangular).
//  2. An auction in the cost's own precision (hungarian_cpu_auction.h).
//  3. In float64: each row to its exact cheapest column, augmenting row reduction, shortest augmenting paths
//     (R. Jonker, A. Volgenant, Computing 38, 1987).
//  4. A certificate in float64: every row holds a column of least reduced cost, which proves that no assignment is
//     cheaper. Rows that do not (rounding) are freed and 3 repeats.
//
// Costs with ties, with forbidden pairs or where the auction exceeds its budget skip 2; so do fewer than 128 columns
// unless many rows want the same ones. Where the certificate cannot be had, the shortest augmenting paths of
// hungarian.h decide. Every loop is bounded. Where SciPy's ties are asked for, they decide too unless the optimum is
// the only one, by more than either algorithm's rounding (hungarian_unique.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "hungarian.h"
#include "hungarian_cpu_auction.h"
#include "hungarian_cpu_start.h"
#include "hungarian_unique.h"
#include "lanes.h"
#include "row_scan.h"
#include "simd.h"

namespace diffaccel {

// What a caller may want beside the columns.
struct AssignmentWishes {
  bool scipy_ties = false;         // among assignments of equal total, SciPy's
  double* row_duals = nullptr;     // [rows] u, and
  double* column_duals = nullptr;  // [cols] v: u + v <= cost, equal on assigned pairs; where rows < cols v <= 0, and 0
                                   // at free columns
  const void* next = nullptr;      // a cost of the same shape and dtype that comes next: fetched on the way
};

template <class T, int W>
class DenseAssignment {
 public:
  static constexpr int64_t kSmallest = 32;      // fewer columns than a scan needs
  static constexpr int64_t kAuctionFrom = 128;  // below, an auction pays where rows compete, from
  static constexpr int64_t kCrowdFrom = 48;
  static constexpr int64_t kLongRow = 512;
  static constexpr int64_t kFewColumns = 8;  // columns of a row that the certificate looks at one by one

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
    take(other_, cols);
    take(cache_, rows);
    take(row_of_, cols);
    take(closed_, cols);
    take(columns_, cols + kScanSlack);
    take(col_of_, rows);
    take(free_, rows);
  }

  // columns [rows]: the column of each row.
  DIFFACCEL_INLINE Status run(int32_t* columns, const AssignmentWishes& wishes = {}) {
    wishes_ = wishes;
    if (cols_ < kSmallest) return plain(columns);
    const bool square = rows_ == cols_;
    const AuctionStart<T, W> start(cost_, rows_);
    const bool tied = square && (wishes.scipy_ties || rows_ >= kAuctionFrom) && start.tied();
    if (tied && wishes.scipy_ties) return plain(columns);
    const bool auctioned = square && rows_ >= kAuctionFrom && !tied;
    cached_ = false;
    const bool finite = auctioned ? auction(start) : column_minima();
    if (!finite) {
      for (int64_t k = 0; k < rows_ * cols_; ++k) {
        if (!(cost_[k] > -kInfinity)) return Status::kInvalid;
      }
    }
    // Columns that stay free must keep the price 0: only a square problem may start elsewhere.
    if (!greedy(square && finite)) return plain(columns);
    if (square && finite && rows_ >= kCrowdFrom && rows_ < kAuctionFrom && 4 * num_free_ > rows_ && !start.tied()) {
      auction(start);
      if (!greedy(true)) return plain(columns);
    }
    for (int round = 0; round < 8; ++round) {
      reduce_rows(2);
      for (int64_t k = 0; k < num_free_; ++k)
        if (!augment(free_[k])) return plain(columns);
      if (certified()) {
        if (wishes.scipy_ties &&
            !UniqueAssignment<T, W>(cost_, rows_, cols_, v_, price_, row_of_, col_of_, columns_).sure())
          break;
        for (int64_t i = 0; i < rows_; ++i) columns[i] = col_of_[i];
        if (wishes.row_duals != nullptr) {
          std::copy(v_, v_ + cols_, wishes.column_duals);
          for (int64_t i = 0; i < rows_; ++i) wishes.row_duals[i] = reduced(i, col_of_[i]);
        }
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
  using Find = RowScan<double, W>;
  static constexpr double kInfinity = std::numeric_limits<double>::infinity();

  const T* row(int64_t i) const { return cost_ + i * cols_; }
  double reduced(int64_t i, int64_t j) const { return static_cast<double>(row(i)[j]) - v_[j]; }

  Status plain(int32_t* columns) {
    SerialTeam team;
    const AssignmentWorkspace work(memory_, rows_, cols_);
    const Status status = solve_assignment(team, DenseCost<T>{cost_, rows_, cols_}, work);
    for (int64_t i = 0; i < rows_; ++i) columns[i] = work.col_of[i];
    if (wishes_.row_duals != nullptr && status == Status::kOk) {
      std::copy(work.u, work.u + rows_, wishes_.row_duals);
      std::copy(work.v, work.v + cols_, wishes_.column_duals);
    }
    return status;
  }

  // ---- The start ---------------------------------------------------------------------------------------------------

  // price_ = column minima. false: some cost is not finite.
  DIFFACCEL_INLINE bool column_minima() {
    T not_finite = 0;
    for (int64_t j = 0; j < cols_; ++j) price_[j] = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < rows_; ++i) RowScan<T, W>::lower_one(row(i), cols_, price_, not_finite);
    return not_finite == 0;
  }

  // price_ = those that an auction leaves, with its caches; column minima where the costs do not suit one. false: some
  // cost is not finite.
  DIFFACCEL_INLINE bool auction(const AuctionStart<T, W>& start) {
    if (!start.prices(price_, other_, reinterpret_cast<T*>(distance_), reinterpret_cast<T*>(label_))) return false;
    Auction<T, W> auction(cost_, rows_, price_, row_of_, cache_, columns_);
    cached_ = auction.run(start.choose(auction, price_, other_));
    statistics.bids = auction.counts().bids;
    statistics.scans = auction.counts().scans;
    return cached_ || column_minima();
  }

  // ---- The exact end, in float64 -----------------------------------------------------------------------------------

  // What no reduced cost of row i beyond its cache is below: it was when the cache was filled, however it was rounded,
  // and prices only fall.
  double cache_bound(int64_t i) const {
    const double bound = static_cast<double>(cache_[i].bound);
    return bound - 2 * static_cast<double>(std::numeric_limits<T>::epsilon()) * std::abs(bound);
  }

  DIFFACCEL_INLINE BestTwo<double> cached_two(int64_t i) const {
    return Find::best_two(cache_[i].cost, cache_[i].column, v_, RowCache<T>::places(rows_));
  }

  // The two least reduced costs of row i. From the cache, `second` may be a lower bound of it.
  DIFFACCEL_INLINE typename D::Two least_two(int64_t i) {
    if (cached_) {
      const double bound = cache_bound(i);
      const BestTwo<double> best = cached_two(i);
      if (best.first < bound) return {best.first, std::min(best.second, bound), cache_[i].column[best.position]};
    }
    ++statistics.full_scans;
    return D::reduced_two(row(i), v_, cols_);
  }

  void mark_free_columns() {
    for (int64_t j = 0; j < cols_; ++j) open_v_[j] = row_of_[j] < 0 ? v_[j] : -kInfinity;
  }

  // The lowest free column that attains row i's least reduced cost, else the given one. open_v_: the prices of free
  // columns, -inf at the others.
  DIFFACCEL_INLINE int64_t prefer_free(int64_t i, double least, int64_t column) const {
    if (row_of_[column] < 0) return column;
    const int64_t free = Find::find_reduced(row(i), open_v_, least, cols_);
    return free < cols_ ? free : column;
  }

  // Every row takes its cheapest column where that is free; the others become the free rows. Beside prices that are no
  // auction's, a taken column's falls until another is as cheap for its row, which leaves less to reduce. priced: from
  // price_, else from 0.
  DIFFACCEL_INLINE bool greedy(bool priced) {
    for (int64_t j = 0; j < cols_; ++j) v_[j] = priced ? static_cast<double>(price_[j]) : 0;
    for (int64_t i = 0; i < rows_; ++i) col_of_[i] = -1;
    for (int64_t j = 0; j < cols_; ++j) row_of_[j] = -1;
    num_free_ = 0;
    mark_free_columns();
    const auto* next = static_cast<const T*>(wishes_.next);
    for (int64_t i = 0; i < rows_; ++i) {
      for (int64_t j = 0; next != nullptr && j < cols_; j += 64 / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(next + i * cols_ + j, 0, 2);
      const typename D::Two two = least_two(i);
      if (two.column < 0) return false;
      const bool sole = two.second > two.first;
      const int64_t j = sole ? two.column : prefer_free(i, two.first, two.column);
      if (row_of_[j] >= 0) {
        free_[num_free_++] = static_cast<int32_t>(i);
        continue;
      }
      if (sole && !cached_ && two.second < kInfinity) v_[j] -= two.second - two.first;
      assign(i, j);
    }
    return true;
  }

  void assign(int64_t i, int64_t j) {
    row_of_[j] = static_cast<int32_t>(i);
    col_of_[i] = static_cast<int32_t>(j);
    open_v_[j] = -kInfinity;
  }

  // Augmenting row reduction: a free row takes its cheapest column and lowers its price to the second cheapest; the
  // row that held it goes on at once, or waits where nothing was gained.
  DIFFACCEL_INLINE void reduce_rows(int sweeps) {
    int64_t budget = 8 * num_free_ + 64;
    mark_free_columns();
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
      const int64_t j = Find::find(distance_, least, row_of_, cols_);
      if (j == cols_) return false;
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
    bool few = true;  // columns within rounding of a row's least
    double greatest = 0;
    for (int64_t j = 0; j < cols_; ++j) {
      price_[j] = static_cast<T>(v_[j]);
      greatest = std::max(greatest, std::abs(v_[j]));
    }
    for (int64_t i = 0; i < rows_; ++i) {
      const int64_t j = col_of_[i];
      const double held = static_cast<double>(row(i)[j]), mine = held - v_[j];
      const double rounding = 0x1p-51 * (std::abs(held) + std::abs(v_[j]));
      if (mine - least_of_row(i, mine, greatest, few) <= rounding) continue;
      free_[num_free_++] = static_cast<int32_t>(i);
      row_of_[j] = -1;
      col_of_[i] = -1;
    }
    if (num_free_ > 0) return false;
    // A column that was freed on the way may stay free only at the price 0.
    if (rows_ < cols_)
      for (int64_t j = 0; j < cols_; ++j)
        if (row_of_[j] < 0 && v_[j] != 0) return false;
    return true;
  }

  // The least reduced cost of row i, given one of them: in the cache, where that is below all others. Else in the
  // costs' own precision first: only columns that may be less, however it rounds, are looked at in float64. price_: v_
  // rounded; greatest: its greatest magnitude.
  DIFFACCEL_INLINE double least_of_row(int64_t i, double mine, double greatest, bool& few) const {
    if (cached_ && mine < cache_bound(i)) return std::min(mine, cached_two(i).first);
    if constexpr (!std::is_same_v<T, double>) {
      const double margin = 4 * static_cast<double>(std::numeric_limits<T>::epsilon()) * (std::abs(mine) + greatest);
      const T bound = static_cast<T>(mine + margin);
      if (few && std::isfinite(bound)) {
        // Looking for few costs a branch where some are: too much in a short row.
        const int64_t count = cols_ < kLongRow
                                  ? RowScan<T, W>::columns_below(row(i), price_, bound, cols_, columns_, cols_)
                                  : RowScan<T, W>::few_below(row(i), price_, bound, cols_, columns_, cols_);
        double least = mine;
        for (int64_t k = 0; k < count; ++k) least = std::min(least, reduced(i, columns_[k]));
        few = count <= kFewColumns;
        return least;
      }
    }
    return D::reduced_min(row(i), v_, cols_);
  }

  const T* cost_;
  int64_t rows_, cols_;
  void* memory_;
  AssignmentWishes wishes_;
  bool cached_ = false;  // the row caches hold
  int64_t num_free_ = 0;
  double* v_;           // [cols] column prices
  double* open_v_;      // [cols] the same, -inf: the column is on the tree
  double* distance_;    // [cols] shortest path lengths, inf: the column is on the tree
  double* label_;       // [cols] path length at which a column joined the tree
  double* closed_at_;   // [cols] the same in the order of joining, never falling
  T* price_;            // [cols] the auction's prices
  T* other_;            // [cols] the other start
  RowCache<T>* cache_;  // [rows]
  int32_t* row_of_;     // [cols] row assigned to each column, -1: free
  int32_t* closed_;     // [cols] columns on the tree, in order
  int32_t* columns_;    // [cols + kScanSlack] columns found by a scan
  int32_t* col_of_;     // [rows] column assigned to each row, -1: free
  int32_t* free_;       // [rows] rows without a column
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
// to 16. Wishes are fulfilled where the status is kOk.
template <class T>
Status solve_assignment_cpu(const T* cost, int64_t rows, int64_t cols, void* memory, int32_t* columns,
                            const AssignmentWishes& wishes = {}) {
  Status status = Status::kOk;
#if defined(__x86_64__) && defined(__GNUC__)
  switch (simd_level()) {
    case Simd::kAvx512:
      run_avx512([&]() DIFFACCEL_SIMD_BODY {
        status = DenseAssignment<T, 64>(cost, rows, cols, memory).run(columns, wishes);
      });
      return status;
    case Simd::kAvx2:
      run_avx2([&]() DIFFACCEL_SIMD_BODY {
        status = DenseAssignment<T, 32>(cost, rows, cols, memory).run(columns, wishes);
      });
      return status;
    case Simd::kPortable: break;
  }
#endif
  return DenseAssignment<T, 16>(cost, rows, cols, memory).run(columns, wishes);
}

}  // namespace diffaccel
