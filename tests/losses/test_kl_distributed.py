"""DistributedDataParallel on two processes has the gradient of one process on the whole batch."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pydiffaccel import KLProcess, kl_loss_parts
from tests.losses.networks import SCHEDULE, Network, batch

TIMEOUT = 60
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


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=TIMEOUT)
    )
    network = DistributedDataParallel(Network())
    found = {
        (name, micro): gradient(network, settings, rank, RANKS, TERMS if micro else None)
        for name, settings in SETTINGS.items()
        for micro in ((False, True) if name == "component" else (False,))
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, bool], Tensor]]:
    """The gradients that each process has."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    folder: Path = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_rank, args=(rank, str(folder))) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(3 * TIMEOUT)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive
    assert [process.exitcode for process in processes] == [0] * RANKS
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("micro", [False, True])
def test_ranks_have_the_gradient_of_the_whole_batch(ranks: list[Any], name: str, micro: bool) -> None:
    if micro and name != "component":
        pytest.skip("one mode is enough for micro-batches under no_sync")
    whole = gradient(Network(), SETTINGS[name], 0, 1, None)
    for found in ranks:
        assert torch.allclose(found[name, micro], whole, rtol=1e-5, atol=1e-7)
