"""Integrals of the Lagrange polynomials of a multistep method, by Gauss-Legendre quadrature in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["lagrange_integrals"]

_Values = NDArray[np.float64]
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)


def lagrange_integrals(
    nodes: Sequence[float], edges: _Values, variable: Callable[[_Values], _Values] | None = None
) -> list[float]:
    """int L_j(variable(s)) ds over the panels between the edges, for the Lagrange polynomials on the nodes.

    Args:
        nodes: values of the variable at the outputs ``[K]``, newest first, all different.
        edges: panel ends in s ``[P + 1]``, in order; the integrand is smooth inside each panel.
        variable: what the polynomials are in, as a function of s; s itself by default.

    Returns:
        One integral per node ``[K]``. They sum to the length of the interval, exactly.
    """
    centre, half = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
    s = centre[:, None] + half[:, None] * _NODES
    weights = half[:, None] * _WEIGHTS
    values = s if variable is None else variable(s)
    result = []
    for j, node in enumerate(nodes):
        basis = np.ones_like(values)
        for i, other in enumerate(nodes):
            if i != j:
                basis *= (values - other) / (node - other)
        result.append(float((weights * basis).sum()))
    result[0] = float(edges[-1] - edges[0]) - sum(result[1:])
    return result
