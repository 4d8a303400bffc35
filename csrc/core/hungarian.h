// Exact linear sum assignment by shortest augmenting paths in float64, written over a team (team.h).
//
// D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE TAES 52(4), 2016. Ties are broken as
// SciPy's linear_sum_assignment breaks them: columns are scanned from the last to the first and, among equal path
// lengths, a free column is preferred. So a constant matrix gives the identity and results are interchangeable.
#pragma once

#include <cmath>

#include "status.h"
#include "team.h"

namespace diffaccel {

// Read access to a problem with rows <= cols; swapping the strides transposes, a negative sign maximises.
template <class T>
struct CostView {
  const T* data;  // [rows, cols] through the strides
  int64_t rows, cols;
  int64_t row_stride, col_stride;
  double sign;

  DIFFACCEL_INLINE double operator()(int64_t i, int64_t j) const {
    return sign * static_cast<double>(data[i * row_stride + j * col_stride]);
  }
};

// The same of a row-major problem to be minimised.
template <class T>
struct DenseCost {
  const T* data;  // [rows, cols]
  int64_t rows, cols;

  DIFFACCEL_INLINE double operator()(int64_t i, int64_t j) const { return static_cast<double>(data[i * cols + j]); }
};

// Scratch memory of one problem, carved from one block of bytes.
struct AssignmentWorkspace {
  double* u;         // [rows] row prices
  double* v;         // [cols] column prices
  double* shortest;  // [cols] shortest path lengths
  int32_t* path;     // [cols] row before each column on its path
  int32_t* row_of;   // [cols] row assigned to each column, -1: free
  int32_t* col_of;   // [rows] column assigned to each row, -1: free
  int32_t* open;     // [cols] columns not yet on the tree
  int32_t* closed;   // [cols] columns on the tree, in order

  static DIFFACCEL_HD constexpr int64_t bytes(int64_t rows, int64_t cols) {
    const int64_t b = 8 * (rows + 2 * cols) + 4 * (rows + 4 * cols);
    return (b + 15) / 16 * 16;
  }

  DIFFACCEL_HD AssignmentWorkspace(void* memory, int64_t rows, int64_t cols) {
    u = static_cast<double*>(memory);
    v = u + rows;
    shortest = v + cols;
    path = reinterpret_cast<int32_t*>(shortest + cols);
    row_of = path + cols;
    col_of = row_of + cols;
    open = col_of + rows;
    closed = open + cols;
  }
};

// Solves min sum_i cost(i, col_of[i]); the answer is in work.col_of and work.row_of. +inf marks a forbidden pair;
// NaN and -inf are kInvalid; no finite assignment of every row is kInfeasible.
template <class Team, class Cost>
DIFFACCEL_HD Status solve_assignment(Team& team, const Cost& cost, AssignmentWorkspace work) {
  const double infinity = INFINITY;
  const int64_t rows = cost.rows, cols = cost.cols;
  const int lane = team.lane(), lanes = team.lanes();

  // A NaN or -inf anywhere: cost 0, else 1 (best() takes the least).
  double valid = 1;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = lane; j < cols; j += lanes)
      if (!(cost(i, j) > -infinity)) valid = 0;
  if (team.best({valid, 0}).cost == 0) return Status::kInvalid;

  for (int64_t i = lane; i < rows; i += lanes) {
    work.u[i] = 0;
    work.col_of[i] = -1;
  }
  for (int64_t j = lane; j < cols; j += lanes) {
    work.v[j] = 0;
    work.row_of[j] = -1;
  }
  team.barrier();

  for (int64_t start = 0; start < rows; ++start) {
    for (int64_t n = lane; n < cols; n += lanes) {
      work.open[n] = static_cast<int32_t>(cols - n - 1);
      work.shortest[n] = infinity;
    }
    team.barrier();

    // Grow the tree of shortest paths from `start` until it reaches a free column.
    double reached = 0;
    int64_t i = start, sink = -1, num_closed = 0;
    while (sink < 0) {
      const int64_t num_open = cols - num_closed;
      const double price = work.u[i];
      Best mine{infinity, INT64_MIN};
      for (int64_t n = lane; n < num_open; n += lanes) {
        const int32_t j = work.open[n];
        const double length = reached + cost(i, j) - price - work.v[j];
        double least = work.shortest[j];
        if (length < least) {
          work.path[j] = static_cast<int32_t>(i);
          work.shortest[j] = least = length;
        }
        if (least > mine.cost) continue;
        // Rank: free columns before assigned ones; the last free one, the first assigned one.
        const Best candidate{least, work.row_of[j] < 0 ? n : -1 - n};
        if (better(candidate, mine)) mine = candidate;
      }
      const Best best = team.best(mine);
      if (!(best.cost < infinity)) return Status::kInfeasible;
      const int64_t n = best.rank >= 0 ? best.rank : -1 - best.rank;
      const int32_t j = work.open[n];
      const int32_t owner = work.row_of[j];
      reached = best.cost;
      team.barrier();  // every lane has read open[n] before it changes
      if (lane == 0) {
        work.closed[num_closed] = j;
        work.open[n] = work.open[num_open - 1];
      }
      ++num_closed;
      if (owner < 0) {
        sink = j;
      } else {
        i = owner;
      }
      team.barrier();
    }

    // New prices: reduced costs stay non-negative, and zero on assigned pairs.
    if (lane == 0) work.u[start] += reached;
    for (int64_t n = lane; n < num_closed; n += lanes) {
      const int32_t j = work.closed[n];
      const double slack = reached - work.shortest[j];
      work.v[j] -= slack;
      if (work.row_of[j] >= 0) work.u[work.row_of[j]] += slack;
    }
    team.barrier();
    if (lane == 0) {
      int64_t j = sink;
      while (true) {
        const int32_t row = work.path[j];
        work.row_of[j] = row;
        const int32_t previous = work.col_of[row];
        work.col_of[row] = static_cast<int32_t>(j);
        if (row == start) break;
        j = previous;
      }
    }
    team.barrier();
  }
  return Status::kOk;
}

// Writes the answer of a [R, C] problem as int64 columns [R], -1 for rows left over. The solve ran on the transposed
// view where R > C.
template <class Team>
DIFFACCEL_HD void write_assignment(Team& team, const AssignmentWorkspace& work, int64_t R, int64_t C, Status status,
                                   int64_t* out) {
  for (int64_t i = team.lane(); i < R; i += team.lanes())
    out[i] = status != Status::kOk ? -1 : (R > C ? work.row_of[i] : work.col_of[i]);
}

}  // namespace diffaccel
