from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from pydiffaccel.ops import hungarian

INF = float("inf")


def total(cost: torch.Tensor, columns: torch.Tensor) -> float:
    rows = columns >= 0
    return float(cost.double()[rows.nonzero()[:, 0], columns[rows]].sum())


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
def test_brute_force(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    for scale in (1.0, 1e6):
        cost = torch.rand(n, n, generator=generator) * scale
        best = min(sum(float(cost[i, p[i]]) for i in range(n)) for p in itertools.permutations(range(n)))
        assert total(cost, hungarian(cost)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (15, 15), (16, 17), (33, 31), (1, 40), (40, 1)])
def test_shapes(shape: tuple[int, int]) -> None:
    cost = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    columns = hungarian(cost)
    assert columns.shape == shape[:1]
    assigned = columns[columns >= 0]
    assert len(assigned) == min(shape)
    assert len(set(assigned.tolist())) == min(shape)


def test_ties() -> None:
    assert hungarian(torch.full((6, 6), 3.0)).tolist() == list(range(6))
    assert hungarian(torch.zeros(2, 3, 4)).tolist() == [[0, 1, 2]] * 2
    for n in (15, 16, 17, 95, 96, 128, 300):
        for value in (0.0, -3.25, 0.1):
            assert hungarian(torch.full((n, n), value)).tolist() == list(range(n))


def families(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Costs that solvers find easy, hard, tied, skewed, or badly scaled."""
    g = np.random.default_rng(seed)
    a, b = g.random(rows), g.random(rows)
    x, n = g.standard_normal((rows, 48)) + 2 * g.standard_normal((rows, 1)), g.standard_normal((rows, 48))
    p, q = g.random((rows, 1, 2)), g.random((1, rows, 2))
    few = g.random((rows // 4 + 1, rows // 4 + 1))
    steps = np.arange(rows, dtype=np.float64)
    return {
        "uniform": g.random((rows, rows)),
        "products": -x @ n.T,
        "normal": g.standard_normal((rows, rows)),
        "integers": g.integers(0, 10, (rows, rows)).astype(np.float64),
        "binary": g.integers(0, 2, (rows, rows)).astype(np.float64),
        "log-normal": np.exp(3 * g.standard_normal((rows, rows))),
        "points": ((p - q) ** 2).sum(-1),
        "outer": np.outer(a, b),
        "outer of integers": np.outer(steps, steps),
        "sum": a[:, None] + b[None],
        "offset": 1e6 + 1e-3 * g.random((rows, rows)),
        "row offsets": g.random((rows, rows)) + 1e4 * a[:, None],
        "column offsets": g.random((rows, rows)) + 1e4 * b[None],
        "copied rows": np.repeat(g.random((rows // 4 + 1, rows)), 4, 0)[:rows],
        "copied columns": np.repeat(g.random((rows, rows // 4 + 1)), 4, 1)[:, :rows],
        "copied both": np.repeat(np.repeat(few, 4, 0), 4, 1)[:rows, :rows],
        "huge": g.random((rows, rows)) * 1e300,
        "tiny": g.random((rows, rows)) * 1e-300,
        "one large": np.where(np.eye(rows) > 0, 1e30, g.random((rows, rows))),
        "decaying": g.random((rows, rows)) * np.exp(-np.arange(rows) / 4)[:, None],
    }


@pytest.mark.parametrize("rows", [*range(1, 21), 31, 33, 47, 48, 49, 95, 96, 127, 128, 129, 257, 400])
def test_totals_equal_scipys_on_every_family(rows: int) -> None:
    for name, cost in families(rows, rows).items():
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float32 and name in ("huge", "tiny"):
                continue
            given = torch.from_numpy(cost).to(dtype)
            kept = given.clone()
            exact = given.double().numpy()
            for maximize in (False, True):
                columns = hungarian(given, maximize).numpy()
                assert np.array_equal(np.sort(columns), np.arange(rows)), name
                best = exact[scipy_assignment(exact, maximize)].sum()
                assert exact[np.arange(rows), columns].sum() == pytest.approx(best, rel=1e-12, abs=0), (name, dtype)
            assert torch.equal(given, kept)


@pytest.mark.parametrize("shape", [(1, 3), (15, 17), (17, 16), (16, 40), (100, 129), (129, 100), (3, 200), (300, 20)])
def test_rectangular_totals_equal_scipys(shape: tuple[int, int]) -> None:
    g = np.random.default_rng(7)
    for cost in (g.random(shape), g.integers(0, 5, shape).astype(np.float64), -np.exp(g.standard_normal(shape))):
        for maximize in (False, True):
            columns = hungarian(torch.from_numpy(cost), maximize).numpy()
            rows = np.flatnonzero(columns >= 0)
            assert len(rows) == len(set(columns[rows].tolist())) == min(shape)
            best = cost[scipy_assignment(cost, maximize)].sum()
            assert cost[rows, columns[rows]].sum() == pytest.approx(best, rel=1e-12, abs=0)


@pytest.mark.parametrize("rows", [5, 16, 40, 130])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_forbidden_pairs_at_random(rows: int, share: float) -> None:
    g = np.random.default_rng(rows)
    for columns in (rows, rows + 9):
        cost = g.random((rows, columns))
        cost[g.random((rows, columns)) < share] = INF
        try:
            best = cost[scipy_assignment(cost)].sum()
        except ValueError:
            with pytest.raises(ValueError, match="no feasible assignment"):
                hungarian(torch.from_numpy(cost))
            continue
        assert total(torch.from_numpy(cost), hungarian(torch.from_numpy(cost))) == pytest.approx(best, rel=1e-12)


def test_forbidden_pairs() -> None:
    assert hungarian(torch.tensor([[INF, 1.0], [2.0, INF]])).tolist() == [1, 0]
    assert hungarian(torch.tensor([[-INF, 1.0], [2.0, -INF]]), maximize=True).tolist() == [1, 0]
