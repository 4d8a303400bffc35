// The auction that does the bulk of an assignment on one CPU thread. Host only.
//
// D. P. Bertsekas, "The auction algorithm: a distributed relaxation method for the assignment problem", Annals of
// Operations Research 14, 1988: an unassigned row takes its cheapest column from its owner and lowers that column's
// price until the row's second cheapest column is epsilon cheaper; epsilon falls from phase to phase.
//
// A row bids from a cache of its cheapest columns. Prices only fall, so every other column stays at or above the
// reduced cost that bounded the cache when it was filled; a row is scanned again only when its best cached column has
// risen to that bound.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "hd.h"
#include "row_scan.h"

namespace diffaccel {

// A row's cheapest columns at some prices. Places beyond `count` repeat a column at infinite cost.
template <class T>
struct alignas(64) RowCache {
  static constexpr int64_t kColumns = 32;  // a multiple of 16, as places() is
  // How many places of the cache a problem uses: a scan of a short row costs little more than a bid.
  static constexpr int64_t places(int64_t size) { return size < 1024 ? 16 : kColumns; }
  T cost[kColumns];
  int32_t column[kColumns];
  T bound;  // every other column has a reduced cost of at least this
  T gap;    // bound - least reduced cost that fills the cache well
  int32_t count;
};

struct AuctionCounts {
  int64_t bids = 0, scans = 0, ties = 0;
};

template <class T, int W>
class Auction {
 public:
  // cost [size, size]; price [size]: the start, and the end; the rest is memory: owner [size], cache [size],
  // columns [size + kScanSlack].
  Auction(const T* cost, int64_t size, T* price, int32_t* owner, RowCache<T>* cache, int32_t* columns)
      : cost_(cost),
        size_(size),
        places_(RowCache<T>::places(size)),
        fill_(places_ * 5 / 8),
        price_(price),
        owner_(owner),
        cache_(cache),
        columns_(columns) {}

  // Runs from the prices at hand, of the given typical_width. Afterwards the caches hold at the prices left behind.
  // false: the costs do not suit an auction.
  DIFFACCEL_INLINE bool run(T width) {
    // Costs that matter are those near a row's least: of the magnitude of the prices.
    T largest = width;
    for (int64_t j = 0; j < size_; ++j) largest = std::max(largest, std::abs(price_[j]));
    if (!(largest < std::numeric_limits<T>::max() / 16)) return false;
    const T typical = width / static_cast<T>(fill_);
    const T finest = 8 * std::numeric_limits<T>::epsilon() * largest;
    if (!(typical > 8 * finest)) return false;
    for (int64_t i = 0; i < size_; ++i) {
      cache_[i].gap = width;
      cache_[i].count = 0;
    }
    // What the auction leaves, shortest paths finish: they are cheap where rows are short.
    const T last_epsilon = static_cast<T>(size_ < 384 ? 0.012 : 0.003);
    T epsilon = kFirstEpsilon * typical;
    const T last = std::max(last_epsilon * typical, finest);
    while (true) {
      const Outcome outcome = phase(epsilon);
      if (outcome == Outcome::kUnsuited) return false;
      if (outcome == Outcome::kSpent || !(epsilon > last)) return true;  // spent: a good start nevertheless
      epsilon = std::max(epsilon / kDivide, last);
    }
  }

  // The median over some rows of the distance from the least reduced cost that fills a cache.
  DIFFACCEL_INLINE T typical_width(const T* price) {
    constexpr int kRows = 9;
    T width[kRows];
    for (int s = 0; s < kRows; ++s) {
      const T* c = row(s * (size_ - 1) / (kRows - 1));
      const T least = Scan::least(c, price, size_);
      // Doubled from a guess, then halved: a dozen scans of a row that is in the cache of the processor.
      T low = 0, high = least + (largest_of(c, price) - least) / 64;
      high -= least;
      for (int step = 0; step < 8 && Scan::columns_below(c, price, least + high, size_, columns_) < fill_; ++step) {
        low = high;
        high *= 2;
      }
      for (int step = 0; step < 6; ++step) {
        const T middle = low + (high - low) / 2;
        (Scan::columns_below(c, price, least + middle, size_, columns_) < fill_ ? low : high) = middle;
      }
      width[s] = high;
    }
    std::nth_element(width, width + kRows / 2, width + kRows);
    return width[kRows / 2];
  }

  const AuctionCounts& counts() const { return counts_; }

 private:
  using Scan = RowScan<T, W>;
  using Cache = RowCache<T>;
  static constexpr T kFirstEpsilon = 0.6, kDivide = 8, kGrow = 4;  // of the typical gap between a row's best columns
  static constexpr int64_t kPatience = 32;                         // bids a row
  enum class Outcome { kDone, kSpent, kUnsuited };

  const T* row(int64_t i) const { return cost_ + i * size_; }

  // A reduced cost well above the least: the greatest of a few.
  DIFFACCEL_INLINE T largest_of(const T* c, const T* price) const {
    T largest = c[0] - price[0];
    for (int64_t j = 0; j < size_; j += (size_ + 15) / 16) largest = std::max(largest, c[j] - price[j]);
    return largest;
  }

