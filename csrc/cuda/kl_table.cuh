// The non-zero weights of Karhunen-Loeve coefficients on the device, compressed once per row.
#pragma once

#include "../core/kl_expansion.h"
#include "launch.cuh"

namespace diffaccel {

// Entries of one row's block of kTimes times: the terms that are not zero at all of them, with a weight for each time
// (0 where the term or the time is none).
template <class W>
struct KlBlocks {
  uint32_t* terms;  // [rows, blocks, M]
  W* weights;       // [rows, blocks, M, kTimes]
  int32_t* counts;  // [rows, blocks]
  int64_t blocks;
};

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// sqrt(sum_k c_k^2) by a warp, added in the order of kl_sigma.
__device__ inline double warp_sigma(const double* coeff, int64_t terms, int lane) {
  if (terms == 1) return coeff[0] < 0 ? -coeff[0] : coeff[0];
  double sum = 0;
  for (int64_t begin = 0; begin < terms; begin += warpSize) {
    const double c = begin + lane < terms ? coeff[begin + lane] : 0;
    for (unsigned rest = __ballot_sync(kWholeWarp, c != 0); rest != 0; rest &= rest - 1) {
      const double value = __shfl_sync(kWholeWarp, c, __ffs(static_cast<int>(rest)) - 1);
      sum += value * value;
    }
  }
  return sqrt(sum);
}

// coeff [rows, times, M] -> the entries; with kUnit the weights of unit noise and sigma [rows, times] as well. One warp
// for each block of times.
template <bool kUnit, int kTimes, class W>
__global__ void kl_compress_kernel(const double* coeff, int64_t rows, int64_t times, int64_t terms, KlBlocks<W> table,
                                   double* sigma) {
  const int lane = static_cast<int>(threadIdx.x) % warpSize;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / warpSize;
  for (int64_t n = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / warpSize; n < rows * table.blocks; n += warps) {
    const int64_t row = n / table.blocks, first = n % table.blocks * kTimes;
    const int here = static_cast<int>(times - first < kTimes ? times - first : kTimes);
    const double* c = coeff + (row * times + first) * terms;
    double norm[kTimes] = {};
    if constexpr (kUnit) {
      DIFFACCEL_UNROLL
      for (int s = 0; s < kTimes; ++s) {
        if (s >= here) break;
        norm[s] = warp_sigma(c + s * terms, terms, lane);
        if (lane == 0) sigma[row * times + first + s] = norm[s];
      }
    }
    int count = 0;
    for (int64_t begin = 0; begin < terms; begin += warpSize) {
      const int64_t k = begin + lane;
      W weight[kTimes] = {};
      bool used = false;
      DIFFACCEL_UNROLL
      for (int s = 0; s < kTimes; ++s) {
        if (s >= here || k >= terms) break;
        const double value = c[s * terms + k];
        weight[s] = kUnit ? static_cast<W>(kl_weight(value, norm[s], k)) : static_cast<W>(value);
        used |= weight[s] != 0;
      }
      const unsigned mask = __ballot_sync(kWholeWarp, used);
      if (used) {
        const int64_t at = n * terms + count + __popc(mask & ((1u << lane) - 1));
        table.terms[at] = static_cast<uint32_t>(k);
        DIFFACCEL_UNROLL
        for (int s = 0; s < kTimes; ++s) table.weights[at * kTimes + s] = weight[s];
      }
      count += __popc(mask);
    }
    if (lane == 0) table.counts[n] = count;
  }
}

// sum[s][w] = sum_k weight Z_k over the entries of one block, for the four elements of a counter.
template <bool kFused, int kTimes, class W>
__device__ void kl_sum_counter(const NoiseStream& stream, uint32_t counter, uint32_t sample, const KlBlocks<W>& table,
                               int64_t n, int64_t terms, W (&sum)[kTimes][4]) {
  const int count = table.counts[n];
  const uint32_t* __restrict__ term = table.terms + n * terms;
  const W* __restrict__ weights = table.weights + n * terms * kTimes;
  for (int i = 0; i < count; ++i) {
    const Normals z = normal4(stream, counter, sample, term[i]);
    DIFFACCEL_UNROLL
    for (int s = 0; s < kTimes; ++s) {
      const W weight = weights[int64_t{i} * kTimes + s];
      DIFFACCEL_UNROLL
      for (int w = 0; w < 4; ++w) {
        const W value = static_cast<W>(z.z[w]);
        sum[s][w] =
            i == 0 ? weight * value : (kFused ? fused(weight, value, sum[s][w]) : mul_add(weight, value, sum[s][w]));
      }
    }
  }
}

// Memory of a table, like x, and its making on the stream of a launch.
template <bool kUnit, int kTimes, class W>
class KlDeviceTable {
 public:
  KlDeviceTable(const char* op, const Tensor& x, const Tensor& coeff_in, int64_t rows, int64_t times, int64_t terms,
                double* sigma, const Launch& launch)
      : coeff_(contiguous_as(coeff_in, ScalarType::Double)) {
    const int64_t blocks = (times + kTimes - 1) / kTimes;
    const ScalarType wide = sizeof(W) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
    terms_ = empty_contiguous(x, {rows, blocks, terms}, ScalarType::Int);
    weights_ = empty_contiguous(x, {rows, blocks, terms, kTimes}, wide);
    counts_ = empty_contiguous(x, {rows, blocks}, ScalarType::Int);
    kl_compress_kernel<kUnit, kTimes, W><<<blocks_for(rows * blocks * 32), kBlock, 0, launch.stream()>>>(
        static_cast<const double*>(coeff_.const_data_ptr()), rows, times, terms, view(blocks), sigma);
    Launch::check(op);
    blocks_ = blocks;
  }
  KlBlocks<W> view() const { return view(blocks_); }

 private:
  KlBlocks<W> view(int64_t blocks) const {
    return {static_cast<uint32_t*>(terms_.mutable_data_ptr()), static_cast<W*>(weights_.mutable_data_ptr()),
            static_cast<int32_t*>(counts_.mutable_data_ptr()), blocks};
  }

  Tensor coeff_, terms_, weights_, counts_;
  int64_t blocks_ = 0;
};

}  // namespace diffaccel
