#include "../core/hungarian.h"

#include <memory>

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
    const T* data = static_cast<const T*>(cost.const_data_ptr());
    int64_t* columns = static_cast<int64_t*>(out.mutable_data_ptr());
    // One workspace a thread, made here because nothing may throw inside the parallel region.
    const int64_t threads = std::min<int64_t>(items, torch::stable::get_num_threads());
    const int64_t bytes = AssignmentWorkspace::bytes(rows, cols);
    std::vector<std::byte> memory(static_cast<size_t>(threads * bytes));
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        SerialTeam team;
        const AssignmentWorkspace work(memory.data() + thread * bytes, rows, cols);
        for (int64_t item = thread; item < items; item += threads) {
          const bool tall = R > C;
          const CostView<T> view{data + item * R * C, rows, cols, tall ? 1 : C, tall ? C : 1, maximize ? -1.0 : 1.0};
          const Status found = solve_assignment(team, view, work);
          status[static_cast<size_t>(item)] = found;
          write_assignment(team, work, R, C, found, columns + item * R);
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
