#include "../core/hungarian_cpu.h"

#include <memory>
#include <type_traits>

#include "common.h"

namespace diffaccel {
namespace {

// cost [..., R, C] -> int64 [..., R]
Tensor hungarian_cpu(const Tensor& cost_in, bool maximize) {
  STD_TORCH_CHECK(cost_in.dim() >= 2, "hungarian: expected a cost of shape [..., R, C], got ", cost_in.dim(),
                  " dimensions");
  const Tensor cost = torch::stable::contiguous(cost_in);
  std::vector<int64_t> shape = shape_of(cost);
  const int64_t C = shape.back();
  shape.pop_back();
  const int64_t R = shape.back();
  STD_TORCH_CHECK(R < INT32_MAX && C < INT32_MAX, "hungarian: at most 2^31 - 2 rows and columns");
  Tensor out = empty_contiguous(cost, shape, ScalarType::Long);
  const int64_t items = R == 0 ? 0 : out.numel() / R;
  if (items == 0) return out;
  const int64_t rows = R < C ? R : C, cols = R < C ? C : R;
  std::vector<Status> status(static_cast<size_t>(items), Status::kOk);
  dispatch_floating(cost.scalar_type(), "hungarian", [&](auto zero) {
    using T = decltype(zero);
    using U = wide_t<T>;  // float16 and bfloat16 are solved in float32
    const T* data = static_cast<const T*>(cost.const_data_ptr());
    int64_t* answer = static_cast<int64_t*>(out.mutable_data_ptr());
    const bool tall = R > C, copied = tall || maximize || !std::is_same_v<T, U>;
    // Memory of each thread, made here because nothing may throw inside the parallel region.
    const int64_t threads = std::min<int64_t>(items, torch::stable::get_num_threads());
    const int64_t bytes = (assignment_bytes_cpu<U>(rows, cols) + 63) / 64 * 64;
    const auto memory = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(threads * bytes));
    const auto copies = std::make_unique_for_overwrite<U[]>(static_cast<size_t>(copied ? threads * rows * cols : 0));
    const auto columns = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(threads * rows));
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        U* copy = copies.get() + (copied ? thread * rows * cols : 0);
        int32_t* column_of = columns.get() + thread * rows;
        for (int64_t item = thread; item < items; item += threads) {
          const T* problem = data + item * R * C;
          const U* ready = copy;
          if (copied)
            copy_problem(CostView<T>{problem, rows, cols, tall ? 1 : C, tall ? C : 1, maximize ? -1.0 : 1.0}, copy);
          else if constexpr (std::is_same_v<T, U>)
            ready = problem;
          const Status found = solve_assignment_cpu(ready, rows, cols, memory.get() + thread * bytes, column_of);
          status[static_cast<size_t>(item)] = found;
          int64_t* row_answer = answer + item * R;
          for (int64_t i = 0; i < R; ++i) row_answer[i] = tall || found != Status::kOk ? -1 : column_of[i];
          if (tall && found == Status::kOk)
            for (int64_t c = 0; c < C; ++c) row_answer[column_of[c]] = c;
        }
      }
    });
  });
  for (size_t item = 0; item < status.size(); ++item) {
    STD_TORCH_CHECK(status[item] != Status::kInvalid, "hungarian: cost of problem ", item,
                    maximize ? " holds NaN or +inf" : " holds NaN or -inf");
    STD_TORCH_CHECK(status[item] != Status::kInfeasible, "hungarian: problem ", item,
                    " is infeasible: no assignment of every row avoids the forbidden (infinite) entries");
  }
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) { m.def("hungarian(Tensor cost, bool maximize=False) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) { m.impl("hungarian", TORCH_BOX(&diffaccel::hungarian_cpu)); }
