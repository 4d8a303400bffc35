// What a team shares while it solves one assignment problem (hungarian_parallel.h): the cost, the arrays, the counters.
#pragma once

#include <cmath>

#include "atomics.h"
#include "hungarian.h"

namespace diffaccel {

constexpr int kBins = 32;       // a row's columns are dealt to bins: j goes to bin j % kBins, one lane of a CUDA warp
constexpr int kPerBin = 2;      // columns that a row's cache keeps of each bin
constexpr int kChunks = 16;     // parts of the rows whose column sums are added in order
constexpr int kSamples = 33;    // rows whose gaps set the auction's epsilon
constexpr int kMostTrees = 32;  // shortest-path trees that may grow at once: the bits of a word
constexpr int kStampBits = 12, kRowBits = 21;  // of a bid's word
constexpr int32_t kMostRounds = (1 << kStampBits) - 1;

// Limits and thresholds; tests change them to reach every branch.
struct AuctionSettings {
  double first_epsilon = 4;     // of the typical gap between a row's two least reduced costs
  double last_epsilon = 0.003;  // likewise
  double divide = 4;            // epsilon's, from phase to phase
  double stop = 0.32;           // a phase ends with so many unassigned rows, times the root of their number
  int32_t auction_from = 96;    // rows below which the auction does not pay
  int32_t patience = 128;       // rounds of the first phase before epsilon grows
  int32_t rounds = 2000;        // budget of the auction, of at most kMostRounds
  int32_t reductions = 64;      // budget of the exact row reduction
  int32_t repeats = 8;          // rounds of repair after a failed certificate
  int32_t trees = 1;            // shortest-path trees that grow at once, at most kMostTrees
};

struct AuctionStatistics {
  int32_t bids, fills, rounds, reductions, free_before, free_after, tree_rounds, trees, steps, repeats, plain;
};

template <class T>
struct AssignmentProblem {
  using U = wide_t<T>;

  // One tree of shortest paths.
  struct Tree {
    double reached;  // path length of the sink
    int32_t start, sink, closed;
  };

  struct Control {
    uint64_t largest;        // bits of the greatest finite |cost|
    int32_t count[3];        // lengths of the lists of three consecutive rounds
    uint32_t flags;          // kInvalid and others
    uint32_t accepted[3];    // trees taken in three consecutive rounds
    U typical;               // median of gap
    U gap[kSamples];         // between the two least reduced costs of sampled rows
    int32_t poor[kSamples];  // sampled rows with ties or a heavy tail
    Tree tree[kMostTrees];
    AuctionStatistics statistics;
  };
  enum Flag : uint32_t { kHoldsInvalid = 1, kHoldsForbidden = 2, kNotFinite = 4, kNoPath = 8, kBroken = 16 };

  const T* cost;  // [rows, cols], row-major, rows <= cols
  int64_t rows, cols;
  double sign;  // -1 maximises
  AuctionSettings settings;

  Control* control;
  U* price;              // [cols] the auction's prices
  double* v;             // [cols] exact prices
  uint64_t* word;        // [cols] the best bid for a column, or the tree that claims it
  int32_t* row_of;       // [cols] row assigned to each column, -1: free
  int32_t* col_of;       // [rows] column assigned to each row, -1: free
  int32_t* bid_column;   // [rows]
  U* bid_amount;         // [rows] fall of the column's price
  double* exact_amount;  // [rows] likewise, in the exact finish
  int32_t* list[2];      // [rows] unassigned rows of this round and the next
  U* cache_cost;         // [rows, kPerBin, kBins]
  int32_t* cache_column;
  U* cache_bound;     // [rows] every other column has a reduced cost of at least this
  double* chunk_sum;  // [kChunks, cols]
  double* chunk_min;  // [kChunks, cols]
  double* distance;   // [trees, cols] shortest path lengths, inf: the column is on the tree
  double* open_v;     // [trees, cols] v, -inf: the column is on the tree
  double* closed_at;  // [trees, cols] path length at which columns joined, in order
  int32_t* closed;    // [trees, cols] columns on the tree, in order; the sink last
  int32_t* from;      // [trees, cols] row before each column on its path
  void* plain;        // AssignmentWorkspace of the last resort

  DIFFACCEL_INLINE U at(int64_t i, int64_t j) const {
    const U value = static_cast<U>(cost[i * cols + j]);
    return sign < 0 ? -value : value;
  }
  DIFFACCEL_INLINE bool square() const { return rows == cols; }

  // Hands out one array after the other; with `fast` memory, the first ones that fit lie there.
  struct Carver {
    unsigned char* fast;
    int64_t fast_left;
    unsigned char* slow;
    int64_t used;

