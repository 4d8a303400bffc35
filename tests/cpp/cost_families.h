// Costs that solvers find easy, hard, tied, skewed, badly scaled or infeasible.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace diffaccel {

template <class T>
std::vector<T> filled(int64_t rows, int64_t cols, const std::function<double(int64_t, int64_t)>& f) {
  std::vector<T> cost;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) cost.push_back(static_cast<T>(f(i, j)));
  return cost;
}

template <class T>
using Families = std::vector<std::pair<std::string, std::vector<T>>>;

template <class T>
Families<T> cost_families(int64_t rows, int64_t cols) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr int64_t kFeatures = 12;
  std::mt19937_64 generator(static_cast<uint64_t>(rows));
  std::uniform_real_distribution<double> uniform(0, 1);
  std::normal_distribution<double> normal;
  const auto draws = [&](int64_t count, auto& distribution) {
    std::vector<double> x(static_cast<size_t>(count));
    for (double& value : x) value = distribution(generator);
    return x;
  };
  const auto at = [](const std::vector<double>& x, int64_t k) { return x[static_cast<size_t>(k)]; };
  const std::vector<double> a = draws(rows, uniform), b = draws(cols, uniform);
  const std::vector<double> modes = draws(10 * kFeatures, normal), own = draws(rows * kFeatures, normal);
  const std::vector<double> noise = draws(cols * kFeatures, normal);
  const std::vector<double> p = draws(2 * rows, uniform), q = draws(2 * cols, uniform);
  const std::vector<double> few = draws((rows / 4 + 1) * (cols / 4 + 1), uniform);
  Families<T> families;
  const auto add = [&](const char* name, const std::function<double(int64_t, int64_t)>& f) {
    families.emplace_back(name, filled<T>(rows, cols, f));
  };
  add("gmm", [&](int64_t i, int64_t j) {
    double sum = 0;
    for (int64_t k = 0; k < kFeatures; ++k)
      sum -= (at(modes, i % 10 * kFeatures + k) + 0.1 * at(own, i * kFeatures + k)) * at(noise, j * kFeatures + k);
    return sum;
  });
  add("uniform", [&](int64_t, int64_t) { return uniform(generator); });
  add("normal", [&](int64_t, int64_t) { return normal(generator); });
  add("integers", [&](int64_t, int64_t) { return std::floor(10 * uniform(generator)); });
  add("constant", [](int64_t, int64_t) { return 0.1; });
  add("log-normal", [&](int64_t, int64_t) { return std::exp(3 * normal(generator)); });
  add("points", [&](int64_t i, int64_t j) {
    return std::pow(at(p, 2 * i) - at(q, 2 * j), 2) + std::pow(at(p, 2 * i + 1) - at(q, 2 * j + 1), 2);
  });
  add("outer product", [&](int64_t i, int64_t j) { return at(a, i) * at(b, j); });
  add("outer product of integers", [](int64_t i, int64_t j) { return static_cast<double>(i * j); });
  add("sum", [&](int64_t i, int64_t j) { return at(a, i) + at(b, j); });
  add("rows", [&](int64_t i, int64_t) { return at(a, i); });
  add("columns", [&](int64_t, int64_t j) { return at(b, j); });
  add("duplicates", [&](int64_t i, int64_t j) { return at(few, i / 4 * (cols / 4 + 1) + j / 4); });
  add("offset", [&](int64_t, int64_t) { return 1e6 + 1e-3 * uniform(generator); });
  add("forbidden blocks", [&](int64_t i, int64_t j) {
    return 2 * i / rows == 2 * j / cols || 2 * i / rows == 0 ? uniform(generator) : kInfinity;
  });
  // All rows but one share a few columns.
  add("infeasible", [&](int64_t i, int64_t j) { return i == 0 || j < rows / 2 ? uniform(generator) : kInfinity; });
  return families;
}

}  // namespace diffaccel
