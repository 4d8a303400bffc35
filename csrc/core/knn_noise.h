// Nearest-of-k Gaussian noise in O(D) per sample, exact in law (Improved Immiscible Diffusion, arXiv 2505.18521, states
// the literal O(k D) algorithm).
//
// With u = x / |x| a candidate is n = a u + r, a ~ N(0, 1), r orthogonal to u, and |x - n|^2 = (|x| - a)^2 + |r|^2 with
// s = |r|^2 ~ chi^2(D - 1) and the direction of r uniform and independent. So only the winner's (a, s) is needed; one
// Gaussian g is given the along-part a and the across-length sqrt(s). The result is p g + q x for two scalars.
//
// The winner comes from
//   dot:                the quantile of the largest of k normals (any k);
//   l2, k <= kDirectK:  k pairs (a, s), of which the best is kept;
//   l2, k >  kDirectK:  the order statistics of the distance (knn_order.h), at a cost that does not grow with k.
#pragma once

#include <cmath>

#include "gaussian_noise.h"
#include "normal_quantile.h"
#include "team.h"

namespace diffaccel {

enum class Metric : int32_t { kL2 = 0, kDot = 1 };

// Two vectors of pairs; beyond it the order statistics are cheaper (measured at AVX-512 and AVX2).
constexpr int64_t kDirectK = 32;

// A sample with a greater norm, or none (NaN), gets NaN.
constexpr double kLargestNorm = 1e150;

struct CandidatePair {
  double a;  // component along u
  double s;  // squared length across u
};

// chi^2(dof) by Marsaglia and Tsang, "A simple method for generating gamma variables", ACM TOMS 26(3), 2000:
// s = 2 d (1 + c x)^3 for a normal x, accepted with probability exp(x^2 / 2 + d (1 - v + log v)), v = (1 + c x)^3.
struct ChiSquare {
  int64_t dof;
  double d, c;
  double quartic;  // with e = c x the exponent is -0.75 d e^4 (1 - 0.8 e + ...) >= -quartic x^4 / min(1, 1 + e)

