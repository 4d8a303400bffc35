"""Distances of feature arrays against closed forms, brute force, and other libraries where they are installed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from math import prod, sqrt

import numpy as np
import pytest

from pydiffaccel import evaluation as e
from pydiffaccel.evaluation import _arrays
from pydiffaccel.noise import permutation

MEASURES: dict[str, Callable[..., object]] = {
    "frechet": e.frechet_between,
    "mmd2": e.mmd2,
    "kernel": lambda a, b: e.kernel_distance(a, b, subsets=2, subset_size=4),
    "precision_recall": e.precision_recall,
    "density_coverage": lambda a, b: e.density_coverage(a, b, k=3),
    "sliced_wasserstein": lambda a, b: e.sliced_wasserstein(a, b, directions=4),
}


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def random_covariance(rng: np.random.Generator, size: int) -> np.ndarray:
    root = rng.normal(size=(size, size))
    return root @ root.T


# --- every measure


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("a", "b", "error", "match"),
    [
        (np.zeros(8), np.zeros((8, 2)), ValueError, r"samples must be \[N, F\], got \[8\]"),
        (np.zeros((8, 2)), np.zeros((8, 3)), ValueError, "same number of features, got 2 and 3"),
        (np.zeros((8, 2)), np.zeros((8, 0)), ValueError, r"reference must be \[N, F\], got \[8, 0\]"),
        (np.zeros((8, 2)), np.full((8, 2), np.nan), ValueError, "reference must be finite; row 0"),
        (np.array([["a"]] * 8), np.zeros((8, 1)), TypeError, "must be real numbers, got dtype <U1"),
        (np.zeros((8, 1), complex), np.zeros((8, 1)), TypeError, "must be real numbers, got dtype complex128"),
        (np.zeros((0, 2)), np.zeros((8, 2)), ValueError, "samples must have at least . rows, got 0"),
    ],
)
def test_bad_features_are_refused(name: str, a: np.ndarray, b: np.ndarray, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        MEASURES[name](a, b)


@pytest.mark.parametrize("name", MEASURES)
def test_float32_features_are_measured_in_float64(name: str) -> None:
    a, b = (normal((20, 3), seed).astype(np.float32) for seed in (0, 1))
    assert MEASURES[name](a, b) == MEASURES[name](a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("name", MEASURES)
def test_inputs_are_left_alone(name: str) -> None:
    a, b = normal((20, 3)), normal((20, 3), 1)
    before = a.copy(), b.copy()
    MEASURES[name](a, b)
    assert (a == before[0]).all()
    assert (b == before[1]).all()


# --- Frechet distance


def test_equal_distributions_have_distance_zero() -> None:
    cov = random_covariance(np.random.default_rng(0), 6)
    assert e.frechet_distance(np.ones(6), cov, np.ones(6), cov) == pytest.approx(0, abs=1e-9)


def test_diagonal_case_is_the_known_formula() -> None:
    a, b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 4.0, 2.0])
    means = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    expected = 5 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert e.frechet_distance(means[0], np.diag(a), means[1], np.diag(b)) == pytest.approx(expected)


def test_agrees_with_the_root_of_the_product() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    a, b = random_covariance(rng, 8), random_covariance(rng, 8)
    m, n = rng.normal(size=(2, 8))
    expected = np.square(m - n).sum() + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert e.frechet_distance(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    assert e.frechet_distance(n, b, m, a) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances() -> None:
    vector = np.array([[1.0, 1.0]])
    assert e.frechet_distance(np.zeros(2), vector.T @ vector, np.zeros(2), np.zeros((2, 2))) == pytest.approx(2)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ((np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "means must be"),
        ((np.zeros(2), np.eye(2), np.full(2, np.nan), np.eye(2)), "finite"),
    ],
)
def test_frechet_refuses(arrays: tuple[np.ndarray, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        e.frechet_distance(*arrays)


@pytest.mark.parametrize("size", [1, 3])
def test_statistics_are_those_of_numpy(size: int) -> None:
    values = normal((50, size))
    mean, cov = e.statistics(values)
    assert np.allclose(mean, values.mean(0))
    assert np.allclose(cov, (values - mean).T @ (values - mean) / 49)


def test_frechet_of_samples_shifted_and_scaled_is_exact() -> None:
    """One covariance is a multiple of the other, so the root is known whatever was drawn."""
    a = normal((40, 5))
    b = 3 * a + np.arange(5)
    shift = np.square(2 * a.mean(0) + np.arange(5)).sum()
    assert e.frechet_between(a, b) == pytest.approx(shift + 4 * np.trace(np.cov(a, rowvar=False)))
    assert e.frechet_between(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_agrees_with_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    stats = [rng.normal(size=6), random_covariance(rng, 6), rng.normal(size=6), random_covariance(rng, 6)]
    theirs = float(fid._compute_fid(*map(torch.from_numpy, stats)))
    assert e.frechet_distance(*stats) == pytest.approx(theirs, rel=1e-9)


# --- kernel distance


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 8)])
def test_mmd_is_the_sum_over_pairs(n: int, m: int) -> None:
    x, y = normal((n, 3)), normal((m, 3), 1) + 0.5
    expected = (
        np.mean([kernel(a, b) for a, b in combinations(x, 2)])
        + np.mean([kernel(a, b) for a, b in combinations(y, 2)])
        - 2 * np.mean([kernel(a, b) for a, b in product(x, y)])
    )
    assert e.mmd2(x, y) == pytest.approx(expected, rel=1e-12)


def test_mmd_is_unbiased() -> None:
    """With one feature (xy + 1)^3 has the features 1, 3^(1/2) x, 3^(1/2) x^2, x^3, whose means are known."""
    rng = np.random.default_rng(0)
    expected = 3 * 1**2 + 3 * (2 - 1) ** 2 + 4**2  # moments 0, 1, 0 of N(0, 1) and 1, 2, 4 of N(1, 1)
    found = [e.mmd2(rng.normal(size=(50, 1)), 1 + rng.normal(size=(50, 1))) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / sqrt(2000))
    same = [e.mmd2(rng.normal(size=(50, 1)), rng.normal(size=(50, 1))) for _ in range(2000)]
    assert np.mean(same) == pytest.approx(0, abs=4 * np.std(same) / sqrt(2000))


def test_mmd_agrees_with_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    torch = pytest.importorskip("torch")
    x, y = normal((30, 8)), normal((30, 8), 1) + 0.3
    assert e.mmd2(x, y) == pytest.approx(float(kid.poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-9)


def test_kernel_distance_is_over_subsets() -> None:
    x, y = normal((40, 3)), normal((30, 3), 1) + 1
    whole = e.kernel_distance(x[:30], y, subsets=3, subset_size=30)
    assert whole.mean == pytest.approx(e.mmd2(x[:30], y), rel=1e-9)  # a subset of all rows is a permutation
    assert whole.std == pytest.approx(0, abs=1e-9)
    parts = e.kernel_distance(x, y, subsets=20, subset_size=10)
    assert parts == e.kernel_distance(x, y, subsets=20, subset_size=10)
    assert parts != e.kernel_distance(x, y, subsets=20, subset_size=10, seed=1)
    assert parts.std > 0
    first = e.kernel_distance(x, y, subsets=1, subset_size=10)
    assert first.std == 0
    assert abs(first.mean - parts.mean) < 4 * parts.std


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"subset_size": 9}, ValueError, "subset_size must be at most 8, the rows there are, got 9"),
        ({"subset_size": 1}, ValueError, "subset_size must be at least 2, got 1"),
        ({"subsets": 0}, ValueError, "subsets must be at least 1, got 0"),
        ({"subsets": 2.0}, TypeError, "subsets must be an int, got float"),
    ],
)
def test_kernel_distance_refuses(options: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        e.kernel_distance(np.zeros((8, 2)), np.zeros((12, 2)), **options)  # type: ignore[arg-type]


# --- precision, recall, density, coverage


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a[:, None] - b).sum(-1))


def radii(values: np.ndarray, k: int) -> np.ndarray:
    return np.sort(distances(values, values), axis=1)[:, k]


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_neighbours_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, k: int, shift: float) -> None:
    monkeypatch.setattr(_arrays, "_BLOCK", 16)  # several blocks, the last one smaller
    x, y = normal((50, 4)) + shift, normal((40, 4), 1)
    across = distances(x, y)
    found = e.precision_recall(x, y, k=k)
    assert found.precision == (across <= radii(y, k)).any(1).mean()
    assert found.recall == (across <= radii(x, k)[:, None]).any(0).mean()
    known = e.squared_radii(y, k)
    np.testing.assert_allclose(np.sqrt(known), radii(y, k), rtol=1e-12)
    assert e.precision_recall(x, y, k=k, reference_radii=known) == found
    held = across <= radii(y, k)
    dense = e.density_coverage(x, y, k=k)
    assert dense.density == pytest.approx(held.sum() / (k * 50))
    assert dense.coverage == held.any(0).mean()


def test_radii_are_those_of_the_reference() -> None:
    x, y = normal((20, 3)), normal((30, 3), 1)
    with pytest.raises(ValueError, match=r"reference_radii must be \[30\], got \[20\]"):
        e.precision_recall(x, y, reference_radii=e.squared_radii(x, 3))
    broken = e.squared_radii(y, 3)
    broken[7] = np.nan
    with pytest.raises(ValueError, match="reference_radii must be finite; that of row 7 is not"):
        e.precision_recall(x, y, reference_radii=broken)
    with pytest.raises(ValueError, match="at least 31 rows, got 30"):
        e.squared_radii(y, 30)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        e.squared_radii(y, 0)


def test_equal_and_far_sets() -> None:
    x = normal((60, 5))
    assert e.precision_recall(x, x) == e.PrecisionRecall(1, 1)
    assert e.density_coverage(x, x).coverage == 1
    assert e.precision_recall(x, x + 100) == e.PrecisionRecall(0, 0)
    assert e.density_coverage(x, x + 100) == e.DensityCoverage(0, 0)


def test_rows_that_occur_often_are_at_distance_zero() -> None:
    """Balls of radius 0 hold equal rows, whatever the rounding of the product, far from the origin too."""
    x = np.repeat(1e6 + normal((7, 33)), 8, axis=0)
    assert e.precision_recall(x, x[::-1], k=3) == e.PrecisionRecall(1, 1)
    lost = np.repeat(1e6 + normal((4, 33)), 8, axis=0)  # the first four of the seven only
    lost[:] = x[:32]
    assert e.precision_recall(lost, x) == e.PrecisionRecall(1, 4 / 7)
    assert e.precision_recall(x, lost) == e.PrecisionRecall(4 / 7, 1)


def test_collapse_costs_recall_and_outliers_cost_precision() -> None:
    y = normal((400, 2))
    collapsed = e.precision_recall(0.1 * normal((400, 2), 1), y)
    assert collapsed.precision > 0.95
    assert collapsed.recall < 0.2
    spread = e.precision_recall(5 * normal((400, 2), 1), y)
    assert spread.precision < 0.4
    assert spread.recall > 0.9


def test_coverage_of_equal_distributions_is_as_expected() -> None:
    n, m, k = 60, 50, 5
    expected = 1 - prod((m - i) / (n + m - i) for i in range(1, k + 1))
    found = [e.density_coverage(normal((n, 2), 2 * i), normal((m, 2), 2 * i + 1), k=k) for i in range(300)]
    for values, mean in (([f.coverage for f in found], expected), ([f.density for f in found], 1.0)):
        assert np.mean(values) == pytest.approx(mean, abs=4 * np.std(values) / sqrt(300))


@pytest.mark.parametrize("measure", [e.precision_recall, e.density_coverage])
def test_neighbours_must_exist(measure: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="samples must have at least 5 rows, got 4"):
        measure(np.zeros((4, 2)), np.zeros((9, 2)), k=4)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        measure(np.zeros((4, 2)), np.zeros((9, 2)), k=0)


# --- sliced Wasserstein distance


def test_one_feature_has_one_direction() -> None:
    x, y = normal((30, 1)), normal((30, 1), 1) * 2 + 1
    expected = sqrt(np.square(np.sort(x, axis=0) - np.sort(y, axis=0)).mean())
    assert e.sliced_wasserstein(x, y, directions=3) == pytest.approx(expected, rel=1e-12)


def test_unequal_numbers_are_integrated_exactly() -> None:
    x, y = normal((12, 4)), normal((9, 4), 1) + 1
    both = e.sliced_wasserstein(np.repeat(x, 3, axis=0), np.repeat(y, 4, axis=0), directions=70)
    assert e.sliced_wasserstein(x, y, directions=70) == pytest.approx(both, rel=1e-12)
    assert e.sliced_wasserstein(np.repeat(x, 3, axis=0), x, directions=2) == pytest.approx(0, abs=1e-12)


def test_a_shift_has_the_known_distance() -> None:
    x, shift = normal((20, 6)), np.array([3.0, 0, 0, 4, 0, 0])
    found = e.sliced_wasserstein(x, x + shift, directions=20_000)
    assert found == pytest.approx(5 / sqrt(6), rel=0.03)


def test_directions_depend_on_the_seed_alone() -> None:
    x, y = normal((20, 6)), normal((25, 6), 1)
    found = e.sliced_wasserstein(x, y, directions=100)
    assert e.sliced_wasserstein(y, x, directions=100) == pytest.approx(found, rel=1e-12)
    assert e.sliced_wasserstein(x[::-1], y, directions=100) == pytest.approx(found, rel=1e-12)
    assert e.sliced_wasserstein(x, y, directions=100, seed=1) != found
    with pytest.raises(ValueError, match="directions must be at least 1, got 0"):
        e.sliced_wasserstein(x, y, directions=0)


# --- what they stand on


def test_permutation_is_a_permutation_of_the_seed() -> None:
    assert sorted(permutation(100, 3)) == list(range(100))
    assert (permutation(100, 3) == permutation(100, 3)).all()
    assert (permutation(100, 3) != permutation(100, -3)).any()
    assert permutation(0, 1).shape == (0,)
    counts = np.bincount([permutation(4, seed)[0] for seed in range(4000)], minlength=4)
    assert (abs(counts - 1000) < 5 * sqrt(750)).all()


def test_many_rows_are_measured_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a block of distances is ever there at once."""
    monkeypatch.setattr(_arrays, "_BLOCK", 8)
    x, y = normal((20, 3)), normal((15, 3), 1)
    blocks = list(_arrays.squared_distances(x, y))
    assert [len(found) for _, found in blocks] == [8, 8, 4]
    assert np.allclose(np.concatenate([found for _, found in blocks]), distances(x, y) ** 2)
