"""What a step is trained on: images, the noise that each gets, and pairing ahead of the step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.coupling import Coupling, CouplingDiagnostics, PendingNoise, diagnose, start_drawing
from pydiffaccel.noise import derive_seed, uniform
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.couplings import chooses_by_row
from pydiffaccel.trainer.data import TrainData
from pydiffaccel.trainer.loader import Loader
from pydiffaccel.trainer.metrics import Stopwatch
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.parallel import Ranks

__all__ = ["Batch", "Feed"]


@dataclass(frozen=True)
class Batch:
    """A rank's images of one accumulation part.

    Attributes:
        x: data ``[B, *]``, scaled.
        noise: like x, or one per term of a KL process; None where the loss draws it itself.
        place: ``{"seed", "step", "first_sample"}``: all other draws are a function of it. Sample j of the part over
            all ranks has the number ``part * train_batch_size + j``.
        indices: which images of the data these are, int64 ``[B]``.
        labels: the classes that the network is told, int64 ``[B]``; the number of classes where it is told none. None
            for an unconditional network.
        diagnostics: what the coupling did; None for plain noise.
    """

    x: Tensor
    noise: Tensor | None
    place: dict[str, Any]
    indices: NDArray[np.int64]
    labels: Tensor | None = None
    diagnostics: CouplingDiagnostics | None = None

    @property
    def condition(self) -> dict[str, Tensor]:
        """What the network gets beside x_t and its time."""
        return {} if self.labels is None else {"class_labels": self.labels}


@dataclass(frozen=True)
class _Ahead:
    """The noise of a later part that is being paired, and the coupling's state before that."""

    step: int
    part: int
    x: Tensor
    indices: NDArray[np.int64]
    noise: PendingNoise
    state: Callable[[], dict[str, Any]]


class Feed:
    """Batches as a function of (seed, step, part, rank); only a coupling that remembers something has a state.

    The rows of all ranks, in their order, are the batch of a single process.
    """

    def __init__(
        self,
        data: TrainData,
        coupling: Coupling,
        objective: Objective,
        options: TrainOptions,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self._data, self._coupling, self._objective = data, coupling, objective
        self._options, self._device = options, device
        self._mine = ranks.split(options.train_batch_size)
        # Such a coupling is found for the rows of all ranks on each of them, and each keeps its own.
        self._pairs_all = ranks.count > 1 and not chooses_by_row(coupling)
        self._loader = Loader(
            data,
            options.seed,
            options.train_batch_size,
            options.gradient_accumulation_steps,
            device,
            random_flip=options.random_flip,
            ahead=options.dataloader_num_workers != 0,
        )
        self._watch = Stopwatch(device)
        self._earlier_seconds = 0.0
        self._ahead: _Ahead | None = None

    @property
    def coupling_seconds(self) -> float:
        """Seconds spent on drawing and choosing noise, over all parts of an interrupted run."""
        return self._earlier_seconds + self._watch.seconds()

    def batch(self, step: int, part: int) -> Batch:
        """The batch of an accumulation part of a step; where asked for, what follows begins to be paired."""
        ahead, place = self._ahead, self._place(step, part)
        if ahead is not None and (ahead.step, ahead.part) == (step, part):
            x, indices, self._ahead = ahead.x, ahead.indices, None
            with self._watch.measure():
                noise = ahead.noise.result()
            milliseconds = ahead.noise.milliseconds
        else:
            self.forget_ahead()
            x, indices = self._images(step, part)
            if self._objective.draws_itself(step):
                return Batch(x, None, place, indices, self._told(indices, place))
            with self._watch.measure() as timer:
                noise = self._noise(x, indices, step, part)
            milliseconds = timer.milliseconds
        diagnostics = None
        if not self._coupling.is_plain(step):
            first = noise[:, 0] if noise.dim() > x.dim() else noise  # of the terms of KL diffusion
            diagnostics = diagnose(x, first, **place, milliseconds=milliseconds)
        if self._options.coupling_ahead:
            self._begin_next(step, part)
        return Batch(x, noise, place, indices, self._told(indices, place), diagnostics)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Which images of the data a step is trained on, all its parts in order."""
        return self._loader.indices(step)

    def forget_ahead(self) -> None:
        """Ends what was begun ahead of a step that does not come; the coupling is as it was before."""
        if self._ahead is not None:
            with contextlib.suppress(Exception):
                self._ahead.noise.result()
            self._coupling.load_state_dict(self._ahead.state())
            self._ahead = None

    def state(self) -> dict[str, Any]:
        """The coupling's state before the next step."""
        return self._ahead.state() if self._ahead is not None else self._coupling.state_dict()

    def load(self, state: dict[str, Any], coupling_seconds: float) -> None:
        """Puts back what ``state`` and ``coupling_seconds`` were."""
        self.forget_ahead()
        self._coupling.load_state_dict(state)
        self._earlier_seconds = coupling_seconds

    def _place(self, step: int, part: int, row: int | None = None) -> dict[str, Any]:
        """That of a row of the part; of this rank's first one by default."""
        row = self._mine[0] if row is None else row
        first = part * self._options.train_batch_size + row
        return {"seed": self._options.seed, "step": step, "first_sample": first}

    def _images(self, step: int, part: int, rows: tuple[int, int] | None = None) -> tuple[Tensor, NDArray[np.int64]]:
        """The images of (first row, number of rows) of the part, by default this rank's."""
        x, indices = self._loader.batch(step, part, *(self._mine if rows is None else rows))
        return self._coupling.scale_data(x), indices

    def _noise(self, x: Tensor, indices: NDArray[np.int64], step: int, part: int) -> Tensor:
        """The noise of this rank's images x, which are those of the indices."""
        if not self._pairs_all or self._coupling.is_plain(step):
            return self._objective.noise(x, self._place(step, part), self._labels(indices))
        everyone, all_indices = self._images(step, part, (0, self._options.train_batch_size))
        first, count = self._mine
        noise = self._objective.noise(everyone, self._place(step, part, 0), self._labels(all_indices))
        return noise[first : first + count]

    def _labels(self, indices: NDArray[np.int64]) -> Tensor | None:
        """The classes of images, int64 ``[B]``; None for an unconditional network."""
        if not self._options.class_conditional:
            return None
        assert self._data.labels is not None
        return torch.from_numpy(self._data.labels[indices]).to(self._device)

    def _told(self, indices: NDArray[np.int64], place: dict[str, Any]) -> Tensor | None:
        """The classes with some left out for guidance (2207.12598, algorithm 1): a function of the sample's place."""
        labels, dropout = self._labels(indices), self._options.conditioning_dropout_prob
        if labels is None or dropout == 0:
            return labels
        u = uniform(len(labels), **{**place, "seed": derive_seed(place["seed"], "conditioning dropout")})
        return labels.masked_fill((u < dropout).to(labels.device), len(self._data.classes))

    def _begin_next(self, step: int, part: int) -> None:
        """Begins to pair what follows a part of a step, unless that is plain noise or the end."""
        last = part + 1 == self._options.gradient_accumulation_steps
        step, part = (step + 1, 0) if last else (step, part + 1)
        if step == self._options.max_train_steps or self._coupling.is_plain(step):
            return
        (x, indices), state = self._images(step, part), self._coupling.snapshot()
        noise = start_drawing(lambda: self._noise(x, indices, step, part), [x])
        self._ahead = _Ahead(step, part, x, indices, noise, state)
