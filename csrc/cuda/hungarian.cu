#include "../core/hungarian_parallel.h"
#include "../ops/hungarian_checks.h"
#include "block_team.cuh"
#include "launch.cuh"

namespace diffaccel {
namespace {

constexpr int kWarpColumns = 32;    // a warp per problem up to here
constexpr int kBlockColumns = 512;  // beyond, one problem gets the whole grid
constexpr int kMostThreads = 512;
constexpr int kGridTrees = 8;  // trees that grow at once there, each in a block; fewer where columns are to spare

struct Arguments {
  const void* cost;  // [items, R, C]
  int64_t items, R, C;
  double sign;
  unsigned char* scratch;
  int64_t scratch_bytes;  // of each block
  int64_t* columns;       // [items, R]
  int32_t* status;        // [items]
};

// Small problems, a block of one warp each: no column beyond kWarpColumns, either way around.
template <class T>
__global__ void __launch_bounds__(32) hungarian_warp_kernel(Arguments a) {
  __shared__ alignas(16) unsigned char memory[AssignmentWorkspace::bytes(kWarpColumns, kWarpColumns)];
  WarpTeam team;
  const bool tall = a.R > a.C;
  const int64_t rows = tall ? a.C : a.R, cols = tall ? a.R : a.C;
  const AssignmentWorkspace work(memory, rows, cols);
  for (int64_t item = blockIdx.x; item < a.items; item += gridDim.x) {
    const CostView<T> view{
        static_cast<const T*>(a.cost) + item * a.R * a.C, rows, cols, tall ? 1 : a.C, tall ? a.C : 1, a.sign};
    const Status status = solve_assignment(team, view, work);
    write_assignment(team, work, a.R, a.C, status, a.columns + item * a.R);
    if (team.lane() == 0) a.status[item] = static_cast<int32_t>(status);
    team.barrier();  // the answer is read before the next problem overwrites the workspace
  }
}

// Memory of a block for the description of its problem: some thirty pointers that would take its registers.
template <class T>
struct ProblemMemory {
  alignas(16) unsigned char bytes[sizeof(AssignmentProblem<T>)];
};

// The problem of item `item`, whose cost has been transposed where it was tall.
template <class T, class LayOut>
__device__ __forceinline__ const AssignmentProblem<T>& problem_of(ProblemMemory<T>& memory, const Arguments& a,
                                                                  int64_t item, int trees, const LayOut& lay_out) {
  auto& p = *reinterpret_cast<AssignmentProblem<T>*>(memory.bytes);
  if (threadIdx.x == 0) {
    p.cost = static_cast<const T*>(a.cost) + item * a.R * a.C;
    p.rows = a.R < a.C ? a.R : a.C;
    p.cols = a.R < a.C ? a.C : a.R;
    p.sign = a.sign;
    p.settings = AuctionSettings{};
    p.settings.trees = trees;
    lay_out(p);
  }
  __syncthreads();
  return p;
}

template <class Team, class T>
__device__ __forceinline__ void solve_and_write(Team& team, const AssignmentProblem<T>& p, const Arguments& a,
                                                int64_t item) {
  const Status status = solve_parallel(team, p);
  const int32_t* answer = a.R > a.C ? p.row_of : p.col_of;
  for (int64_t i = team.lane(); i < a.R; i += team.lanes())
    a.columns[item * a.R + i] = status == Status::kOk ? answer[i] : -1;
  if (team.lane() == 0) a.status[item] = static_cast<int32_t>(status);
  team.barrier();  // the answer is read before the next problem overwrites the arrays
}

// A block per problem; what it reads most lies in shared memory, as far as that goes.
template <class T>
__global__ void __launch_bounds__(kMostThreads) hungarian_block_kernel(Arguments a, int64_t fast_bytes) {
  extern __shared__ double fast[];
  __shared__ BlockTeam::Shared shared;
  __shared__ ProblemMemory<T> memory;
  BlockTeam team(shared);
  for (int64_t item = blockIdx.x; item < a.items; item += gridDim.x) {
    const auto& p = problem_of(memory, a, item, 1, [&](AssignmentProblem<T>& laid) {
      laid.lay_out(a.scratch + blockIdx.x * a.scratch_bytes, fast, fast_bytes);
    });
    solve_and_write(team, p, a, item);
  }
}

// The whole GPU on one problem after the other; a cooperative launch. Shared memory holds a block's tree.
template <class T>
__global__ void __launch_bounds__(kMostThreads) hungarian_grid_kernel(Arguments a, int32_t trees, int64_t fast_bytes) {
  extern __shared__ double fast[];
  __shared__ BlockTeam::Shared shared;
  __shared__ ProblemMemory<T> memory;
  GridTeam team(shared);
  for (int64_t item = 0; item < a.items; ++item) {
    const auto& p = problem_of(memory, a, item, trees, [&](AssignmentProblem<T>& laid) {
      laid.lay_out(a.scratch, nullptr, 0, fast, fast_bytes);
    });
    solve_and_write(team, p, a, item);
  }
}

constexpr int kTile = 32;

// [items, R, C] -> [items, C, R]
template <class T>
__global__ void __launch_bounds__(kTile * 8)
    hungarian_transpose_kernel(const T* in, T* out, int64_t R, int64_t C, int64_t tiles) {
  __shared__ T tile[kTile][kTile + 1];
  const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
  const int64_t across = (C + kTile - 1) / kTile, down = (R + kTile - 1) / kTile;
  for (int64_t n = blockIdx.x; n < tiles; n += gridDim.x) {
    const int64_t item = n / (across * down), i = n / across % down * kTile, j = n % across * kTile;
    const T* from = in + item * R * C;
    T* to = out + item * R * C;
    for (int k = y; k < kTile; k += 8)
      if (i + k < R && j + x < C) tile[k][x] = from[(i + k) * C + j + x];
    __syncthreads();
    for (int k = y; k < kTile; k += 8)
      if (j + k < C && i + x < R) to[(j + k) * R + i + x] = tile[x][k];
    __syncthreads();
  }
}

// Facts of the current device.
int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  STD_TORCH_CHECK(
      cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess,
      "hungarian: no device attribute from CUDA");
  return value;
}

// Lets `kernel` have as much dynamic shared memory as the device gives (always all of it: other threads may be about to
// launch it for other sizes); returns how much of `bytes` that is.
template <class Kernel>
int64_t allow_shared(Kernel* kernel, int64_t bytes) {
  constexpr int kStatic = 2048;  // what the kernels declare themselves takes less
  const int64_t most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kStatic;
  STD_TORCH_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(most)) == cudaSuccess,
      "hungarian: CUDA refused ", most, " bytes of shared memory");
  return std::min(bytes, most);
}

