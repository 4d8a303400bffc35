from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment as scipy_assignment

import pydiffaccel as da
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


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.one_of(st.integers(0, 3).map(float), st.floats(-1e6, 1e6)))
    ),
    st.booleans(),
)
def test_same_answer_as_scipy_ties_included(cost: np.ndarray, maximize: bool) -> None:
    expected = scipy_assignment(cost, maximize)
    found = da.linear_sum_assignment(cost, maximize)
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])
    assert found[0].dtype == np.int64
    assert found[1].dtype == np.int64


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (15, 15), (16, 17), (33, 31), (1, 40), (40, 1)])
def test_shapes(shape: tuple[int, int]) -> None:
    cost = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    columns = hungarian(cost)
    assert columns.shape == shape[:1]
    assigned = columns[columns >= 0]
    assert len(assigned) == min(shape)
    assert len(set(assigned.tolist())) == min(shape)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1.0])
def test_extreme_scales_and_offsets(scale: float) -> None:
    cost = np.random.default_rng(0).random((20, 20)) * scale
    assert np.array_equal(da.linear_sum_assignment(cost)[1], scipy_assignment(cost)[1])
    offset = 1e6 + np.random.default_rng(1).random((20, 20)) * 1e-6
    assert np.array_equal(da.linear_sum_assignment(offset)[1], scipy_assignment(offset)[1])


def test_structured_costs() -> None:
    a = np.arange(1, 31, dtype=np.float64)
    for cost in (np.outer(a, a), np.outer(a, a[::-1]), a[:, None] + a[None]):
        rows, columns = da.linear_sum_assignment(cost)
        assert cost[rows, columns].sum() == cost[scipy_assignment(cost)].sum()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16])
def test_other_dtypes_lose_nothing(dtype: torch.dtype) -> None:
    cost = (torch.rand(9, 9, generator=torch.Generator().manual_seed(2)) * 2**6).round().to(dtype)
    assert torch.equal(hungarian(cost), hungarian(cost.double()))
    big = torch.tensor([[2**53, 0], [2**53 - 1, 0]])
    assert hungarian(big).tolist() == [1, 0]


def test_layouts() -> None:
    cost = torch.rand(7, 9, generator=torch.Generator().manual_seed(3))
    expected = hungarian(cost)
    assert torch.equal(hungarian(cost.T.contiguous().T), expected)
    assert torch.equal(hungarian(cost.requires_grad_()), expected)
    array = cost.detach().numpy().copy()
    array.flags.writeable = False
    for view in (array, np.asfortranarray(array), array[::-1][::-1]):
        assert np.array_equal(da.linear_sum_assignment(view)[1], expected.numpy())
    assert hungarian(torch.rand(1, 5).expand(4, 5)).sort().values.unique().numel() == 4


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


@pytest.mark.parametrize("rows", [*range(1, 21), 31, 33, 95, 96, 127, 128, 129, 257, 400])
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


@pytest.mark.parametrize("rows", [20, 200])
@pytest.mark.parametrize(("value", "sentence"), [(torch.nan, "NaN in 1 of"), (-INF, "-inf in 1 of")])
def test_one_bad_entry(rows: int, value: float, sentence: str) -> None:
    for dtype in (torch.float32, torch.float64):
        cost = torch.rand(rows, rows, dtype=dtype)
        cost[rows - 1, rows // 2] = value
        with pytest.raises(ValueError, match=sentence):
            hungarian(cost)
        cost[0, 0] = INF
        with pytest.raises(ValueError, match=sentence):
            hungarian(cost)


def test_every_instruction_set_gives_the_same_answer() -> None:
    script = (
        "import hashlib, torch\n"
        "from pydiffaccel.ops import hungarian\n"
        "from tests.ops.test_hungarian import families\n"
        "h = hashlib.sha256()\n"
        "for rows in (16, 33, 97, 128, 260):\n"
        "    for cost in families(rows).values():\n"
        "        for dtype in (torch.float32, torch.float64):\n"
        "            h.update(hungarian(torch.from_numpy(cost).clamp(max=1e37).to(dtype)).numpy().tobytes())\n"
        "print(h.hexdigest())\n"
    )
    answers = set()
    for level in ("portable", "avx2", "avx512"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"DIFFACCEL_SIMD": level},
        )
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
    assert len(answers) == 1


def test_forbidden_pairs() -> None:
    assert hungarian(torch.tensor([[INF, 1.0], [2.0, INF]])).tolist() == [1, 0]
    assert hungarian(torch.tensor([[-INF, 1.0], [2.0, -INF]]), maximize=True).tolist() == [1, 0]


def test_batch_items_are_independent() -> None:
    cost = torch.rand(5, 11, 11, generator=torch.Generator().manual_seed(4))
    assert torch.equal(hungarian(cost), torch.stack([hungarian(item) for item in cost]))


def test_two_threads_at_once() -> None:
    costs = [torch.rand(40, 40, generator=torch.Generator().manual_seed(s)) for s in range(8)]
    expected = [hungarian(cost) for cost in costs]
    found: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda s=s: found.__setitem__(s, hungarian(costs[s]))) for s in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[s], expected[s]) for s in range(8))


@pytest.mark.parametrize(
    ("cost", "error", "sentence"),
    [
        ([[1.0]], TypeError, "cost must be a torch.Tensor, got list"),
        (torch.zeros(3), ValueError, r"shape \[..., R, C\], got \[3\]"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "real tensor, got torch.complex64"),
        (torch.tensor([[1.0, torch.nan], [0.0, 0.0]]), ValueError, "NaN in 1 of 4 entries"),
        (torch.tensor([[1.0, -INF], [0.0, 0.0]]), ValueError, "-inf in 1 of 4 entries"),
        (torch.tensor([[1.0, INF], [2.0, INF]]), ValueError, r"no feasible assignment of shape \[2, 2\]"),
        (torch.tensor([[2**53 + 1, 0], [0, 0]]), ValueError, r"beyond 2\*\*53 .* got 9007199254740993"),
    ],
)
def test_bad_input(cost: object, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        hungarian(cost)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cost",
    [
        np.zeros(3),
        np.zeros((2, 2, 2)),
        np.array([[1.0, np.nan], [0, 0]]),
        np.array([[1.0, -np.inf], [0, 0]]),
        np.array([[1.0, np.inf], [2, np.inf]]),
    ],
)
def test_scipy_sentences(cost: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\w") as expected:
        scipy_assignment(cost)
    with pytest.raises(ValueError, match=r"\w") as found:
        da.linear_sum_assignment(cost)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("cost", [np.zeros((2, 2), complex), np.array([["a", "b"], ["c", "d"]])])
def test_wrong_numpy_types(cost: np.ndarray) -> None:
    with pytest.raises(TypeError, match="real numbers, got dtype"):
        da.linear_sum_assignment(cost)
