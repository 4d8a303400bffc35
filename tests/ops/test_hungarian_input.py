"""What ``hungarian`` is given: dtypes, layouts, bad values, and processes and threads that call it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pydiffaccel.ops import hungarian
from tests.ops.test_hungarian import total

INF = float("inf")
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


def random_cost(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_dtypes_lose_nothing(dtype: torch.dtype) -> None:
    for shape in ((9, 9), (40, 45), (120, 120)):
        cost = (random_cost(*shape) * 2**6).round().to(dtype)
        exact = cost.double()
        assert total(exact, hungarian(cost)) == total(exact, hungarian(exact))
        columns, u, v = hungarian(cost, return_duals=True)
        assert torch.equal(columns, hungarian(cost))
        assert float(u.sum() + v.sum()) == pytest.approx(total(exact, columns), rel=1e-12)


def test_integers_to_2_to_the_53() -> None:
    assert hungarian(torch.tensor([[2**53, 0], [2**53 - 1, 0]])).tolist() == [1, 0]
    assert hungarian(torch.tensor([[-(2**53), 0], [1 - 2**53, 0]])).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_layouts(dtype: torch.dtype) -> None:
    for shape in ((7, 9), (9, 7), (60, 60), (130, 130)):
        cost = random_cost(*shape).to(dtype)
        expected = hungarian(cost)
        doubled = cost.repeat_interleave(2, 0).repeat_interleave(3, 1)
        storage = torch.cat([torch.zeros(3, dtype=dtype), cost.flatten()])
        views = {
            "Fortran": cost.T.contiguous().T,
            "flipped": cost.flip(0).flip(1).flip(0).flip(1),
            "strided": doubled[::2, ::3],
            "offset": storage[3:].view(shape),
            "requires_grad": cost.clone().requires_grad_(),
            "result of a function": cost.clone().requires_grad_() * 1,
            "negated view": torch._neg_view(-cost),
            "inference": cost.clone(),
        }
        for name, view in views.items():
            with torch.inference_mode(name == "inference"):
                assert torch.equal(hungarian(view), expected), name
                assert torch.equal(hungarian(view, return_duals=True)[0], expected), name


def test_expanded() -> None:
    for rows in (4, 40, 130):
        for cost in (random_cost(1, rows).expand(rows, rows), random_cost(rows, 1).expand(rows, rows)):
            assert sorted(hungarian(cost).tolist()) == list(range(rows))
        batch = random_cost(rows, rows).expand(3, rows, rows)
        assert torch.equal(hungarian(batch), hungarian(batch[0]).expand(3, rows))


def test_a_read_only_array_s_tensor() -> None:
    array = random_cost(40, 40).numpy()
    expected = hungarian(torch.from_numpy(array))
    array.flags.writeable = False
    with pytest.warns(UserWarning, match="not writable"):
        cost = torch.from_numpy(array)
    assert torch.equal(hungarian(cost), expected)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e307, 5e-324])
def test_scales_beyond_float32(scale: float) -> None:
    for rows in (5, 40, 130):
        cost = random_cost(rows, rows).double()
        columns = hungarian(cost * scale)
        if scale > 1e-310:
            assert total(cost, columns) == pytest.approx(total(cost, hungarian(cost)), rel=1e-12)
        assert sorted(columns.tolist()) == list(range(rows))


@pytest.mark.parametrize("rows", [17, 130])
def test_small_differences_on_a_large_offset(rows: int) -> None:
    cost = (random_cost(rows, rows) * 2**10).round().double() / 2**20
    assert total(cost, hungarian(1e6 + cost)) == total(cost, hungarian(cost))


@pytest.mark.parametrize("rows", [1023, 1025])
def test_around_1024(rows: int) -> None:
    left, right = torch.randn(2, rows, 32, generator=torch.Generator().manual_seed(rows))
    cost = -left @ right.T
    columns, u, v = hungarian(cost, return_duals=True)
    assert sorted(columns.tolist()) == list(range(rows))
    assert float(u.sum() + v.sum()) == pytest.approx(total(cost, columns), rel=1e-12)


@pytest.mark.parametrize("shape", [(40, 400), (400, 40), (100, 101), (1, 1000), (1000, 1)])
def test_wide_and_tall(shape: tuple[int, int]) -> None:
    cost = random_cost(*shape)
    columns, u, v = hungarian(cost, return_duals=True)
    assert len(columns[columns >= 0].unique()) == min(shape)
    assert float(u.sum() + v.sum()) == pytest.approx(total(cost, columns), rel=1e-12)


@pytest.mark.parametrize(
    ("cost", "error", "sentence"),
    [
        ([[1.0]], TypeError, "cost must be a torch.Tensor, got list"),
        (None, TypeError, "cost must be a torch.Tensor, got NoneType"),
        (torch.zeros(3), ValueError, r"shape \[..., R, C\], got \[3\]"),
        (torch.tensor(1.0), ValueError, r"shape \[..., R, C\], got \[\]"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "real tensor, got torch.complex64"),
        (torch.eye(2).to_sparse(), TypeError, "real tensor, got torch.float32 with layout torch.sparse_coo"),
        (torch.tensor([[1.0, torch.nan], [0.0, 0.0]]), ValueError, "cost holds NaN in 1 of 4 entries"),
        (torch.tensor([[1.0, -INF], [0.0, 0.0]]), ValueError, "cost holds -inf in 1 of 4 entries"),
        (torch.tensor([[1.0, INF], [2.0, INF]]), ValueError, r"no feasible assignment of shape \[2, 2\]"),
        (torch.tensor([[2**53 + 1, 0], [0, 0]]), ValueError, r"beyond 2\*\*53 .* got 9007199254740993"),
        (
            np.array([[2**63 + 3, 2**63 + 1], [2**63, 1]], np.uint64),
            ValueError,
            r"uint64 costs .* got 9223372036854775808",
        ),
        (np.array([[2**53 + 2, 1], [0, 2**52]], np.uint64), ValueError, r"uint64 costs .* got 9007199254740994"),
        (torch.tensor([[-(2**63), 0], [0, 0]]), ValueError, r"beyond 2\*\*53 .* got -9223372036854775808"),
    ],
)
def test_bad_input(cost: object, error: type[Exception], sentence: str) -> None:
    cost = torch.from_numpy(cost) if isinstance(cost, np.ndarray) else cost
    with pytest.raises(error, match=sentence):
        hungarian(cost)  # type: ignore[call-overload]
    with pytest.raises(error, match=sentence):
        hungarian(cost, return_duals=True)  # type: ignore[call-overload]


def test_a_word_is_no_bool() -> None:
    with pytest.raises(TypeError, match="maximize must be a bool, got str"):
        hungarian(torch.eye(2), "no")  # type: ignore[call-overload]


@pytest.mark.parametrize("place", [(0, 0), (1, 33), (1042, 1042), (2083, 2084), (2084, 2079), (2084, 2084)])
def test_nothing_that_is_not_finite_hides_in_long_rows(place: tuple[int, int]) -> None:
    cost = random_cost(1, 1, 2085, 2085)[0, 0].float()
    for value, sentence in ((torch.nan, "NaN"), (-INF, "-inf")):
        broken = cost.clone()
        broken[place] = value
        with pytest.raises(ValueError, match=f"cost holds {sentence} in 1 of {2085 * 2085} entries"):
            hungarian(broken)
    cost[place] = INF  # forbidden
    assert hungarian(cost)[place[0]] != place[1]


@pytest.mark.parametrize("rows", [3, 40, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_sentence_names_the_item(rows: int, dtype: torch.dtype) -> None:
    good = random_cost(2, 3, rows, rows).to(dtype)
    for value, sentence in ((torch.nan, "NaN"), (-INF, "-inf")):
        cost = good.clone()
        cost[1, 0, rows - 1, rows // 2] = value
        for _ in range(2):  # also where another entry is infinite
            with pytest.raises(
                ValueError, match=rf"cost of item \[1, 0\] holds {sentence} in 1 of {rows * rows} entries"
            ):
                hungarian(cost)
            cost[:, :, 0, 0] = INF
    cost = good.clone()
    cost[1, 2, :, 1:] = INF
    sentence = rf"no feasible assignment of item \[1, 2\] of shape \[{rows}, {rows}\]"
    with pytest.raises(ValueError, match=sentence):
        hungarian(cost)
    with pytest.raises(ValueError, match=sentence):
        hungarian(cost, return_duals=True)
    with pytest.raises(ValueError, match=sentence):
        hungarian(-cost, maximize=True)
    with pytest.raises(ValueError, match=r"cost of item \[1, 2\] holds \+inf"):
        hungarian(cost, maximize=True)


def test_duals_are_computed_on_the_cpu_only() -> None:
    with pytest.raises(ValueError, match="duals are computed on the CPU only, got a cost on meta"):
        hungarian(torch.empty(3, 3, device="meta"), return_duals=True)


def test_threads_at_once() -> None:
    costs = [random_cost(*((6, 50, 50) if s % 2 else (150, 150)), seed=s) for s in range(8)]
    expected = [hungarian(cost) for cost in costs]
    found: dict[int, torch.Tensor] = {}

    def solve(item: int) -> None:
        for _ in range(5):
            found[item] = hungarian(costs[item])

    threads = [threading.Thread(target=solve, args=(item,)) for item in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[item], expected[item]) for item in range(8))


# A forked child has none of its parent's OpenMP threads, and libgomp waits for them for ever: torch's own parallel
# operations hang there unless the child calls torch.set_num_threads(1), as DataLoader's workers do. Ours takes one.
FORK = """
import os, sys, torch
from pydiffaccel import linear_sum_assignment
from pydiffaccel.ops import hungarian
torch.set_num_threads(2)
cost = torch.rand(8, 60, 60, generator=torch.Generator().manual_seed(0))
expected, door = hungarian(cost), linear_sum_assignment(cost[0].numpy())[1]
child = os.fork()
if child == 0:
    same = torch.equal(hungarian(cost), expected)
    same = same and (linear_sum_assignment(cost[0].numpy())[1] == door).all()
    torch.set_num_threads(1)
    os._exit(0 if same and torch.equal(hungarian(cost.double()), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_a_fork_after_a_parallel_solve() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60
    )
    assert done.returncode == 0, done.stderr
