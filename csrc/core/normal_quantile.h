// Quantile of the standard normal law in float64, about 1e-16 relative (Wichura, "Algorithm AS 241: the percentage
// points of the normal distribution", Applied Statistics 37(3), 1988).
#pragma once

#include <cmath>

#include "hd.h"

namespace diffaccel {

// c[0] + c[1] r + ... + c[7] r^7
DIFFACCEL_INLINE double polynomial7(const double (&c)[8], double r) {
  double sum = c[7];
  for (int n = 6; n >= 0; --n) sum = sum * r + c[n];
  return sum;
}

// z with P(N(0, 1) <= z) = p, for 0 < p < 1; exact in the tail down to p = 1e-300. For p near 1 take the quantile of 1
// - p and change its sign.
DIFFACCEL_HD inline double normal_quantile(double p) {
  const double q = p - 0.5;
  if (fabs(q) <= 0.425) {
    const double above[8] = {3.387132872796366608e0,  1.3314166789178437745e2, 1.9715909503065514427e3,
                             1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                             3.3430575583588128105e4, 2.5090809287301226727e3};
    const double below[8] = {1.0,
                             4.2313330701600911252e1,
                             6.871870074920579083e2,
                             5.3941960214247511077e3,
                             2.1213794301586595867e4,
                             3.930789580009271061e4,
                             2.8729085735721942674e4,
                             5.226495278852854561e3};
    const double r = 0.180625 - q * q;
    return q * polynomial7(above, r) / polynomial7(below, r);
  }
  const double r = sqrt(-log(q < 0 ? p : 1.0 - p));
  double z = 0;
  if (r <= 5.0) {
    const double above[8] = {1.42343711074968357734e0,  4.6303378461565452959e0,  5.7694972214606914055e0,
                             3.64784832476320460504e0,  1.27045825245236838258e0, 2.4178072517745061177e-1,
                             2.27238449892691845833e-2, 7.7454501427834140764e-4};
    const double below[8] = {1.0,
                             2.05319162663775882187e0,
                             1.6763848301838038494e0,
                             6.8976733498510000455e-1,
                             1.4810397642748007459e-1,
                             1.51986665636164571966e-2,
                             5.475938084995344946e-4,
                             1.05075007164441684324e-9};
    z = polynomial7(above, r - 1.6) / polynomial7(below, r - 1.6);
  } else {
    const double above[8] = {6.6579046435011037772e0,   5.4637849111641143699e0,  1.7848265399172913358e0,
                             2.9656057182850489123e-1,  2.6532189526576123093e-2, 1.2426609473880784386e-3,
                             2.71155556874348757815e-5, 2.01033439929228813265e-7};
    const double below[8] = {1.0,
                             5.9983220655588793769e-1,
                             1.3692988092273580531e-1,
                             1.48753612908506148525e-2,
                             7.868691311456132591e-4,
                             1.8463183175100546818e-5,
                             1.4215117583164458887e-7,
                             2.04426310338993978564e-15};
    z = polynomial7(above, r - 5.0) / polynomial7(below, r - 5.0);
  }
  return q < 0 ? -z : z;
}

}  // namespace diffaccel
