"""SciPy's door: ``linear_sum_assignment`` on NumPy arrays answers as SciPy does, ties and sentences included."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment as scipy_assignment

import pydiffaccel as da
from tests.ops.test_hungarian import families

SCIPYS_TESTS = Path(scipy.optimize.__file__).parent / "tests" / "test_linear_assignment.py"


def scipys_own_tests() -> dict[str, Callable[..., None]]:
    """The tests in SciPy's installed file, which sees our function under SciPy's name while it is imported."""
    if not SCIPYS_TESTS.exists():

        def test_scipy_ships_no_tests() -> None:
            pytest.skip(f"this SciPy has no {SCIPYS_TESTS.name}: its own tests were not run")

        return {"test_scipy_ships_no_tests": test_scipy_ships_no_tests}
    spec = importlib.util.spec_from_file_location("scipys_test_linear_assignment", SCIPYS_TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    kept = scipy.optimize.linear_sum_assignment
    scipy.optimize.linear_sum_assignment = da.linear_sum_assignment
    try:
        spec.loader.exec_module(module)
    finally:
        scipy.optimize.linear_sum_assignment = kept
    assert module.linear_sum_assignment is da.linear_sum_assignment
    found = {name: function for name, function in vars(module).items() if name.startswith("test_")}
    assert "test_linear_sum_assignment_small_inputs" in found
    return found


globals().update(scipys_own_tests())


def assert_same(cost: Any, maximize: bool = False, name: str = "") -> None:
    expected, found = scipy_assignment(cost, maximize), da.linear_sum_assignment(cost, maximize)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.array_equal(mine, theirs), (name, np.shape(cost), maximize)
        assert mine.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 12), st.integers(0, 12)).flatmap(
        lambda shape: arrays(np.float64, shape, elements=st.one_of(st.integers(0, 3).map(float), st.floats(-1e6, 1e6)))
    ),
    st.booleans(),
)
def test_small_problems(cost: np.ndarray, maximize: bool) -> None:
    assert_same(cost, maximize)


# From 32 columns on the fast solver may answer: where the optimum is unique, and only there.
@pytest.mark.parametrize("rows", [15, 16, 17, 31, 32, 33, 64, 95, 96, 129, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_family_ties_included(rows: int, dtype: type[np.floating[Any]]) -> None:
    for name, cost in families(rows, rows).items():
        matrix = np.clip(cost, -1e37, 1e37).astype(dtype) if dtype is np.float32 else cost
        for view in (matrix, matrix[: rows * 2 // 3], matrix[:, : rows * 2 // 3]):
            for maximize in (False, True):
                assert_same(view, maximize, name)


@settings(max_examples=60, deadline=None)
@given(st.integers(32, 70), st.integers(0, 20), st.sampled_from([1, 3, 40, 1000, 10**6]), st.integers(0, 2**32))
def test_ties_rare_and_frequent(rows: int, more: int, values: int, seed: int) -> None:
    cost = np.random.default_rng(seed).integers(0, values, (rows, rows + more)).astype(np.float32)
    assert_same(cost)
    assert_same(cost.T, True)


@pytest.mark.parametrize("change", [0.0, 2**-52, 2**-50, 2**-45, 2**-40, 2**-30])
def test_optima_that_differ_by_less_than_rounding(change: float) -> None:
    g = np.random.default_rng(3)
    for rows in (40, 120):
        cost = g.random((rows, rows))
        cost[1] = cost[0]  # two rows swap their columns at no cost, or next to none
        cost[1, scipy_assignment(cost)[1][:2]] *= 1 + change
        assert_same(cost)
        cost[:, 1] = cost[:, 0] * (1 + change)
        assert_same(cost, True)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_forbidden_pairs(share: float) -> None:
    for rows in (5, 33, 130):
        g = np.random.default_rng(rows)
        for columns in (rows, rows + 9):
            for values in (g.random((rows, columns)), g.integers(0, 4, (rows, columns)).astype(np.float64)):
                cost = np.where(g.random(values.shape) < share, np.inf, values)
                try:
                    assert_same(cost)
                except ValueError as error:
                    with pytest.raises(ValueError, match=str(error)):
                        da.linear_sum_assignment(cost)


@pytest.mark.parametrize(
    "dtype",
    ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">f4", ">f8", ">i4"],
)
def test_dtypes(dtype: str) -> None:
    for shape in ((6, 6), (40, 40), (40, 50)):
        cost = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
        kept = cost.copy()
        assert_same(cost)
        assert np.array_equal(cost, kept)


def layouts(cost: np.ndarray) -> dict[str, np.ndarray]:
    rows, columns = cost.shape
    wide = np.zeros((2 * rows, 3 * columns), cost.dtype)
    wide[::2, ::3] = cost
    record = np.zeros((rows, columns), np.dtype([("flag", "u1"), ("cost", cost.dtype)]))
    record["cost"] = cost
    constant = cost.copy()
    constant.flags.writeable = False
    return {
        "C": cost,
        "Fortran": np.asfortranarray(cost),
        "negative strides": np.ascontiguousarray(cost[::-1, ::-1])[::-1, ::-1],
        "strided": wide[::2, ::3],
        "unaligned": record["cost"],
        "read-only": constant,
        "masked": np.ma.masked_array(cost),
        "list": cost.tolist(),
        "zero row stride": np.broadcast_to(cost[0], (rows, columns)),
        "zero column stride": np.broadcast_to(cost[:, :1], (rows, columns)),
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 9), (9, 7), (40, 40), (40, 48), (48, 40)])
def test_layouts(shape: tuple[int, int], dtype: type[np.floating[Any]]) -> None:
    cost = np.random.default_rng(1).random(shape).astype(dtype)
    for name, view in layouts(cost).items():
        for maximize in (False, True):
            assert_same(view, maximize, name)


BAD = {
    "0-D": 3.0,
    "none": None,
    "1-D": np.zeros(3),
    "3-D": np.zeros((2, 2, 2)),
    "ragged": [[1, 2], [3]],
    "NaN": np.array([[1.0, np.nan], [0, 0]]),
    "-inf": np.array([[1.0, -np.inf], [0, 0]]),
    "infeasible": np.array([[1.0, np.inf], [2, np.inf]]),
    "complex": np.zeros((2, 2), complex),
    "strings": np.array([["a", "b"], ["c", "d"]]),
    "objects": np.eye(2).astype(object),
    "long double": np.eye(2, dtype=np.longdouble),
    "dates": np.zeros((2, 2), "M8[s]"),
}


@pytest.mark.parametrize("name", BAD)
def test_scipys_sentences(name: str) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        scipy_assignment(BAD[name])
    with pytest.raises(type(expected.value)) as found:
        da.linear_sum_assignment(BAD[name])
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("rows", [20, 40, 130])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scipys_sentences_of_larger_matrices(rows: int, dtype: type[np.floating[Any]]) -> None:
    cost = np.random.default_rng(0).random((rows, rows)).astype(dtype)
    for value, maximize in ((np.nan, False), (-np.inf, False), (np.nan, True), (np.inf, True)):
        cost[rows // 2, 3] = value
        with pytest.raises(ValueError, match=r"^matrix contains invalid numeric entries$"):
            da.linear_sum_assignment(cost, maximize)
    cost[rows // 2] = np.inf
    with pytest.raises(ValueError, match=r"^cost matrix is infeasible$"):
        da.linear_sum_assignment(cost)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_nothing_to_assign(shape: tuple[int, int]) -> None:
    for dtype in (np.float32, np.float64, np.int64):
        assert_same(np.zeros(shape, dtype))


def test_integers_beyond_float64_are_refused() -> None:
    """SciPy rounds them, and may then return what is not the optimum."""
    assert da.linear_sum_assignment([[2**53, 0], [2**53 - 1, 0]])[1].tolist() == [1, 0]
    for value, dtype in ((2**53 + 1, np.int64), (-(2**53) - 1, np.int64), (2**64 - 1, np.uint64)):
        with pytest.raises(ValueError, match=rf"beyond 2\*\*53 have no exact float64, got magnitude {abs(value)}"):
            da.linear_sum_assignment(np.array([[value, 0], [0, 0]], dtype))


def test_a_sparse_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a matrix"):
        da.linear_sum_assignment(scipy.sparse.csr_array(np.eye(3)))


def test_threads_at_once() -> None:
    costs = [families(120, seed)["uniform" if seed % 2 else "integers"] for seed in range(8)]
    expected = [scipy_assignment(cost)[1] for cost in costs]
    found: dict[int, np.ndarray] = {}

    def solve(item: int) -> None:
        for _ in range(5):
            found[item] = da.linear_sum_assignment(costs[item])[1]

    threads = [threading.Thread(target=solve, args=(item,)) for item in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[item], expected[item]) for item in range(8))


@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_every_instruction_set_answers_as_scipy(level: str) -> None:
    script = (
        "import numpy as np\n"
        "from tests.ops.test_hungarian import families\n"
        "from tests.ops.test_linear_sum_assignment import assert_same\n"
        "for rows in (33, 97, 130):\n"
        "    for name, cost in families(rows).items():\n"
        "        assert_same(np.clip(cost, -1e37, 1e37).astype(np.float32), name=name)\n"
        "        assert_same(cost[: rows - 9], name=name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"DIFFACCEL_SIMD": level},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