  // Every row bids until it owns a column. Two chains of displaced rows alternate: each bid waits for memory and for
  // the one before it in its chain only. Epsilon grows where rows outbid each other for long.
  DIFFACCEL_INLINE Outcome phase(T& epsilon) {
    for (int64_t j = 0; j < size_; ++j) owner_[j] = -1;
    int64_t next = 0, patience = counts_.bids + kPatience * size_;
    int32_t chain[2] = {-1, -1};
    for (bool active = true; active;) {
      active = false;
      for (int32_t& i : chain) {
        if (i < 0) {
          if (next == size_) continue;
          i = static_cast<int32_t>(next++);
        }
        active = true;
        const int32_t j = bid(i, epsilon);
        std::swap(i, owner_[j]);
        prefetch(i >= 0 ? i : std::min(next, size_ - 1));
      }
      if (counts_.bids > patience) {
        epsilon *= kGrow;
        patience += kPatience * size_;
      }
      if (counts_.ties > size_ / 4) return Outcome::kUnsuited;
      if (counts_.scans > 3 * size_ + counts_.bids / 3 && counts_.bids < 16 * size_) return Outcome::kUnsuited;
      // A row that has not bid yet has no cache.
      if (counts_.bids > 256 * size_) return next == size_ ? Outcome::kSpent : Outcome::kUnsuited;
    }
    return Outcome::kDone;
  }

  DIFFACCEL_INLINE void prefetch(int64_t i) const {
    const char* cache = reinterpret_cast<const char*>(cache_ + i);
    for (size_t byte = 0; byte < sizeof(Cache); byte += 64) __builtin_prefetch(cache + byte);
  }

  // Row i takes its cheapest column and lowers that column's price until its second cheapest is epsilon cheaper.
  DIFFACCEL_INLINE int32_t bid(int64_t i, T epsilon) {
    ++counts_.bids;
    Cache& cache = cache_[i];
    BestTwo<T> best{0, 0, 0};
    if (cache.count > 0) best = Scan::best_two(cache.cost, cache.column, price_, places_);
    if (!(cache.count > 0 && best.first < cache.bound)) {
      fill(i, cache.count > 0 ? best.first : Scan::least(row(i), price_, size_));
      best = Scan::best_two(cache.cost, cache.column, price_, places_);
    }
    const int32_t j = cache.column[best.position];
    const T second = std::min(best.second, cache.bound);
    price_[j] -= (second > best.first ? second - best.first : 0) + epsilon;
    return j;
  }

  // Fills row i's cache at today's prices; `attained` is a reduced cost of the row, its least or little above.
  DIFFACCEL_INLINE void fill(int64_t i, T attained) {
    ++counts_.scans;
    Cache& cache = cache_[i];
    const T* c = row(i);
    T bound = attained + cache.gap;
    // First fills come row after row. Later ones are of any row: processors fetch ahead to the end of a page only.
    constexpr int64_t kPage = 4096 / sizeof(T);
    const int64_t ahead = cache.count == 0 ? size_ : size_ > kPage ? kPage : 0;
    int64_t count = Scan::columns_below(c, price_, bound, size_, columns_, ahead);
    if (count > places_) {
      // Lower the bound until the cache holds them; none are left where the least is tied too often.
      T least = attained;
      for (int64_t k = 0; k < count; ++k) least = std::min(least, c[columns_[k]] - price_[columns_[k]]);
      T width = bound - least;
      for (int attempt = 0; count > places_; ++attempt) {
        width = attempt < 24 ? width * (static_cast<T>(places_ - places_ / 8) / static_cast<T>(count)) : 0;
        bound = least + width;
        int64_t kept = 0;
        for (int64_t k = 0; k < count; ++k) {
          const int32_t j = columns_[k];
          columns_[kept] = j;
          kept += c[j] - price_[j] < bound ? 1 : 0;
        }
        count = kept;
      }
      cache.gap = width;
    } else if (count < fill_ / 2) {
      cache.gap *= static_cast<T>(1.5);
    }
    if (count == 0) {
      ++counts_.ties;
      const T least = Scan::least(c, price_, size_);
      int64_t j = 0;
      while (j + 1 < size_ && c[j] - price_[j] > least) ++j;
      columns_[0] = static_cast<int32_t>(j);
      count = 1;
    }
    cache.bound = bound;
    cache.count = static_cast<int32_t>(count);
    for (int64_t k = 0; k < places_; ++k) {
      const int32_t j = columns_[k < count ? k : 0];
      cache.column[k] = j;
      cache.cost[k] = k < count ? c[j] : std::numeric_limits<T>::infinity();
    }
  }

  const T* cost_;
  int64_t size_;
  int64_t places_;      // of each cache that are used
  int64_t fill_;        // columns that a cache should hold when it is filled
  T* price_;            // [size] column prices; they only fall
  int32_t* owner_;      // [size] row that holds each column, -1: none
  RowCache<T>* cache_;  // [size]
  int32_t* columns_;    // [size + kScanSlack]
  AuctionCounts counts_;
};

}  // namespace diffaccel
