// The nearest of k Gaussian noises from order statistics: a cost that does not grow with k, exact in law.
//
// Write n = x - rho v with |v| = 1 and t = <v, u>, u = x / |x|, X = |x|, m = D - 1. One candidate has the density
//   const rho^m exp(-(rho^2 + X^2) / 2) exp(X rho t) w(t),    w = the law of the cosine of a uniform direction.
// For any mu >= X put x0 = X / mu, y = rho mu (1 - x0 t) / m. From y^m <= exp(m (y - 1)) the density is at most
//   const' exp(mu rho - rho^2 / 2) w(t) (1 - x0 t)^-m,
// and equal up to the factor exp(-m (y - 1 - log y)). The bound is a Gaussian in rho times the law of
// t = (t' + x0) / (1 + x0 t'), t' uniform: the envelope of Ulrich (Applied Statistics 33, 1984) and Wood (1994) for the
// von Mises-Fisher law, used for the distance and the direction at once. Its mass up to rho is
//   H(rho) = K Phi(rho - mu),   log K = log(2)/2 + 1/2 + m/2 log(m/D) - delta(D/2) + m/2 (v - 1 - log v),
//   v = (mu^2 - X^2) / m, delta = the remainder of Stirling's formula for log Gamma.
// Balls of a radius below 1 use exp(-rho^2 / 2) <= 1 instead: H(rho) = C (exp(mu rho) - 1) / mu, C = K phi(mu).
//
// The nearest of k is the first point of a process of hazard k f / (1 - F), f and F the density and the distribution
// function of one distance. It is found by thinning (Lewis and Shedler, 1979): points of hazard k h / (1 - H) are those
// where -k log(1 - H) passes the sums of unit exponentials; a point is kept with probability (f / h) (1 - H) / (1 - F).
// The first factor is known above. The second is a coin made from coins of probability F / H, each a fresh point below
// rho thinned by f / h; it is hardly ever tossed, because 1 - H alone is within a few k-ths of 1. mu changes only how
// many points are needed, never the law: it is put where k H is about 1, and one to three points do for every X, D and
// k.
// H passes 1 inside the law's range, so the process stops at H = kLastLevel. If no point was kept, all k candidates lie
// beyond: then they are drawn one by one under that condition. That is rare: the chance is (1 - F)^k.
#pragma once

#include "knn_noise.h"

namespace diffaccel {

constexpr double kLastLevel = 0.95;

// The constants of a call.
struct NearestLaw {
  int64_t k;
  ChiSquare across;  // chi^2(D - 1)
  double log_k;
  double log_bound;  // log K at v = 1
  double depth;      // about how many standard deviations below its mean the least of k lies

