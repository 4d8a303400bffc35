"""Averaged weights: torch's AveragedModel with a decay that rises in the first steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from pydiffaccel.trainer.config import TrainOptions

__all__ = ["halflife_name", "make_ema", "make_emas"]


def halflife_name(images: int) -> str:
    """The name of an average that forgets half in so many images, in checkpoints and as part of its file's name."""
    return f"ema_{images}"


def make_emas(network: nn.Module, options: TrainOptions) -> dict[str, AveragedModel]:
    """The averages of network's weights that the options ask for, by name; the first one is the run's."""
    if not options.use_ema:
        return {}
    if not options.ema_halflife_images:
        return {"ema": make_ema(network, options.ema_decay)}
    return {
        halflife_name(images): make_ema(network, 0.5 ** (options.images_per_step / images))
        for images in options.ema_halflife_images
    }


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
        # The first call, of count 0, only copies. `count` is the buffer on the weights' device, where it would be
        # waited for; the buffer itself is on the host.
        n = int(average.n_averaged)
        torch._foreach_lerp_(list(averaged), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    average = AveragedModel(network, multi_avg_fn=update)
    return average
