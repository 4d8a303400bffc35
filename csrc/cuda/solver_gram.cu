#include "../ops/solver_gram_checks.h"
#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

template <class D>
struct Directions {
  const D* data[kMaxDirections];
};

// directions J x [E], residual [E] -> partial [chunks, terms]: chunk sums of the upper triangle, then the right-hand
// side
template <class R, class D>
__global__ void gram_chunks_kernel(Directions<D> directions, int count, const R* residual, int64_t elements,
                                   double* partial) {
  __shared__ BlockTeam::Shared shared;
  BlockTeam team(shared);
  const int64_t first = blockIdx.x * kGramChunk;
  const int64_t last = first + kGramChunk < elements ? first + kGramChunk : elements;
  double* out = partial + blockIdx.x * int64_t{gram_terms(count)};
  for (int i = 0; i < count; ++i) {
    for (int j = i; j <= count; ++j) {  // j = count is the residual
      double mine = 0;
      for (int64_t e = first + team.lane(); e < last; e += team.lanes())
        mine += static_cast<double>(directions.data[i][e]) *
                (j < count ? static_cast<double>(directions.data[j][e]) : static_cast<double>(residual[e]));
      const double total = team.sum(mine);
      if (team.lane() == 0)
        out[j < count ? i * count - i * (i - 1) / 2 + (j - i) : count * (count + 1) / 2 + i] = total;
    }
  }
}

// partial [chunks, terms] -> gram [J, J], rhs [J], chunks added in order
__global__ void gram_total_kernel(const double* partial, int64_t chunks, int count, double* gram, double* rhs) {
  const int terms = gram_terms(count);
  for (int t = threadIdx.x; t < terms; t += blockDim.x) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk * terms + t];
    int row = 0, rest = t;
    while (row < count && rest >= count - row) rest -= count - row++;
    if (row < count) {
      gram[row * count + row + rest] = gram[(row + rest) * count + row] = total;
    } else {
      rhs[rest] = total;
    }
  }
}

// directions J x [*], residual [*] -> Gram matrix [J, J], right-hand side [J], both float64
std::tuple<Tensor, Tensor> solver_gram_cuda(std::vector<Tensor> directions, const Tensor& residual_in) {
  const ScalarType stored = check_solver_gram(directions, residual_in);
  const int count = static_cast<int>(directions.size());
  const Tensor residual = torch::stable::contiguous(residual_in);
  const Launch launch(residual);
  const int64_t elements = residual.numel(), chunks = (elements + kGramChunk - 1) / kGramChunk;
  Tensor gram = empty_contiguous(residual, {count, count}, ScalarType::Double);
  Tensor rhs = empty_contiguous(residual, {count}, ScalarType::Double);
  if (count == 0) return {gram, rhs};
  Tensor partial = empty_contiguous(residual, {chunks * gram_terms(count)}, ScalarType::Double);
  double* sums = static_cast<double*>(partial.mutable_data_ptr());
  if (chunks > 0) {
    dispatch_floating(residual.scalar_type(), "solver_gram", [&](auto r_zero) {
      dispatch_floating(stored, "solver_gram", [&](auto d_zero) {
        using R = decltype(r_zero);
        using D = decltype(d_zero);
        Directions<D> d{};
        for (int j = 0; j < count; ++j)
          d.data[j] = static_cast<const D*>(directions[static_cast<size_t>(j)].const_data_ptr());
        gram_chunks_kernel<<<static_cast<unsigned>(chunks), kBlock, 0, launch.stream()>>>(
            d, count, static_cast<const R*>(residual.const_data_ptr()), elements, sums);
      });
    });
    Launch::check("solver_gram");
  }
  gram_total_kernel<<<1, kBlock, 0, launch.stream()>>>(
      sums, chunks, count, static_cast<double*>(gram.mutable_data_ptr()), static_cast<double*>(rhs.mutable_data_ptr()));
  Launch::check("solver_gram");
  return {gram, rhs};
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) { m.impl("solver_gram", TORCH_BOX(&diffaccel::solver_gram_cuda)); }