  DIFFACCEL_HD NearestLaw(int64_t count, int64_t elements)
      : k(count), across(elements - 1), log_k(log(static_cast<double>(count))) {
    const double size = static_cast<double>(elements), half = 0.5 * size, log_sqrt_two_pi = 0.9189385332046728;
    // Stirling's remainder by its series, for a small argument after the recurrence Gamma(z + 1) = z Gamma(z).
    double z = half, product = 1;
    for (; z < 10; z += 1) product *= z;
    const double r = 1.0 / (z * z);
    double delta = (1.0 / 12 - r * (1.0 / 360 - r * (1.0 / 1260 - r * (1.0 / 1680 - r / 1188)))) / z;
    if (z != half)
      delta +=
          (z - 0.5) * log(z) - z + log_sqrt_two_pi - log(product) - ((half - 0.5) * log(half) - half + log_sqrt_two_pi);
    const double power = elements > 1 ? 0.5 * (size - 1) * log1p(-1.0 / size) : 0.0;
    log_bound = 0.34657359027997264 + 0.5 + power - delta;  // log(2) / 2 = 0.3466
    depth = -normal_quantile(1.0 / (static_cast<double>(count) + 1.0));
  }
};

// The envelope for one |x|.
struct NearestEnvelope {
  double x_norm, m, mu, mu_minus_x;
  double mass;  // K, or C for small balls
  bool small;   // a ball of a radius below 1
};

// Newton's method for k H = 1 over log(v - 1), from the normal approximation; the result need not be precise.
DIFFACCEL_HD inline NearestEnvelope nearest_envelope(const NearestLaw& law, double x_norm) {
  const double m = static_cast<double>(law.across.dof), x2 = x_norm * x_norm;
  const double log_two_phi0 = -0.22579135264472744;  // log(2 / sqrt(2 pi))
  if (law.across.dof == 0) {  // one element: two points at each distance, the nearer one likelier
    const bool small = x_norm < law.depth + 1;
    const double mass = small ? 0.7978845608028654 * exp(-0.5 * x2) : 2.0;
    return {x_norm, 0.0, x_norm, 0.0, mass, small};
  }
  double e = law.depth / sqrt(x2 + 0.5 * m);
  double v = 1, mu = 0, w = 0;
  for (int iteration = 0; iteration < 40; ++iteration) {
    v = 1 + e;
    mu = sqrt(x2 + m * v);
    w = e / v;
    const double z = mu * w, root = sqrt(z * z + 2.546479089470325);  // Phi(-z) is about 2 phi(z) / (z + root)
    const double along = x_norm * w;
    const double level =
        law.log_k + law.log_bound + 0.5 * m * (w - log1p(e)) - 0.5 * along * along + log_two_phi0 - log(z + root);
    if (fabs(level) < 0.25) break;
    const double slope = w * w * (0.5 * m + x2 / v) + (z / v + 0.5 * m * e * w / mu) / root;
    const double change = level / slope;
    e *= exp(change > 40 ? 40 : change < -3 ? -3 : change);
  }
  v = 1 + e;
  mu = sqrt(x2 + m * v);
  const bool small = mu < v;
  const double log_mass = small ? law.log_bound - 0.5 * (m * (1 + log1p(e)) + x2) - 0.9189385332046728
                                : law.log_bound + 0.5 * m * (e - log1p(e));
  return {x_norm, m, mu, m * v / (mu + x_norm), exp(log_mass), small};
}

// The distance rho where H = level, as rho and z = mu - rho.
struct Distance {
  double rho, z;
};

DIFFACCEL_HD inline Distance envelope_distance(const NearestEnvelope& envelope, double level) {
  const double mu = envelope.mu, share = level / envelope.mass;
  if (!envelope.small) {
    const double z = -normal_quantile(share);
    return {mu - z, z};
  }
  const double rho = mu > 0 ? log1p(mu * share) / mu : share;
  return {rho, mu - rho};
}

struct NearestPoint {
  CandidatePair pair;
  double density;  // f / h at the point: its chance to be kept
};

// The point of the envelope where H = level, in direction number `draw`.
DIFFACCEL_HD inline NearestPoint envelope_point(const NearestEnvelope& envelope, const NearestLaw& law,
                                                const NoiseStream& stream, uint32_t sample, uint32_t draw,
                                                double level) {
  const double x = envelope.x_norm, mu = envelope.mu, m = envelope.m;
  const Distance distance = envelope_distance(envelope, level);
  const double rho = distance.rho;
  if (!(rho > 0)) return {{0.0, 0.0}, 0.0};
  // 1 - t' and 1 + t' of a uniform direction, then of the envelope's, without cancellation.
  const CandidatePair uniform = draw_candidate(stream, law.across, draw, sample);
  const double r = sqrt(uniform.a * uniform.a + uniform.s);
  double minus = 1, plus = 1;
  if (r > 0) {
    const double larger = 1 + fabs(uniform.a) / r, smaller = uniform.s / (r * (r + fabs(uniform.a)));
    minus = uniform.a > 0 ? smaller : larger;
    plus = uniform.a > 0 ? larger : smaller;
  }
  double log_density = 0;
  if (m > 0) {
    const double gap = envelope.mu_minus_x / mu, x0 = x / mu, scale = 1.0 / (gap + x0 * plus);
    minus *= gap * scale;
    plus *= (1 + x0) * scale;
    const double y = rho * (envelope.mu_minus_x + x * minus) / m - 1;  // y - 1
    log_density = m * (log1p(y) - y);
  } else {
    log_density = -x * rho * minus;
  }
  if (envelope.small) log_density -= 0.5 * rho * rho;
  const double a = (envelope.small ? x - rho : distance.z - envelope.mu_minus_x) + rho * minus;
  return {{a, rho * rho * minus * plus}, exp(log_density)};
}

// The winner where all k candidates are farther than the distance `inside`; draws are numbered from `draw`.
DIFFACCEL_HD inline CandidatePair nearest_beyond(const NoiseStream& stream, const NearestLaw& law, uint32_t sample,
                                                 const NearestEnvelope& envelope, const Distance& inside,
                                                 uint32_t& draw) {
  // inside^2 - X^2, where a large X does not cancel.
  const double x = envelope.x_norm;
  const double excess = envelope.small ? inside.rho - x : envelope.mu_minus_x - inside.z;
  const double least_score = excess * (inside.rho + x);
  CandidatePair nearest{0.0, 0.0};
  double least = INFINITY;
  for (int64_t j = 0; j < law.k;) {
    const CandidatePair pair = draw_candidate(stream, law.across, draw++, sample);
    const double score = distance_score(pair, x);
    if (inside.rho > 0 && !(score > least_score)) continue;
    if (score < least) {
      least = score;
      nearest = pair;
    }
    ++j;
  }
  return nearest;
}

// The winner's (a, s) of k candidates for a sample of norm x_norm < kLargestNorm; `draw` counts the points used.
DIFFACCEL_HD inline CandidatePair nearest_ordered(const NoiseStream& stream, const NearestLaw& law, uint32_t sample,
                                                  double x_norm, uint32_t& draw) {
  const NearestEnvelope envelope = nearest_envelope(law, x_norm);
  const double each = -1.0 / static_cast<double>(law.k);
  double reached = 0;  // -k log(1 - H)
  draw = 0;
  for (;;) {
    const Words words = stream.words(draw, sample, Purpose::kOrder, 0);
    reached -= log(uniform52(words.w[0], words.w[1]));
    const double level = -expm1(reached * each), beyond = 1.0 - level;
    if (level > kLastLevel)
      return nearest_beyond(stream, law, sample, envelope, envelope_distance(envelope, kLastLevel), draw);
    const NearestPoint point = envelope_point(envelope, law, stream, sample, draw++, level);
    const double chance = uniform52(words.w[2], words.w[3]);
    if (chance < point.density * beyond) return point.pair;
    if (!(chance < point.density)) continue;
    // Left to decide: a chance of (F / H) (1 - H) / (1 - F), by fresh points below this one.
    for (;;) {
      const Words fresh = stream.words(draw, sample, Purpose::kOrder, 0);
      const double below = level * uniform52(fresh.w[0], fresh.w[1]);
      const NearestPoint other = envelope_point(envelope, law, stream, sample, draw++, below);
      if (!(uniform52(fresh.w[2], fresh.w[3]) < other.density)) break;
      const Words toss = stream.words(draw++, sample, Purpose::kOrder, 0);
      if (uniform52(toss.w[0], toss.w[1]) < beyond) return point.pair;
    }
  }
}

// The winner for the metric; every lane of the team gets it. k > 1 and x_norm < kLargestNorm.
template <class Team>
DIFFACCEL_HD CandidatePair choose(Team& team, const NoiseStream& stream, const NearestLaw& law, Metric metric,
                                  uint32_t sample, double x_norm) {
  if (metric == Metric::kL2 && law.k <= kDirectK) return nearest_drawn(team, stream, law.across, sample, law.k, x_norm);
  CandidatePair pair{0.0, 0.0};
  if (team.lane() == 0) {
    uint32_t draws = 0;
    if (metric == Metric::kDot) {
      pair.a = largest_normal(stream, sample, law.k);
    } else {
      pair = nearest_ordered(stream, law, sample, x_norm, draws);
    }
  }
  return {team.sum(pair.a), team.sum(pair.s)};  // the other lanes hold 0
}

}  // namespace diffaccel
