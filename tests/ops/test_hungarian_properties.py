"""What holds for every cost: permutation, optimality proved by the duals, and how the answer follows a changed cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment as scipy_assignment
from torch import Tensor

from pydiffaccel.ops import hungarian
from tests.ops.test_hungarian import families

INF = float("inf")
KINDS = ("uniform", "normal", "products", "integers", "binary", "wide integers", "skewed", "offset")


def draw(kind: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    g = np.random.default_rng(seed)
    if kind == "products":
        return -(g.standard_normal((*shape[:-1], 20)) @ g.standard_normal((20, shape[-1])))
    return {
        "uniform": lambda: g.random(shape),
        "normal": lambda: g.standard_normal(shape),
        "integers": lambda: g.integers(0, 10, shape).astype(np.float64),
        "binary": lambda: g.integers(0, 2, shape).astype(np.float64),
        "wide integers": lambda: g.integers(-(2**20), 2**20, shape).astype(np.float64),
        "skewed": lambda: np.exp(3 * g.standard_normal(shape)),
        "offset": lambda: 1e6 + g.random(shape),
    }[kind]()


@st.composite
def costs(draw_: st.DrawFn, largest: int = 140, square: bool = False) -> Tensor:
    """float64 [R, C]: small and beyond the sizes where the auction begins."""
    size = st.one_of(st.integers(1, 20), st.integers(21, largest))
    rows = draw_(size)
    columns = rows if square or draw_(st.booleans()) else draw_(size)
    kind, seed = draw_(st.sampled_from(KINDS)), draw_(st.integers(0, 2**32))
    return torch.from_numpy(draw(kind, (rows, columns), seed))


def total(cost: Tensor, columns: Tensor) -> float:
    rows = columns >= 0
    return float(cost.double()[rows.nonzero()[:, 0], columns[rows]].sum())


def magnitude(cost: Tensor) -> float:
    """Of the sum of an assignment: what its rounding is relative to."""
    return float(cost.double().abs().max()) * min(cost.shape)


def assert_assigns(columns: Tensor, shape: tuple[int, ...]) -> None:
    rows, cols = shape
    assigned = columns[columns >= 0]
    assert columns.shape == (rows,)
    assert len(assigned) == len(assigned.unique()) == min(rows, cols)
    assert bool((columns >= -1).all())
    assert bool((columns < cols).all())


def assert_proved(cost: Tensor, columns: Tensor, u: Tensor, v: Tensor, maximize: bool = False) -> None:
    """The duals prove the assignment optimal: u + v <= cost, equal where assigned, 0 at what is left over."""
    sign = -1 if maximize else 1
    exact = cost.double() * sign
    u, v = u * sign, v * sign
    assert u.dtype == v.dtype == torch.float64
    reduced = exact - u[:, None] - v[None]
    rounding = 2.0**-48 * sum(float(side.abs().max()) if len(side) else 0.0 for side in (u, v))
    assert bool((reduced >= -rounding).all())
    rows = (columns >= 0).nonzero()[:, 0]
    at = columns[rows]
    assert bool((reduced[rows, at].abs() <= rounding).all())
    for side, left, other in ((u, columns < 0, len(v)), (v, torch.ones(len(v), dtype=torch.bool), len(u))):
        if side is v:
            left[at] = False
        assert bool((side[left] == 0).all())
        if len(side) > other:  # some are left over: a dual above 0 would make one of them better
            assert bool((side <= 0).all())


@settings(max_examples=120, deadline=None)
@given(costs(), st.booleans(), st.sampled_from([torch.float64, torch.float32]))
def test_an_optimal_permutation_proved_by_its_duals(cost: Tensor, maximize: bool, dtype: torch.dtype) -> None:
    cost = cost.to(dtype)
    kept = cost.clone()
    columns = hungarian(cost, maximize)
    assert torch.equal(cost, kept)
    assert_assigns(columns, tuple(cost.shape))
    exact = cost.double().numpy()
    best = float(exact[scipy_assignment(exact, maximize)].sum())
    found = total(cost, columns)
    if bool((cost == cost.round()).all()):
        assert found == best
    assert (found - best) * (-1 if maximize else 1) <= 1e-9 * abs(best)
    again, u, v = hungarian(cost, maximize, return_duals=True)
    assert torch.equal(again, columns)
    assert_proved(cost, columns, u, v, maximize)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 33, 96, 130, 257])
def test_duals_of_every_family(rows: int) -> None:
    for array in families(rows, rows).values():
        for cost in (torch.from_numpy(array), torch.from_numpy(array).clamp(-1e37, 1e37).float()):
            for matrix in (cost, cost[: rows // 2 + 1], cost[:, : rows // 2 + 1]):
                assert_proved(matrix, *hungarian(matrix, return_duals=True))


def test_duals_with_forbidden_pairs() -> None:
    for rows in (5, 40, 130):
        cost = torch.from_numpy(draw("uniform", (rows, rows + 4), rows))
        cost[torch.from_numpy(draw("uniform", (rows, rows + 4), 1)) < 0.5] = INF
        assert_proved(cost, *hungarian(cost, return_duals=True))
        assert_proved(cost.T, *hungarian(cost.T, return_duals=True))


def test_shapes_of_duals() -> None:
    cost = torch.rand(2, 3, 4, 6)
    columns, u, v = hungarian(cost, return_duals=True)
    assert (columns.shape, u.shape, v.shape) == ((2, 3, 4), (2, 3, 4), (2, 3, 6))
    for shape in ((0, 5), (5, 0), (0, 4, 4), (3, 0, 4), (3, 4, 0)):
        columns, u, v = hungarian(torch.zeros(shape), return_duals=True)
        assert (columns.shape, u.shape, v.shape) == (shape[:-1], shape[:-1], (*shape[:-2], shape[-1]))
        assert bool((u == 0).all())
        assert bool((v == 0).all())


@settings(max_examples=40, deadline=None)
@given(costs())
def test_transposition(cost: Tensor) -> None:
    there, back = hungarian(cost), hungarian(cost.T)
    assert total(cost, there) == pytest.approx(total(cost.T, back), abs=1e-12 * magnitude(cost))


@settings(max_examples=40, deadline=None)
@given(costs(square=True), st.integers(0, 2**32))
def test_constants_of_rows_and_columns(cost: Tensor, seed: int) -> None:
    """They change every total alike: exactly, where the sums are exact."""
    generator = torch.Generator().manual_seed(seed % 2**31)
    a = torch.randint(-1000, 1000, (len(cost), 1), generator=generator).double()
    b = torch.randint(-1000, 1000, (1, len(cost)), generator=generator).double()
    cost = (cost * 1024).round() / 1024
    moved = hungarian(cost + a + b)
    assert total(cost, moved) == pytest.approx(total(cost, hungarian(cost)), abs=1e-12 * magnitude(cost))


@settings(max_examples=40, deadline=None)
@given(costs(), st.integers(-200, 200))
def test_powers_of_two(cost: Tensor, power: int) -> None:
    assert torch.equal(hungarian(cost * 2.0**power), hungarian(cost))
    single = cost.float()
    assert torch.equal(hungarian(single * 2.0 ** (power / 8).__floor__()), hungarian(single))


@settings(max_examples=40, deadline=None)
@given(costs(), st.sampled_from([torch.float64, torch.float32, torch.float16]))
def test_maximize_is_to_minimise_the_negative(cost: Tensor, dtype: torch.dtype) -> None:
    cost = cost.clamp(-6e4, 6e4).to(dtype)
    assert torch.equal(hungarian(cost, maximize=True), hungarian(-cost))


@settings(max_examples=40, deadline=None)
@given(costs(largest=90))
def test_rectangular_is_padded_with_zeros(cost: Tensor) -> None:
    rows, columns = cost.shape
    padded = torch.zeros(max(rows, columns), max(rows, columns), dtype=torch.float64)
    padded[:rows, :columns] = cost
    found = hungarian(padded)[:rows]
    found = torch.where(found < columns, found, -1)
    assert_assigns(found, (rows, columns))
    assert total(cost, found) == pytest.approx(total(cost, hungarian(cost)), abs=1e-12 * magnitude(cost))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(KINDS),
    st.integers(0, 2**32),
)
def test_a_batch_is_a_loop(batch: list[int], rows: int, columns: int, kind: str, seed: int) -> None:
    cost = torch.from_numpy(draw(kind, (*batch, rows, columns), seed)).float()
    found = hungarian(cost)
    assert found.shape == (*batch, rows)
    for item in np.ndindex(*batch):
        assert torch.equal(found[item], hungarian(cost[item]))


DIGEST = (
    "import hashlib, torch\n"
    "from pydiffaccel.ops import hungarian\n"
    "from tests.ops.test_hungarian import families\n"
    "h = hashlib.sha256()\n"
    "for rows in (16, 33, 48, 97, 127, 128, 260):\n"
    "    cost = torch.stack([torch.from_numpy(c).clamp(-1e37, 1e37) for c in families(rows).values()])\n"
    "    crowded = torch.rand(rows, rows, generator=torch.Generator().manual_seed(rows))\n"
    "    cost = torch.cat([cost, crowded[None] - 3 * torch.linspace(0, 1, rows) ** 4])\n"
    "    for dtype in (torch.float32, torch.float64):\n"
    "        for part in (cost, cost[:, : rows - 7], cost[:, :, : rows - 7]):\n"
    "            given = part.to(dtype)\n"
    "            answers = []\n"
    "            for threads in (1, 2, 3):\n"
    "                torch.set_num_threads(threads)\n"
    "                answers.append(hungarian(given))\n"
    "            assert all(torch.equal(answer, answers[0]) for answer in answers)\n"
    "            h.update(answers[0].numpy().tobytes())\n"
    "            for array in hungarian(given, return_duals=True):\n"
    "                h.update(array.numpy().tobytes())\n"
    # Rows so long that their levels are of some of their columns.
    "long = torch.randn(2085, 2085, generator=torch.Generator().manual_seed(1))\n"
    "long *= torch.linspace(0.5, 2, 2085)[:, None]\n"
    "for given in (long, long.double()):\n"
    "    for array in hungarian(given, return_duals=True):\n"
    "        h.update(array.numpy().tobytes())\n"
    "print(h.hexdigest())\n"
)


def test_every_instruction_set_and_thread_count_gives_the_same_answer() -> None:
    answers = set()
    for level in ("portable", "avx2", "avx512"):
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"DIFFACCEL_SIMD": level},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
    assert len(answers) == 1