template <class Kernel>
int64_t resident_blocks(Kernel* kernel, int threads, int64_t shared) {
  int each = 0;
  STD_TORCH_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, static_cast<size_t>(shared)) ==
                          cudaSuccess &&
                      each > 0,
                  "hungarian: the kernel does not fit on this device");
  return int64_t{each} * device_attribute(cudaDevAttrMultiProcessorCount);
}

template <class T>
void solve_on_gpu(const Launch& launch, const Tensor& cost, Arguments a) {
  using P = AssignmentProblem<T>;
  const int64_t rows = std::min(a.R, a.C), cols = std::max(a.R, a.C);
  if (cols <= kWarpColumns) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>(a.items, 1 << 20));
    hungarian_warp_kernel<T><<<blocks, 32, 0, launch.stream()>>>(a);
    return Launch::check("hungarian");
  }
  Tensor turned;
  if (a.R > a.C) {
    turned = empty_contiguous(cost, {a.items * a.R * a.C}, cost.scalar_type());
    const int64_t tiles = a.items * ((a.R + kTile - 1) / kTile) * ((a.C + kTile - 1) / kTile);
    hungarian_transpose_kernel<T>
        <<<static_cast<unsigned>(std::min<int64_t>(tiles, 1 << 20)), kTile * 8, 0, launch.stream()>>>(
            static_cast<const T*>(a.cost), static_cast<T*>(turned.mutable_data_ptr()), a.R, a.C, tiles);
    Launch::check("hungarian");
    a.cost = turned.const_data_ptr();
  }
  // Counts of bids and row scans say that a block takes about cols / 512 times as long as the grid, which solves one
  // problem after the other.
  const bool whole_grid = cols > kBlockColumns && a.items <= std::max<int64_t>(cols / 512, 1) &&
                          device_attribute(cudaDevAttrCooperativeLaunch) != 0;
  if (whole_grid) {
    auto* kernel = hungarian_grid_kernel<T>;
    int64_t shared = allow_shared(kernel, P::group_fast_bytes(cols));
    // A block on each multiprocessor, but no more warps than rows: a barrier of fewer blocks is cheaper.
    const int64_t blocks = std::min(
        {resident_blocks(kernel, kMostThreads, shared), int64_t{device_attribute(cudaDevAttrMultiProcessorCount)},
         std::max<int64_t>((rows + kMostThreads / 32 - 1) / (kMostThreads / 32), kGridTrees)});
    auto trees = static_cast<int32_t>(std::max<int64_t>(kGridTrees * rows / cols, 1));
    a.scratch_bytes = P::bytes(rows, cols, trees);
    Tensor scratch = empty_contiguous(cost, {a.scratch_bytes}, ScalarType::Byte);
    a.scratch = static_cast<unsigned char*>(scratch.mutable_data_ptr());
    void* arguments[] = {&a, &trees, &shared};
    STD_TORCH_CHECK(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kMostThreads),
                                                arguments, static_cast<size_t>(shared), launch.stream()) == cudaSuccess,
                    "hungarian: CUDA refused the cooperative launch");
    return Launch::check("hungarian");
  }
  auto* kernel = hungarian_block_kernel<T>;
  // Two blocks of 256 fit on a multiprocessor.
  const int threads = cols <= 64 ? 64 : (cols <= 128 ? 128 : (cols <= kBlockColumns ? 256 : kMostThreads));
  const int64_t shared = allow_shared(kernel, P::fast_bytes(rows, cols));
  const int64_t blocks = std::min(a.items, resident_blocks(kernel, threads, shared));
  a.scratch_bytes = P::bytes(rows, cols, 1);
  Tensor scratch = empty_contiguous(cost, {blocks * a.scratch_bytes}, ScalarType::Byte);
  a.scratch = static_cast<unsigned char*>(scratch.mutable_data_ptr());
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared), launch.stream()>>>(a, shared);
  Launch::check("hungarian");
}

