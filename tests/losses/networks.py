"""Data and networks that the tests of losses share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pydiffaccel.forward import KLProcess
from pydiffaccel.schedule import ContinuousVPSchedule, VPSchedule

SCHEDULE = VPSchedule.linear(40, 1e-3, 0.2)
CONTINUOUS = ContinuousVPSchedule.linear()
TYPES = ["epsilon", "sample", "v_prediction"]
# What a KL process can be: basis and renormalise, on a chain and on continuous time.
KINDS = [
    (schedule, basis, renormalise)
    for schedule in (SCHEDULE, CONTINUOUS)
    for basis in ("kl", "haar")
    for renormalise in (True, False)
]
KIND_NAMES = [f"{s.name}-{basis}-{'renormalised' if r else 'truncated'}" for s, basis, r in KINDS]
Kind = tuple[VPSchedule | ContinuousVPSchedule, str, bool]


def process_of(kind: Kind, terms: int, prediction_type: str = "epsilon") -> KLProcess:
    schedule, basis, renormalise = kind
    return KLProcess(schedule, terms, basis, prediction_type, renormalise=renormalise)


class Network(torch.nn.Module):
    """A small network that uses both of its inputs and is the same for every sample of a batch."""

    def __init__(self, size: int = 4, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(size, size, generator=generator))
        self.calls: list[torch.Size] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert time.dtype == torch.float32
        assert time.shape == x.shape[:1]
        self.calls.append(x.shape)
        return torch.tanh(x @ self.weight.to(x) + 0.1 * time.to(x).view(-1, *(1,) * (x.dim() - 1)))


def batch(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def step_of(loss: Callable[[Network], Tensor], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The loss of a new network, and its gradient."""
    network = Network().to(dtype)
    value = loss(network)
    value.backward()
    assert network.weight.grad is not None
    return value.detach(), network.weight.grad
