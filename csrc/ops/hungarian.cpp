#include "../core/hungarian_cpu.h"

#include <unistd.h>

#include <memory>
#include <type_traits>
#include <vector>

#include "hungarian_checks.h"

namespace diffaccel {
namespace {

constexpr size_t kNearBytes = 512 << 10;  // two problems in a core's own cache

const pid_t loaded_by = getpid();

// OpenMP's threads do not live on in a forked process, where a parallel region of torch would wait for them for ever.
int64_t usable_threads() { return getpid() == loaded_by ? torch::stable::get_num_threads() : 1; }

Tensor as_contiguous(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

// cost [..., R, C], contiguous -> answer [..., R], status [...]; an invalid or infeasible problem gets -1 in every row
void solve_all(const Tensor& cost, const AssignmentShape& shape, bool maximize, int64_t* answer, int32_t* status) {
  const int64_t R = shape.R, C = shape.C, items = shape.items;
  const int64_t rows = R < C ? R : C, cols = R < C ? C : R;
  dispatch_floating(cost.scalar_type(), "hungarian", [&](auto zero) {
    using T = decltype(zero);
    using U = wide_t<T>;  // float16 and bfloat16 are solved in float32
    const T* data = static_cast<const T*>(cost.const_data_ptr());
    const bool tall = R > C, copied = tall || maximize || !std::is_same_v<T, U>;
    // Memory of each thread, made here because nothing may throw inside the parallel region.
    const int64_t threads = items > 1 ? std::min<int64_t>(items, usable_threads()) : 1;
    const int64_t bytes = (assignment_bytes_cpu<U>(rows, cols) + 63) / 64 * 64;
    const auto memory = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(threads * bytes));
    const auto copies = std::make_unique_for_overwrite<U[]>(static_cast<size_t>(copied ? threads * rows * cols : 0));
    const auto columns = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(threads * rows));
    const auto work = [&](int64_t begin, int64_t end) {
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
          AssignmentWishes wishes;
          if (!copied && item + threads < items && rows * cols * sizeof(T) <= kNearBytes)
            wishes.next = problem + threads * R * C;
          const Status found =
              solve_assignment_cpu(ready, rows, cols, memory.get() + thread * bytes, column_of, wishes);
          status[item] = static_cast<int32_t>(found);
          int64_t* row_answer = answer + item * R;
          for (int64_t i = 0; i < R; ++i) row_answer[i] = tall || found != Status::kOk ? -1 : column_of[i];
          if (tall && found == Status::kOk)
            for (int64_t c = 0; c < C; ++c) row_answer[column_of[c]] = c;
        }
      }
    };
    if (threads == 1)
      work(0, 1);
    else
      torch::stable::parallel_for(0, threads, 1, work);
  });
}

// cost [..., R, C] -> int64 [..., R], int32 [...]
std::tuple<Tensor, Tensor> hungarian_with_status_cpu(const Tensor& cost_in, bool maximize) {
  const AssignmentShape shape = check_hungarian(cost_in);
  const Tensor cost = as_contiguous(cost_in);
  Tensor out = empty_contiguous(cost, shape.columns, ScalarType::Long);
  Tensor status = empty_contiguous(cost, shape.status, ScalarType::Int);
  if (shape.items > 0)
    solve_all(cost, shape, maximize, static_cast<int64_t*>(out.mutable_data_ptr()),
              static_cast<int32_t*>(status.mutable_data_ptr()));
  return {out, status};
}

// cost [..., R, C] -> int64 [..., R]; throws where a problem is invalid or infeasible
Tensor hungarian_cpu(const Tensor& cost_in, bool maximize) {
  const AssignmentShape shape = check_hungarian(cost_in);
  const Tensor cost = as_contiguous(cost_in);
  Tensor out = empty_contiguous(cost, shape.columns, ScalarType::Long);
  std::vector<int32_t> status(static_cast<size_t>(shape.items));  // cheaper than a tensor
  if (shape.items > 0) solve_all(cost, shape, maximize, static_cast<int64_t*>(out.mutable_data_ptr()), status.data());
  for (size_t item = 0; item < status.size(); ++item) {
    STD_TORCH_CHECK(status[item] != static_cast<int32_t>(Status::kInvalid), "hungarian: cost of problem ", item,
                    maximize ? " holds NaN or +inf" : " holds NaN or -inf");
    STD_TORCH_CHECK(status[item] != static_cast<int32_t>(Status::kInfeasible), "hungarian: problem ", item,
                    " is infeasible: no assignment of every row avoids the forbidden (infinite) entries");
  }
  return out;
}

}  // namespace
}  // namespace diffaccel

STABLE_TORCH_LIBRARY_FRAGMENT(diffaccel, m) {
  m.def("hungarian(Tensor cost, bool maximize=False) -> Tensor");
  m.def("hungarian_with_status(Tensor cost, bool maximize=False) -> (Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(diffaccel, CPU, m) {
  m.impl("hungarian", TORCH_BOX(&diffaccel::hungarian_cpu));
  m.impl("hungarian_with_status", TORCH_BOX(&diffaccel::hungarian_with_status_cpu));
}
