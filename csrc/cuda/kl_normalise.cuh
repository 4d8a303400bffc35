// Per-sample sigma and unit weights of Karhunen-Loeve coefficients, as the CPU computes them.
#pragma once

#include "../core/kl_expansion.h"
#include "launch.cuh"

namespace diffaccel {

// coeff [R, M] -> weights [R, M], sigma [R]
template <class C>
__global__ void kl_normalise_kernel(const C* coeff, int64_t rows, int64_t terms, float* weights, double* sigma) {
  for (int64_t row = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; row < rows; row += int64_t{gridDim.x} * blockDim.x)
    sigma[row] = kl_normalise(coeff + row * terms, terms, weights + row * terms);
}

}  // namespace diffaccel
