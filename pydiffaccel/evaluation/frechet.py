"""Frechet distance of normal distributions fitted to features."""

from __future__ import annotations

import numpy as np

from pydiffaccel.evaluation._arrays import Array, check_pair

__all__ = ["frechet_between", "frechet_distance", "statistics"]


def frechet_distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """Squared Frechet (Wasserstein-2) distance of two normal distributions:

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    (Dowson and Landau 1982; as a measure of samples: Heusel et al., 1706.08500, equation 6). The trace of the root is
    taken from the eigenvalues of S_a^(1/2) S_b S_a^(1/2), which is symmetric and similar to S_a S_b.

    Args:
        mean_a, mean_b: ``[F]``.
        cov_a, cov_b: symmetric, positive semi-definite, ``[F, F]``.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    size = mean_a.shape[0] if mean_a.ndim == 1 else -1
    if mean_b.shape != (size,) or cov_a.shape != (size, size) or cov_b.shape != (size, size):
        shapes = [list(array.shape) for array in (mean_a, cov_a, mean_b, cov_b)]
        raise ValueError(f"means must be [F] and covariances [F, F], got {', '.join(map(str, shapes))}")
    if not all(np.isfinite(array).all() for array in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("means and covariances must be finite")
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(product.clip(min=0)).sum()
    return float(np.square(mean_a - mean_b).sum() + trace)


def statistics(values: Array) -> tuple[Array, Array]:
    """Mean ``[F]`` and unbiased covariance ``[F, F]`` of features ``[N, F]``, N at least 2."""
    return values.mean(0), np.cov(values, rowvar=False).reshape(values.shape[1], values.shape[1])


def frechet_between(samples: Array, reference: Array) -> float:
    """``frechet_distance`` of the normal distributions with the means and covariances of two sets of features.

    On the features of the Inception network this is the FID. It is biased upwards, the more the fewer rows there
    are: values are comparable at equal N only. With N <= F the covariance has no full rank.

    Args:
        samples: ``[N, F]``, N at least 2.
        reference: ``[M, F]``, M at least 2.

    Raises:
        TypeError, ValueError: arrays that are no such features.
    """
    a, b = check_pair(samples, reference, 2)
    return frechet_distance(*statistics(a), *statistics(b))
