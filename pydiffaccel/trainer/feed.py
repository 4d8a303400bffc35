"""What a step is trained on: images, the noise that each gets, and pairing ahead of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.coupling import Coupling, CouplingDiagnostics, diagnose
from pydiffaccel.noise import derive_seed, uniform
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.couplings import chooses_by_row
from pydiffaccel.trainer.data import TrainData
from pydiffaccel.trainer.loader import Loader
from pydiffaccel.trainer.metrics import Stopwatch
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.parallel import Ranks
from pydiffaccel.trainer.windows import Images, Windows, interleaved

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
        parts = options.gradient_accumulation_steps
        self._windows = Windows(
            options.coupling_window,
            options.max_train_steps * parts,
            is_coupled=lambda position: not coupling.is_plain(position // parts),
            read=lambda position: self._images(*divmod(position, parts)),
            pair=self._pair,
            coupling=coupling,
            watch=self._watch,
            ahead=options.coupling_ahead,
        )

    @property
    def coupling_seconds(self) -> float:
        """Seconds spent on drawing and choosing noise, over all parts of an interrupted run."""
        return self._earlier_seconds + self._watch.seconds()

    def batch(self, step: int, part: int) -> Batch:
        """The batch of an accumulation part of a step; what follows is prepared."""
        place = self._place(step, part, self._mine[0])
        fed = self._windows.part(step * self._options.gradient_accumulation_steps + part)
        skipped = self._mine[0] - self._rows(step)[0]
        mine = slice(skipped, skipped + self._mine[1])
        x, indices = fed.images.x[mine], fed.images.indices[mine]
        told = self._told(indices, place)
        if fed.noise is None:
            if self._objective.draws_itself(step):
                return Batch(x, None, place, indices, told)
            with self._watch.measure():
                noise = self._objective.noise(x, place, self._labels(indices))
            return Batch(x, noise, place, indices, told)
        noise = fed.noise[mine]
        shown = noise[:, 0] if noise.dim() > x.dim() else noise  # of the terms of KL diffusion
        diagnostics = diagnose(x, shown, **place, milliseconds=fed.milliseconds)
        return Batch(x, noise, place, indices, told, diagnostics)

    def indices(self, step: int) -> NDArray[np.int64]:
        """Which images of the data a step is trained on, all its parts in order."""
        return self._loader.indices(step)

    def forget_ahead(self) -> None:
        """Ends what was begun ahead of a step that does not come; the coupling is as it was before."""
        self._windows.forget()

    def state(self) -> dict[str, Any]:
        """The coupling's state before the next step."""
        return self._windows.state()

    def load(self, state: dict[str, Any], coupling_seconds: float) -> None:
        """Puts back what ``state`` and ``coupling_seconds`` were."""
        self.forget_ahead()
        self._coupling.load_state_dict(state)
        self._earlier_seconds = coupling_seconds

    def _place(self, step: int, part: int, row: int) -> dict[str, Any]:
        """That of a row of the part."""
        first = part * self._options.train_batch_size + row
        return {"seed": self._options.seed, "step": step, "first_sample": first}

    def _rows(self, step: int) -> tuple[int, int]:
        """Which rows of a part this rank reads: the first one and their number."""
        whole = self._pairs_all and not self._coupling.is_plain(step)
        return (0, self._options.train_batch_size) if whole else self._mine

    def _images(self, step: int, part: int) -> Images:
        x, indices = self._loader.batch(step, part, *self._rows(step))
        return Images(self._coupling.scale_data(x), indices)

    def _pair(self, positions: Sequence[int], images: Sequence[Images]) -> Tensor:
        """The noise of the parts at these positions, as of one batch that is drawn at the place of the first.

        Its rows have numbers of their own: a window that begins later in the same step begins after as many parts.
        """
        step, part = divmod(positions[0], self._options.gradient_accumulation_steps)
        x = interleaved([part.x for part in images])
        labels = self._labels(np.stack([part.indices for part in images], 1).reshape(-1))
        return self._objective.noise(x, self._place(step, part, len(images) * self._rows(step)[0]), labels)

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
