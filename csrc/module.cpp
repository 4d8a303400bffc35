// The entry module: build facts and the NumPy face of the assignment solver. Importing it loads the operators.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

#include "core/hungarian.h"
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

using Matrix = py::array_t<double, py::array::c_style | py::array::forcecast>;

// cost [R, C] float64 -> (status, columns of each row [R], -1 where R > C leaves a row over)
py::tuple solve(const Matrix& cost, bool maximize) {
  const py::ssize_t R = cost.shape(0), C = cost.shape(1);
  py::array_t<int64_t> out(R);
  const double* data = cost.data();
  int64_t* columns = out.mutable_data();
  diffaccel::Status status;
  {
    py::gil_scoped_release release;
    const bool tall = R > C;
    const int64_t rows = tall ? C : R, cols = tall ? R : C;
    std::vector<std::byte> memory(static_cast<size_t>(diffaccel::AssignmentWorkspace::bytes(rows, cols)));
    const diffaccel::AssignmentWorkspace work(memory.data(), rows, cols);
    const diffaccel::CostView<double> view{data, rows, cols, tall ? 1 : C, tall ? C : 1, maximize ? -1.0 : 1.0};
    diffaccel::SerialTeam team;
    status = diffaccel::solve_assignment(team, view, work);
    diffaccel::write_assignment(team, work, R, C, status, columns);
  }
  return py::make_tuple(static_cast<int>(status), out);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "pydiffaccel's native entry module";
  m.def("build_info", &build_info);
  m.def("solve_assignment", &solve, py::arg("cost"), py::arg("maximize"));
}