  DIFFACCEL_HD explicit ChiSquare(int64_t degrees) : dof(degrees) {
    d = (degrees < 2 ? 1.0 : 0.5 * static_cast<double>(degrees)) - 1.0 / 3.0;
    c = 1.0 / sqrt(9.0 * d);
    quartic = 1.0 / (108.0 * d);
  }
};

struct FirstTry {
  CandidatePair pair;
  bool accepted;  // false: the exact test must decide
};

constexpr double kUnit31 = 4.656612873077393e-10;  // 2^-31

// Candidate from its two normals and the word of its uniform, if the cheap bound accepts it. No branch: lanes of a
// vector run it together. The uniform has 31 bits, because AVX2 has signed conversions only.
DIFFACCEL_INLINE FirstTry first_try(const ChiSquare& law, float along, float behind_s, int32_t word31) {
  const double x = static_cast<double>(behind_s), x2 = x * x;
  const double root = 1.0 + law.c * x, lower = root < 1.0 ? root : 1.0;
  const double rest = 1.0 - (static_cast<double>(word31) + 0.5) * kUnit31;
  const double s = 2.0 * law.d * (root * root * root);
  // A root that is not positive makes the left side so too, and the right side is not negative.
  const bool accepted = rest * lower > law.quartic * (x2 * x2);
  return {{static_cast<double>(along), s}, accepted};
}

// Candidate j: a ~ N(0, 1) and s ~ chi^2(dof); s is 0 for dof = 0 and the square of one normal for dof = 1.
DIFFACCEL_HD inline CandidatePair draw_candidate(const NoiseStream& stream, const ChiSquare& law, uint32_t j,
                                                 uint32_t sample) {
  Words words = stream.words(j, sample, Purpose::kCandidate, 0);
  Pair normals = box_muller(words.w[0], words.w[1]);
  const float along = normals.first;
  if (law.dof < 2) {
    const double x = static_cast<double>(normals.second);
    return {static_cast<double>(along), law.dof > 0 ? x * x : 0.0};
  }
  for (uint32_t attempt = 1;; ++attempt) {
    const int32_t word31 = static_cast<int32_t>(words.w[2] >> 1);
    const FirstTry tried = first_try(law, along, normals.second, word31);
    if (tried.accepted) return tried.pair;
    const double x = static_cast<double>(normals.second), root = 1.0 + law.c * x;
    if (root > 0) {
      const double v = root * root * root;
      if (log((static_cast<double>(word31) + 0.5) * kUnit31) < 0.5 * x * x + law.d * (1.0 - v + log(v)))
        return tried.pair;
    }
    words = stream.words(j, sample, Purpose::kCandidate, attempt);
    normals = box_muller(words.w[0], words.w[1]);
  }
}

// |x - n|^2 - |x|^2, without the cancellation that a large |x| would bring.
DIFFACCEL_INLINE double distance_score(const CandidatePair& pair, double x_norm) {
  return pair.a * (pair.a - 2.0 * x_norm) + pair.s;
}

// The nearest (l2) of k drawn candidates for a sample of norm x_norm; every lane gets it. Equal scores: the first.
template <class Team>
DIFFACCEL_HD CandidatePair nearest_drawn(Team& team, const NoiseStream& stream, const ChiSquare& law, uint32_t sample,
                                         int64_t k, double x_norm) {
  Best mine{INFINITY, INT64_MIN};
  for (int64_t j = team.lane(); j < k; j += team.lanes()) {
    const CandidatePair pair = draw_candidate(stream, law, static_cast<uint32_t>(j), sample);
    const Best candidate{distance_score(pair, x_norm), -j};
    if (better(candidate, mine)) mine = candidate;
  }
  const int64_t winner = -team.best(mine).rank;
  return draw_candidate(stream, law, static_cast<uint32_t>(winner), sample);
}

// The same by one thread, 16 candidates at a time.
DIFFACCEL_INLINE CandidatePair nearest_drawn_lanes(const NoiseStream& stream, const ChiSquare& law, uint32_t sample,
                                                   int64_t k, double x_norm) {
  CandidatePair nearest{0.0, 0.0};
  double least = INFINITY;
  alignas(64) float along[kLanes], behind_s[kLanes];
  alignas(64) int32_t word31[kLanes], rejected[kLanes];
  alignas(64) double a[kLanes], s[kLanes], score[kLanes];
  for (int64_t base = 0; base < k; base += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const Words words =
          stream.words(static_cast<uint32_t>(base) + static_cast<uint32_t>(lane), sample, Purpose::kCandidate, 0);
      const Pair normals = box_muller(words.w[0], words.w[1]);
      along[lane] = normals.first;
      behind_s[lane] = normals.second;
      word31[lane] = static_cast<int32_t>(words.w[2] >> 1);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const FirstTry tried = first_try(law, along[lane], behind_s[lane], word31[lane]);
      a[lane] = tried.pair.a;
      s[lane] = tried.pair.s;
      score[lane] = distance_score(tried.pair, x_norm);
      rejected[lane] = tried.accepted ? 0 : 1;
    }
    const int count = k - base < kLanes ? static_cast<int>(k - base) : kLanes;
    for (int lane = 0; lane < count; ++lane) {
      CandidatePair pair{a[lane], s[lane]};
      double cost = score[lane];
      if (rejected[lane] != 0 || law.dof < 2) {
        pair = draw_candidate(stream, law, static_cast<uint32_t>(base + lane), sample);
        cost = distance_score(pair, x_norm);
      }
      if (cost < least) {
        least = cost;
        nearest = pair;
      }
    }
  }
  return nearest;
}

// Uniform on (0, 1) with 52 bits; never 0 or 1.
DIFFACCEL_INLINE double uniform52(uint32_t high, uint32_t low) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 12;
  return (static_cast<double>(static_cast<int64_t>(bits)) + 0.5) * 2.220446049250313e-16;
}

// The largest of k standard normals: the quantile at U^(1/k), with U = exp(-E).
DIFFACCEL_HD inline double largest_normal(const NoiseStream& stream, uint32_t sample, int64_t k) {
  const Words words = stream.words(0, sample, Purpose::kOrder, 0);
  const double share = log(uniform52(words.w[0], words.w[1])) / static_cast<double>(k);
  const double below = exp(share);
  return below < 0.5 ? normal_quantile(below) : -normal_quantile(-expm1(share));
}

// The result is p g + q x.
struct Combination {
  double p, q;
};

// g_along = <g, x> / |x| and g_squared = |g|^2 of the Gaussian g.
DIFFACCEL_HD inline Combination combine(const CandidatePair& pair, Metric metric, double x_norm, double g_along,
                                        double g_squared) {
  if (x_norm == 0) {
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

// What a row gives to the choice: |x|^2, |g|^2 and <g, x>.
struct RowSums {
  double x_squared, g_squared, g_dot_x;
};

// Samples up to this size are computed in double: with few elements g may lie almost along x, and the rest cancels.
constexpr int64_t kSmallSample = 256;

// Whether |x|^2 and the factors are safe in single precision.
DIFFACCEL_INLINE bool fits_single(double x_squared) { return x_squared > 1e-24 && x_squared < 1e30; }

}  // namespace diffaccel
