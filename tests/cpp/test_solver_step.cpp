#include "core/solver_step.h"

#include <gtest/gtest.h>

namespace diffaccel {
namespace {

TEST(SolverStep, Element) {
  const float x[2] = {1.0f, 2.0f}, m0[2] = {3.0f, 4.0f}, m1[2] = {5.0f, 6.0f};
  const float* outputs[2] = {m0, m1};
  const StepCoefficients<float> c{0.5f, {2.0f, -1.0f}, 2};
  EXPECT_EQ(solver_step_element(c, x, outputs, 0), 1.5f);
  EXPECT_EQ(solver_step_element(c, x, outputs, 1), 3.0f);
}

TEST(SolverStep, NullStepIsTheState) {
  const double x[1] = {0.1};
  const double* outputs[1] = {nullptr};
  const StepCoefficients<double> c{1.0, {}, 0};
  EXPECT_EQ(solver_step_element(c, x, outputs, 0), 0.1);
}

}  // namespace
}  // namespace diffaccel