// cost [..., R, C] -> int64 [..., R], int32 [...]; an invalid or infeasible problem gets -1 in every row
std::tuple<Tensor, Tensor> hungarian_with_status_cuda(const Tensor& cost_in, bool maximize) {
  const AssignmentShape shape = check_hungarian(cost_in);
  const Tensor cost = torch::stable::contiguous(cost_in);
  Tensor out = empty_contiguous(cost, shape.columns, ScalarType::Long);
  Tensor status = empty_contiguous(cost, shape.status, ScalarType::Int);
  const Launch launch(cost);
  if (shape.R == 0 || shape.C == 0) {  // nothing to assign
    torch::stable::fill_(out, -1);
    torch::stable::fill_(status, 0);
    return {out, status};
  }
  if (shape.items == 0) return {out, status};
  dispatch_floating(cost.scalar_type(), "hungarian", [&](auto zero) {
    using T = decltype(zero);
    solve_on_gpu<T>(launch, cost,
                    {cost.const_data_ptr(), shape.items, shape.R, shape.C, maximize ? -1.0 : 1.0, nullptr, 0,
                     static_cast<int64_t*>(out.mutable_data_ptr()), static_cast<int32_t*>(status.mutable_data_ptr())});
  });
  return {out, status};
}

Tensor hungarian_cuda(const Tensor& cost, bool maximize) {
  return std::get<0>(hungarian_with_status_cuda(cost, maximize));
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_IMPL(diffaccel, CUDA, m) {
  m.impl("hungarian", TORCH_BOX(&diffaccel::hungarian_cuda));
  m.impl("hungarian_with_status", TORCH_BOX(&diffaccel::hungarian_with_status_cuda));
}
