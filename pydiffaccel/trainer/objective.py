"""The training loss of a run: which times and noises a batch gets, and what of it is to go through backward."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.coupling import Coupling
from pydiffaccel.densities import TimeDistribution
from pydiffaccel.forward import KLProcess, Process
from pydiffaccel.losses import (
    KLObjective,
    LossWeighting,
    Model,
    coupled_noises,
    diffusion_loss,
    kl_loss_parts,
)
from pydiffaccel.losses.kl import samples_per_part

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """Everything is a function of a place: ``{"seed", "step", "first_sample"}`` of a batch.

    Attributes:
        process: the forward process and what is predicted.
        coupling: which noise each image gets.
        curriculum: distribution of the training times; None is the process' own.
        weighting: weight of the loss at each time; None is 1. It multiplies the curriculum's weights.
        kl: the loss under a KL process.
        path_times: S, the times of each image under its mode "path".
        microbatch: the most network evaluations at once under a KL process; None is all.
    """

    process: Process
    coupling: Coupling
    curriculum: TimeDistribution | None
    weighting: LossWeighting | None
    kl: KLObjective
    path_times: int
    microbatch: int | None

    def draws_itself(self, step: int) -> bool:
        """Whether the loss draws the noise of this step, so that ``noise`` need not."""
        return isinstance(self.process, KLProcess) and self.coupling.is_plain(step)

    def noise(self, x: Tensor, place: dict[str, Any], labels: Tensor | None = None) -> Tensor:
        """The noise of data x ``[B, *]`` of classes labels: like x, or one per term of a KL process, ``[B, M, *]``."""
        if isinstance(self.process, KLProcess) and self.kl.mode != "schedule":
            return coupled_noises(self.coupling, x, self.process.num_terms, **place, labels=labels)
        return self.coupling(x, **place, labels=labels)

    def times(self, n: int, place: dict[str, Any], device: torch.device) -> Tensor:
        """Training times ``[n]``; under mode "path" ``[n, S]``."""
        count = self.path_times if self._on_paths else 1
        many = {**place, "first_sample": place["first_sample"] * count}
        if self.curriculum is None:
            t = self.process.sample_timesteps(n * count, **many, device=device)
        else:
            t = self.curriculum.sample(many.pop("step"), n * count, **many, device=device)
        return t.view(n, count) if self._on_paths else t

    def num_losses(self, n: int) -> int:
        """How many parts ``losses`` has for n images."""
        if self.microbatch is None or not isinstance(self.process, KLProcess):
            return 1
        each = samples_per_part(self.microbatch, self.kl.evaluations(self.process.num_terms, self.path_times))
        return math.ceil(n / each)

    def losses(
        self,
        model: Model,
        x: Tensor,
        noise: Tensor | None,
        place: dict[str, Any],
        condition: Mapping[str, Any] | None = None,
    ) -> Iterator[Tensor]:
        """Parts of the loss, whose sum it is: call backward on each before asking for the next.

        Args:
            model: the network.
            x: data ``[B, *]``.
            noise: what ``noise`` gave; None where the loss draws it itself.
            place: of the batch.
            condition: further keyword arguments of the network, with a row per sample.
        """
        t = self.times(len(x), place, x.device)
        weight = self._weight(t, place["step"])
        if isinstance(self.process, KLProcess):
            return kl_loss_parts(
                model,
                x,
                t,
                process=self.process,
                noise=noise,
                weight=weight,
                condition=condition,
                microbatch=self.microbatch,
                **asdict(self.kl),
                **place,
            )
        assert noise is not None
        return iter(
            [diffusion_loss(model, x, t, process=self.process, noise=noise, weight=weight, condition=condition)]
        )

    @property
    def _on_paths(self) -> bool:
        return isinstance(self.process, KLProcess) and self.kl.mode == "path"

    def _weight(self, t: Tensor, step: int) -> Tensor | None:
        """The product of all weights at times t."""
        weights = []
        if self.curriculum is not None and self.curriculum.importance:
            weights.append(self.curriculum.weights(step, t))
        if self.weighting is not None:
            weights.append(self.weighting(t))
        if not weights:
            return None
        return weights[0] if len(weights) == 1 else weights[0] * weights[1]
