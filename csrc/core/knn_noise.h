// Nearest-of-k Gaussian noise in O(D + k) per sample, exact in law (Improved Immiscible Diffusion, arXiv 2505.18521,
// states the literal O(k D) algorithm).
//
// With u = x / |x| a candidate is n = a u + r, a ~ N(0, 1), r orthogonal to u, and |x - n|^2 = (|x| - a)^2 + |r|^2 with
// s = |r|^2 ~ chi^2(D - 1) and the direction of r uniform and independent. So: draw k pairs (a, s), keep the best, and
// give one Gaussian g the along-part a and the across-length sqrt(s). The result is p g + q x for two scalars.
#pragma once

#include <cmath>

#include "gaussian_noise.h"
#include "team.h"

namespace diffaccel {

enum class Metric : int32_t { kL2 = 0, kDot = 1 };

struct CandidatePair {
  double a;  // component along u
  double s;  // squared length across u
};

// Candidate j: a ~ N(0, 1) and s ~ chi^2(dof) by Marsaglia and Tsang, "A simple method for generating gamma variables",
// ACM TOMS 26(3), 2000. s is 0 for dof = 0.
DIFFACCEL_HD inline CandidatePair draw_candidate(const NoiseStream& stream, uint32_t j, uint32_t sample, int64_t dof,
                                                 bool with_s) {
  Words words = stream.words(j, sample, Purpose::kCandidate, 0);
  Pair pair = box_muller(words.w[0], words.w[1]);
  CandidatePair out{static_cast<double>(pair.first), 0.0};
  if (!with_s || dof <= 0) return out;
  // dof = 1 has shape 1/2 < 1: draw shape 3/2 and multiply by U^(1/shape).
  const double shape = 0.5 * static_cast<double>(dof);
  const double boosted = shape < 1 ? shape + 1 : shape;
  const double d = boosted - 1.0 / 3.0, c = 1.0 / sqrt(9.0 * d);
  const double to_unit = 2.3283064365386963e-10;  // 2^-32
  const double boost_uniform = (static_cast<double>(words.w[3]) + 0.5) * to_unit;
  double x = static_cast<double>(pair.second);
  double gamma = 0;
  for (uint32_t attempt = 0;; ++attempt) {
    if (attempt > 0) {
      words = stream.words(j, sample, Purpose::kCandidate, attempt);
      x = static_cast<double>(box_muller(words.w[0], words.w[1]).first);
    }
    const double root = 1.0 + c * x;
    if (root > 0) {
      const double v = root * root * root;
      const double u = (static_cast<double>(words.w[2]) + 0.5) * to_unit;
      const double x2 = x * x;
      if (u < 1.0 - 0.0331 * x2 * x2 || log(u) < 0.5 * x2 + d * (1.0 - v + log(v))) {
        gamma = d * v;
        break;
      }
    }
  }
  if (shape < 1) gamma *= pow(boost_uniform, 1.0 / shape);
  out.s = 2.0 * gamma;
  return out;
}

// The best of k candidates for a sample of norm x_norm; every lane gets the answer. Equal scores: the first candidate.
template <class Team>
DIFFACCEL_HD CandidatePair best_candidate(Team& team, const NoiseStream& stream, uint32_t sample, int64_t k,
                                          int64_t elements, Metric metric, double x_norm) {
  const bool l2 = metric == Metric::kL2;
  Best mine{INFINITY, INT64_MIN};
  for (int64_t j = team.lane(); j < k; j += team.lanes()) {
    const CandidatePair pair = draw_candidate(stream, static_cast<uint32_t>(j), sample, elements - 1, l2);
    const double gap = x_norm - pair.a;
    const Best candidate{l2 ? gap * gap + pair.s : -pair.a, -j};
    if (better(candidate, mine)) mine = candidate;
  }
  const int64_t winner = -team.best(mine).rank;
  return draw_candidate(stream, static_cast<uint32_t>(winner), sample, elements - 1, l2);
}

// The result is p g + q x.
struct Combination {
  double p, q;
};

// g_along = <g, x> / |x| and g_squared = |g|^2 of the Gaussian g.
DIFFACCEL_HD inline Combination combine(const CandidatePair& pair, Metric metric, double x_norm, double g_along,
                                        double g_squared) {
  if (!(x_norm > 0)) {
    // No direction: with dot every candidate ties (the plain noise); with l2 only the norm is selected.
    if (metric == Metric::kDot || !(g_squared > 0)) return {1.0, 0.0};
    return {sqrt((pair.a * pair.a + pair.s) / g_squared), 0.0};
  }
  double p = 1;
  if (metric == Metric::kL2) {
    const double across = g_squared - g_along * g_along;
    p = across > 0 ? sqrt(pair.s / across) : 0.0;
  }
  return {p, (pair.a - p * g_along) / x_norm};
}

}  // namespace diffaccel
