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

// Entries of coeff [rows, times, M] in blocks of kKlTimes times. The memory reserved is that of a dense table; pages
// that no entry reaches are never touched.
template <class W>
class KlTable {
 public:
  // sigma [rows, times] as in kl_compress
  KlTable(const Tensor& coeff, int64_t rows, int64_t times, int64_t terms, const double* sigma)
      : stride_(times * terms),
        terms_(terms),
        blocks_((times + kKlTimes - 1) / kKlTimes),
        entries_(std::make_unique_for_overwrite<KlEntry<W>[]>(static_cast<size_t>(rows * stride_))),
        counts_(static_cast<size_t>(rows * blocks_)) {
    with_coefficients(coeff, [&](const auto* c) {
      torch::stable::parallel_for(0, rows * blocks_, 1 + 4096 / stride_, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          const int64_t row = n / blocks_, first = n % blocks_ * kKlTimes;
          const int64_t left = times - first;
          counts_[static_cast<size_t>(n)] = kl_compress(
              c + row * stride_ + first * terms_, terms_, static_cast<int>(left < kKlTimes ? left : kKlTimes),
              sigma != nullptr ? sigma + row * times + first : nullptr, at(n));
        }
      });
    });
  }

  int64_t blocks() const { return blocks_; }
  const KlEntry<W>* entries(int64_t row, int64_t block) const { return at(row * blocks_ + block); }
  int64_t count(int64_t row, int64_t block) const { return counts_[static_cast<size_t>(row * blocks_ + block)]; }

 private:
  KlEntry<W>* at(int64_t n) const { return entries_.get() + n / blocks_ * stride_ + n % blocks_ * kKlTimes * terms_; }

  int64_t stride_, terms_, blocks_;
  std::unique_ptr<KlEntry<W>[]> entries_;
  std::vector<int64_t> counts_;
};

}  // namespace diffaccel
