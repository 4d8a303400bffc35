"""DistributedDataParallel on two processes has the gradient of one process on the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pydiffaccel import KLProcess, kl_loss_parts
from tests.losses.networks import SCHEDULE, Network, batch
from tests.ranks import join_group, leave_group, run_ranks

RANKS, ROWS, TERMS, TIMES = 2, 5, 3, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "component": {},
    "antithetic": {"draws": "antithetic"},
    "orthogonal": {"draws": "orthogonal"},
    "partial": {"partial": 2},
    "schedule": {"mode": "schedule"},
    "recombined": {"mode": "recombined"},
    "path": {"mode": "path"},
}
# One mode is enough for micro-batches, which need no_sync.
CASES = [*((name, False) for name in SETTINGS), ("component", True)]


def gradient(
    network: torch.nn.Module, settings: dict[str, Any], rank: int, ranks: int, microbatch: int | None
) -> Tensor:
    """That of a rank's rows of the batch, after whatever the network does between ranks."""
    process, rows = KLProcess(SCHEDULE, TERMS), RANKS * ROWS // ranks
    first = rank * rows
    x0 = batch(RANKS * ROWS, 4)[first : first + rows]
    path = settings.get("mode") == "path"
    count = TIMES if path else 1
    t = process.sample_timesteps(rows * count, seed=1, step=2, first_sample=first * count)
    place = {"seed": 1, "step": 2, "first_sample": first}
    losses = kl_loss_parts(
        network, x0, t.view(rows, count) if path else t, process=process, microbatch=microbatch, **settings, **place
    )
    network.zero_grad()
    for _ in range(0 if microbatch is None else rows - 1):
        with network.no_sync():
            next(losses).backward()
    next(losses).backward()
    assert next(losses, None) is None
    (parameter,) = network.parameters()
    assert parameter.grad is not None
    return parameter.grad.clone()


def one_rank(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    join_group(rank, count, folder)
    network = DistributedDataParallel(Network())
    found = {
        (name, micro): gradient(network, SETTINGS[name], rank, RANKS, TERMS if micro else None) for name, micro in CASES
    }
    leave_group(rank, folder, found)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, bool], Tensor]]:
    """The gradients that each process has."""
    return run_ranks(one_rank, RANKS, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize(("name", "micro"), CASES)
def test_ranks_have_the_gradient_of_the_whole_batch(ranks: list[Any], name: str, micro: bool) -> None:
    whole = gradient(Network(), SETTINGS[name], 0, 1, None)
    for found in ranks:
        assert torch.allclose(found[name, micro], whole, rtol=1e-5, atol=1e-7)
