"""``hungarian`` on a GPU: a warp, a block or the whole grid per problem, by size and number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment as scipy_assignment

from pydiffaccel.ops import hungarian, reference
from tests.ops.test_common import needs_cuda
from tests.ops.test_hungarian import families
from tests.ops.test_hungarian_status import mixed

pytestmark = [pytest.mark.cuda, needs_cuda]

# One warp, one block (shared memory for all, for some), the grid; several problems of each.
SHAPES = {
    "warp": (7, 30, 30),
    "block": (208, 60, 60),
    "block-300": (4, 300, 300),
    "block-large": (5, 600, 600),
    "block-wide": (3, 50, 400),
    "block-tall": (3, 400, 50),
    "grid": (1, 700, 700),
    "grid-wide": (1, 100, 1300),
    "grid-tall": (1, 1300, 100),
    "grid-twice": (2, 1030, 1030),
}


def random_cost(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def assert_optimal(cost: torch.Tensor, columns: torch.Tensor, maximize: bool = False) -> None:
    matrix, chosen = cost.double().cpu().numpy(), columns.cpu().numpy()
    rows = np.flatnonzero(chosen >= 0)
    assert len(rows) == len(set(chosen[rows].tolist())) == min(matrix.shape)
    best = matrix[scipy_assignment(matrix, maximize)].sum()
    assert matrix[rows, chosen[rows]].sum() == pytest.approx(best, rel=1e-12, abs=0 if best else 1e-300)


@pytest.mark.parametrize("rows", [5, 32, 33, 97, 130, 300, 530, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_families(rows: int, dtype: torch.dtype) -> None:
    for name, array in families(rows).items():
        cost = torch.from_numpy(array).clamp(-1e37, 1e37).to(dtype)
        for maximize in (False, True) if rows <= 130 else (False,):
            columns, status = hungarian(cost.cuda(), maximize, return_status=True)
            assert int(status) == 0, name
            assert_optimal(cost, columns, maximize)


@pytest.mark.parametrize("name", SHAPES)
def test_batches_and_rectangles(name: str) -> None:
    cost = random_cost(SHAPES[name])
    cost[0] = (10 * cost[0]).floor()  # ties
    columns = hungarian(cost.cuda())
    for item, chosen in zip(cost, columns, strict=True):
        assert_optimal(item, chosen)


@pytest.mark.parametrize("rows", [2048, 4096])
def test_large_against_the_cpu(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 64, generator=generator)
    for cost in (-x @ torch.randn(64, rows, generator=generator), torch.rand(rows, rows, generator=generator)):
        index = torch.arange(rows)
        columns = hungarian(cost.cuda()).cpu()
        assert columns.unique().numel() == rows
        expected = float(cost.double()[index, hungarian(cost)].sum())
        assert float(cost.double()[index, columns].sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.uint8])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for rows in (20, 200, 600):
        cost = (200 * random_cost((rows, rows))).to(dtype)
        assert_optimal(cost, hungarian(cost.cuda()))


def test_constant_cost_gives_the_identity() -> None:
    for rows in (20, 200, 600):
        assert hungarian(torch.full((rows, rows), 0.1, device="cuda")).tolist() == list(range(rows))


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (64, 64), (64, 100), (100, 64), (600, 600), (300, 600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_status(shape: tuple[int, int], dtype: torch.dtype) -> None:
    cost = mixed(*shape).to(dtype)
    columns, status = hungarian(cost.cuda(), return_status=True)
    assert torch.equal(status.cpu(), reference.hungarian_with_status(cost)[1])
    assert bool((columns[status != 0] == -1).all())
    for item, chosen in zip(cost[status.cpu() == 0], columns[status == 0], strict=True):
        assert_optimal(item, chosen)
    for item in cost.flatten(0, 1):  # alone, a large one takes the grid
        _, single = hungarian(item.cuda(), return_status=True)
        assert int(single) == int(reference.hungarian_with_status(item)[1])


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_forbidden_pairs(share: float) -> None:
    for rows in (20, 80, 600):
        cost = random_cost((rows, rows))
        cost[random_cost((rows, rows), 1) < share] = torch.inf
        columns, status = hungarian(cost.cuda(), return_status=True)
        assert torch.equal(status.cpu(), reference.hungarian_with_status(cost)[1])
        if int(status) == 0:
            assert_optimal(cost, columns)


@pytest.mark.parametrize("scale", [1e300, 1e-300, 1e307])
def test_extreme_scales(scale: float) -> None:
    for rows in (20, 120, 600):
        cost = random_cost((rows, rows)).double() * scale
        assert_optimal(cost, hungarian(cost.cuda()))


@pytest.mark.parametrize("name", SHAPES)
def test_no_synchronisation(name: str) -> None:
    cost = random_cost(SHAPES[name]).cuda()
    hungarian(cost)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        hungarian(cost, return_status=True)
        hungarian(-cost, maximize=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", SHAPES)
def test_a_graph_replays_on_other_costs(name: str) -> None:
    costs = [random_cost(SHAPES[name], seed).cuda() for seed in range(3)]
    costs[1][0, :, 1:] = torch.inf  # infeasible
    expected = [hungarian(cost, return_status=True) for cost in costs]
    static = costs[0].clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        columns, status = hungarian(static, return_status=True)
    for cost, (wanted, found) in zip(costs, expected, strict=True):
        static.copy_(cost)
        graph.replay()
        assert torch.equal(columns, wanted)
        assert torch.equal(status, found)


@pytest.mark.parametrize("name", SHAPES)
def test_every_run_gives_the_same_answer(name: str) -> None:
    cost = (100 * random_cost(SHAPES[name])).floor().cuda()  # ties: many optima
    expected = hungarian(cost)
    for _ in range(5):
        assert torch.equal(hungarian(cost), expected)
    streams = [torch.cuda.Stream() for _ in range(3)]
    answers = []
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            answers.append(hungarian(cost))
    torch.cuda.synchronize()
    assert all(torch.equal(answer, expected) for answer in answers)


@pytest.mark.parametrize("rows", [20, 100, 400])
def test_batch_items_are_independent(rows: int) -> None:
    cost = random_cost((4, rows, rows)).cuda()
    assert torch.equal(hungarian(cost), torch.stack([hungarian(item) for item in cost]))


def test_the_current_device_s_memory_is_given_back() -> None:
    cost = random_cost((1024, 1024)).cuda()
    hungarian(cost)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    columns = hungarian(cost)
    assert torch.cuda.memory_allocated() - before == columns.numel() * columns.element_size()
