// Where the auction's prices start. Host only.
//
// Prices only fall, so the auction lasts until all columns have fallen to the level of the one that starts the lowest
// beside its final price. Column minima are near the final prices where rows are alike (noise, points, heavy tails).
// Where rows differ in scale (images of unlike contrast) the loudest rows hold all minima; there every row is first
// brought to a level of its own. Both starts are made in one pass over the matrix; any start gives an exact answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "hd.h"
#include "hungarian_cpu_auction.h"
#include "row_scan.h"

namespace diffaccel {

template <class T, int W>
class AuctionStart {
 public:
  // cost [size, size], size >= 32
  AuctionStart(const T* cost, int64_t size) : cost_(cost), size_(size) {}

  // Whether most sampled rows attain their least cost twice: there the auction does not pay.
  DIFFACCEL_INLINE bool tied() const {
    constexpr int kRows = 9;
    int votes = 0;
    for (int s = 0; s < kRows; ++s) {
      const T* c = row(s * (size_ - 1) / (kRows - 1));
      const T least = least_of(c);
      int64_t attained = 0;
      for (int64_t j = 0; j < size_; ++j) attained += c[j] == least ? 1 : 0;
      votes += attained > 1 ? 1 : 0;
    }
    return 2 * votes > kRows;
  }

  // minima [size]: column minima. levelled [size]: the mean over 32 blocks of rows of the block's column minima of
  // cost - row level. A row's level is its mean over 32 classes of columns of the least cost less the column's mean.
  // mean, least [size]: memory. false: some cost is not finite.
  DIFFACCEL_INLINE bool prices(T* minima, T* levelled, T* mean, T* least) const {
    for (int64_t j = 0; j < size_; ++j) {
      minima[j] = least[j] = std::numeric_limits<T>::infinity();
      levelled[j] = mean[j] = 0;
    }
    const T sampled = static_cast<T>((size_ + 15) / 16);
    for (int64_t i = 0; i < size_; i += 16)
      for (int64_t j = 0; j < size_; ++j) mean[j] += row(i)[j];
    for (int64_t j = 0; j < size_; ++j) mean[j] /= sampled;
    const int64_t block = 4 * ((size_ + 127) / 128), blocks = size_ / block;
    // A level is of fewer than 2,048 columns: memory is what a longer row waits for.
    const int64_t every = 32 * std::max<int64_t>(1, size_ / 1024);
    T not_finite = 0;
    for (int64_t i = 0; i < size_; i += 4) {
      const T* c[4];
      T level[4];
      for (int r = 0; r < 4; ++r) {
        // Rows beyond the last repeat the first of their four.
        c[r] = i + r < size_ ? row(i + r) : c[0];
        level[r] = i + r >= size_ ? level[0]
                   : every == 32  ? Scan::level(c[r], mean, size_, 4 * size_, not_finite)
                                  : Scan::level_of_some(c[r], mean, size_, every);
      }
      if (every == 32)
        Scan::template lower<false>(c, level, size_, minima, least, 0, not_finite);
      else
        Scan::template lower<true>(c, level, size_, minima, least, 4 * size_, not_finite);
      if ((i + 4) % block == 0 && i + 4 <= size_) {
        for (int64_t j = 0; j < size_; ++j) {
          levelled[j] += least[j] / static_cast<T>(blocks);
          least[j] = std::numeric_limits<T>::infinity();
        }
      }
    }
    return not_finite == 0;
  }

  // Leaves the better start in `minima`, which are the auction's prices; returns their typical_width.
  DIFFACCEL_INLINE T choose(Auction<T, W>& auction, T* minima, const T* levelled) const {
    // What the levelled start gains in dual value, per row, estimated on some rows; and how much the two differ.
    const int64_t sampled = std::clamp<int64_t>(size_ / 16, 32, 256);
    double rows_gain = 0, columns_gain = 0, spread = 0;
    for (int64_t s = 0; s < sampled; ++s) {
      const T* c = row(s * (size_ - 1) / (sampled - 1));
      rows_gain +=
          static_cast<double>(Scan::least(c, levelled, size_)) - static_cast<double>(Scan::least(c, minima, size_));
    }
    const double count = static_cast<double>(size_);
    const auto difference = [&](int64_t j) {
      return static_cast<double>(levelled[j]) - static_cast<double>(minima[j]);
    };
    for (int64_t j = 0; j < size_; ++j) columns_gain += difference(j) / count;
    for (int64_t j = 0; j < size_; ++j) spread += std::abs(difference(j) - columns_gain) / count;
    const T width = auction.typical_width(levelled);
    const double scale = static_cast<double>(width);
    const double gain = columns_gain + rows_gain / static_cast<double>(sampled);
    // Column minima where the starts agree or their dual value is far greater. Limits measured on images, noise, points
    // and heavy tails; a wrong choice costs time only.
    if (gain < -0.5 * scale || (gain < -0.15 * scale && spread < 0.4 * scale)) return auction.typical_width(minima);
    std::copy(levelled, levelled + size_, minima);
    return width;
  }

 private:
  using Scan = RowScan<T, W>;
  const T* row(int64_t i) const { return cost_ + i * size_; }

  DIFFACCEL_INLINE T least_of(const T* c) const {
    T lane[32];  // so that compilers use vectors
    std::copy(c, c + 32, lane);
    for (int64_t j = 32; j + 32 <= size_; j += 32)
      for (int k = 0; k < 32; ++k) lane[k] = c[j + k] < lane[k] ? c[j + k] : lane[k];
    for (int64_t j = size_ / 32 * 32; j < size_; ++j) lane[0] = c[j] < lane[0] ? c[j] : lane[0];
    return *std::min_element(lane, lane + 32);
  }

  const T* cost_;
  int64_t size_;
};

}  // namespace diffaccel
