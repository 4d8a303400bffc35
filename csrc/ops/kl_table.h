// The non-zero weights of Karhunen-Loeve coefficients, compressed once per row before the samples are made.
#pragma once

#include <memory>

#include "../core/kl_sum.h"
#include "common.h"

namespace diffaccel {

// Calls f(coefficients) with the float or double numbers of a contiguous table.
template <class F>
void with_coefficients(const Tensor& table, F&& f) {
  if (table.scalar_type() == ScalarType::Float) {
    const Tensor x = torch::stable::contiguous(table);
    f(static_cast<const float*>(x.const_data_ptr()));
  } else {
    const Tensor x = contiguous_as(table, ScalarType::Double);
    f(static_cast<const double*>(x.const_data_ptr()));
  }
}

// Drawings and entries of coeff [rows, times, M] in blocks of kKlTimes times. The memory reserved is that of a dense
// table; pages that nothing is written to are never touched.
template <class W>
class KlTable {
 public:
  // sigma [rows, times] as in kl_compress
  KlTable(const Tensor& coeff, int64_t rows, int64_t times, int64_t terms, const double* sigma)
      : times_(times),
        most_((terms + kKlDrawn - 1) / kKlDrawn),
        blocks_((times + kKlTimes - 1) / kKlTimes),
        drawings_(std::make_unique_for_overwrite<KlDrawing[]>(static_cast<size_t>(rows * blocks_ * most_))),
        entries_(std::make_unique_for_overwrite<KlEntry<W>[]>(static_cast<size_t>(rows * times * most_))),
        counts_(static_cast<size_t>(rows * blocks_)) {
    with_coefficients(coeff, [&](const auto* c) {
      torch::stable::parallel_for(0, rows * blocks_, 1 + 4096 / (times * terms), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t row = n / blocks_, block = n % blocks_, first = row * times + block * kKlTimes;
          counts_[static_cast<size_t>(n)] =
              kl_compress(c + first * terms, terms, times_of(block), sigma != nullptr ? sigma + first : nullptr,
                          drawings_.get() + n * most_, entries_.get() + first * most_);
        }
      });
    });
  }

  int64_t blocks() const { return blocks_; }
  int times_of(int64_t block) const {
    const int64_t left = times_ - block * kKlTimes;
    return static_cast<int>(left < kKlTimes ? left : kKlTimes);
  }
  // Terms that one group of the first row costs, about.
  int64_t cost() const { return 1 + kKlDrawn * counts_[0]; }

  // sum [times of the block] over one group of one row's noise, as kl_sum_group
  template <bool kFused>
  DIFFACCEL_INLINE void sum(const NoiseStream& stream, int64_t group, uint32_t sample, int64_t row, int64_t block,
                            W (*sum)[kGroup]) const {
    const int64_t n = row * blocks_ + block;
    kl_sum_group<kFused>(stream, group, sample, drawings_.get() + n * most_, counts_[static_cast<size_t>(n)],
                         entries_.get() + (row * times_ + block * kKlTimes) * most_, sum);
  }

 private:
  int64_t times_, most_, blocks_;
  std::unique_ptr<KlDrawing[]> drawings_;
  std::unique_ptr<KlEntry<W>[]> entries_;
  std::vector<int64_t> counts_;
};

}  // namespace diffaccel
