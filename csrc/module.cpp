// The entry module: build facts and the NumPy face of the assignment solver. Importing it loads the operators.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/hungarian_cpu.h"
#include "core/simd.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = DIFFACCEL_VERSION;
  info["commit"] = DIFFACCEL_COMMIT;
  info["compiler"] = DIFFACCEL_COMPILER;
  info["cuda"] = DIFFACCEL_CUDA;
  info["archs"] = DIFFACCEL_CUDA_ARCHS;
  info["torch_built_with"] = DIFFACCEL_TORCH;
  info["torch_target"] = DIFFACCEL_TORCH_TARGET;
  info["simd"] = diffaccel::simd_name(diffaccel::simd_level());
  return info;
}

// A row-major problem is solved where it lies; another one is copied in the order, and with the sign, of the solver.
template <class T>
py::tuple solve(const py::array& cost, bool maximize, bool scipy_ties, bool duals) {
  const int64_t R = cost.shape(0), C = cost.shape(1);
  py::array_t<int64_t> out(R);
  py::array_t<double> row_duals(duals ? R : 0), column_duals(duals ? C : 0);
  const T* data = static_cast<const T*>(cost.data());
  const int64_t row_stride = cost.strides(0) / static_cast<int64_t>(sizeof(T));
  const int64_t col_stride = cost.strides(1) / static_cast<int64_t>(sizeof(T));
  int64_t* answer = out.mutable_data();
  double *u = row_duals.mutable_data(), *v = column_duals.mutable_data();
  diffaccel::Status status;
  {
    py::gil_scoped_release release;
    const bool tall = R > C;
    const int64_t rows = tall ? C : R, cols = tall ? R : C;
    const diffaccel::CostView<T> view{
        data, rows, cols, tall ? col_stride : row_stride, tall ? row_stride : col_stride, maximize ? -1.0 : 1.0};
    const bool ready = !maximize && view.row_stride == cols && view.col_stride == 1;
    const auto copy = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(ready ? 0 : rows * cols));
    if (!ready) diffaccel::copy_problem(view, copy.get());
    const auto memory = std::make_unique_for_overwrite<std::byte[]>(
        static_cast<size_t>(diffaccel::assignment_bytes_cpu<T>(rows, cols)));
    std::vector<int32_t> columns(static_cast<size_t>(rows));
    const diffaccel::AssignmentWishes wishes{scipy_ties, duals ? (tall ? v : u) : nullptr, tall ? u : v};
    status =
        diffaccel::solve_assignment_cpu(ready ? data : copy.get(), rows, cols, memory.get(), columns.data(), wishes);
    const bool ok = status == diffaccel::Status::kOk;
    for (int64_t i = 0; i < R; ++i) answer[i] = tall || !ok ? -1 : columns[static_cast<size_t>(i)];
    if (tall && ok)
      for (int64_t c = 0; c < C; ++c) answer[columns[static_cast<size_t>(c)]] = c;
    if (duals && maximize && ok) {
      for (int64_t i = 0; i < R; ++i) u[i] = 0 - u[i];
      for (int64_t j = 0; j < C; ++j) v[j] = 0 - v[j];
    }
  }
  if (duals) return py::make_tuple(static_cast<int>(status), out, row_duals, column_duals);
  return py::make_tuple(static_cast<int>(status), out);
}

// cost [R, C] float32 or float64, any strides that are whole elements -> (status, columns of each row [R], -1 where
// R > C leaves a row over), and with `duals` row duals [R] and column duals [C] in float64.
py::tuple solve_assignment(const py::array& cost, bool maximize, bool scipy_ties, bool duals) {
  if (cost.ndim() != 2) throw py::value_error("solve_assignment: expected a matrix");
  for (int axis = 0; axis < 2; ++axis)
    if (cost.strides(axis) % cost.itemsize() != 0 || cost.shape(axis) >= INT32_MAX)
      throw py::value_error("solve_assignment: strides must be whole elements, sizes below 2^31 - 1");
  if (py::isinstance<py::array_t<float>>(cost)) return solve<float>(cost, maximize, scipy_ties, duals);
  if (py::isinstance<py::array_t<double>>(cost)) return solve<double>(cost, maximize, scipy_ties, duals);
  throw py::type_error("solve_assignment: expected float32 or float64 in native byte order");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pydiffaccel's native entry module";
  m.def("build_info", &build_info);
  m.def("solve_assignment", &solve_assignment, py::arg("cost"), py::arg("maximize"), py::arg("scipy_ties"),
        py::arg("duals"));
}