    template <class X>
    DIFFACCEL_HD void take(X*& array, int64_t count, bool wants_fast = false) {
      const int64_t bytes = (count * static_cast<int64_t>(sizeof(X)) + 15) / 16 * 16;
      if (wants_fast && bytes <= fast_left) {
        array = reinterpret_cast<X*>(fast);
        fast += bytes;
        fast_left -= bytes;
        return;
      }
      array = slow == nullptr ? nullptr : reinterpret_cast<X*>(slow + used);
      used += bytes;
    }
  };

  // Lays out the arrays in `memory` (bytes() of it, aligned to 16) and returns how much they take; null only counts.
  // fast: memory of the whole team's, for what is read most; group_fast: memory of one group's, for its tree.
  DIFFACCEL_HD int64_t lay_out(void* memory, void* fast = nullptr, int64_t fast_bytes = 0, void* group_fast = nullptr,
                               int64_t group_fast_bytes = 0) {
    Carver carver{static_cast<unsigned char*>(fast), fast_bytes, static_cast<unsigned char*>(memory), 0};
    carver.take(control, 1, true);
    carver.take(price, cols, true);
    carver.take(word, cols, true);
    carver.take(row_of, cols, true);
    carver.take(v, cols, true);
    carver.take(col_of, rows, true);
    carver.take(bid_column, rows, true);
    carver.take(bid_amount, rows, true);
    carver.take(exact_amount, rows, true);
    carver.take(list[0], rows, true);
    carver.take(list[1], rows, true);
    if (group_fast == nullptr) {
      group_fast = carver.fast;
      group_fast_bytes = carver.fast_left;
    }
    carver.take(cache_bound, rows);
    carver.take(cache_cost, rows * kBins * kPerBin);
    carver.take(cache_column, rows * kBins * kPerBin);
    const int64_t trees = settings.trees;
    // The sums are needed before the trees.
    const int64_t before = carver.used;
    carver.take(chunk_sum, square() ? kChunks * cols : 0);
    carver.take(chunk_min, square() ? kChunks * cols : 0);
    const int64_t sums = carver.used;
    carver.used = before;
    carver.take(distance, trees * cols);
    carver.take(open_v, trees * cols);
    carver.take(closed_at, trees * cols);
    carver.take(closed, trees * cols);
    carver.take(from, trees * cols);
    carver.used = carver.used > sums ? carver.used : sums;
    unsigned char* bytes = nullptr;
    carver.take(bytes, AssignmentWorkspace::bytes(rows, cols));
    plain = bytes;
    // A group grows one tree at a time: its distances may lie in the group's own memory.
    Carver own{static_cast<unsigned char*>(group_fast), group_fast_bytes, nullptr, 0};
    double* array = nullptr;
    own.take(array, cols, true);
    if (array != nullptr) distance = array;
    distance_stride = array != nullptr ? 0 : cols;
    array = nullptr;
    own.take(array, cols, true);
    if (array != nullptr) open_v = array;
    open_stride = array != nullptr ? 0 : cols;
    return carver.used;
  }
  int64_t distance_stride, open_stride;  // between trees; 0: in the group's own memory

  // Fast memory that lay_out can use.
  static constexpr int64_t fast_bytes(int64_t rows, int64_t cols) {
    return cols * static_cast<int64_t>(4 * sizeof(double) + sizeof(U) + sizeof(int32_t)) +
           rows * static_cast<int64_t>(sizeof(double) + sizeof(U) + 4 * sizeof(int32_t)) +
           static_cast<int64_t>(sizeof(Control)) + 16 * 13;
  }
  static constexpr int64_t group_fast_bytes(int64_t cols) { return 2 * (cols * 8 + 16); }

  static int64_t bytes(int64_t rows, int64_t cols, int32_t trees) {
    AssignmentProblem problem{};
    problem.rows = rows;
    problem.cols = cols;
    problem.settings.trees = trees;
    return problem.lay_out(nullptr);
  }
};

// How far column j lies from row i, onwards and around: among equal columns a row takes the nearest, so that rows
// spread over ties and a constant cost gives the identity.
DIFFACCEL_INLINE uint32_t turn(int64_t i, int64_t j, int64_t cols) {
  return static_cast<uint32_t>(j >= i ? j - i : j - i + cols);
}

// A bid as a number: the later round, then the greater amount, then the lower row wins.
DIFFACCEL_INLINE uint64_t bid_word(int32_t round, float amount, int64_t row) {
  return static_cast<uint64_t>(round) << (64 - kStampBits) |
         static_cast<uint64_t>(bits_as<uint32_t>(amount) & 0x7fffffffu) << kRowBits |
         ((uint64_t{1} << kRowBits) - 1 - static_cast<uint64_t>(row));
}

}  // namespace diffaccel
