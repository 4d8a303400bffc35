"""Adam by hand, and a small problem, for the tests of momentum decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

KINDS = [torch.optim.Adam, torch.optim.AdamW]
IMPLEMENTATIONS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
LR, B0, B2, EPS = 0.02, 0.9, 0.99, 1e-8


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


def gradient(step: int, p: Tensor) -> Tensor:
    """Of a quadratic with noise, so that the moments matter."""
    noise = torch.randn(3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return p.detach() * torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64) + noise


def build(kind: type[torch.optim.Optimizer] = torch.optim.Adam, p: Tensor | None = None, **options: Any):
    p = parameter() if p is None else p
    return p, kind([p], **({"lr": LR, "betas": (B0, B2), "eps": EPS} | options))


def train(p: Tensor, optimizer: torch.optim.Optimizer, schedulers: list[LRScheduler], steps: range) -> Tensor:
    for step in steps:
        p.grad = gradient(step, p)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return p.detach().clone()


def reference(
    steps: int, lr: Callable[[int], float], beta1: Callable[[int], float], weight_decay: float, decoupled: bool
) -> Tensor:
    """Adam (1412.6980) with a beta_1 of its own at every step: the first moment is a weighted sum of gradients whose
    weights add up to 1 - prod_j beta_1(j), and is divided by that."""
    p = parameter().detach()
    m, v, product = torch.zeros_like(p), torch.zeros_like(p), 1.0
    for step in range(steps):
        g = gradient(step, p)
        if decoupled:
            p = p - lr(step) * weight_decay * p
        else:
            g = g + weight_decay * p
        b1 = beta1(step)
        product *= b1
        m = b1 * m + (1 - b1) * g
        v = B2 * v + (1 - B2) * g**2
        p = p - lr(step) * (m / (1 - product)) / ((v / (1 - B2 ** (step + 1))).sqrt() + EPS)
    return p


def tau(step: int, total: int, warmup: int = 0) -> float:
    return min(1.0, max(0.0, (step - warmup) / (total - warmup)))


def beta1_at(t: float) -> float:
    return B0 * (1 - t) / (1 - B0 * t)


def ramp(step: int) -> float:
    return min(1.0, (step + 1) / 8)
