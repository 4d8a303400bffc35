"""Averaged weights: torch's AveragedModel with a decay that rises in the first steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["make_ema"]


def make_ema(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential average of network's weights; call ``update_parameters(network)`` after each optimizer step.

    Update n (from 1) weighs the average so far with min(decay, (1 + n) / (10 + n)), so that early weights fade and a
    short run is not dominated by its initialisation. With decay 0 the average is the network itself, bit for bit.

    Raises:
        ValueError: decay is not in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}")

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        # The first call, of count 0, only copies; torch passes the number of updates so far.
        n = int(count)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, multi_avg_fn=update)
