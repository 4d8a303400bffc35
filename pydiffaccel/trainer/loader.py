"""Batches of the data, read ahead of the step that needs them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.noise import derive_seed, uniform
from pydiffaccel.trainer.data import BatchOrder, TrainData

__all__ = ["Loader"]


class Loader:
    """Rows of the batch of each (step, part), as a function of the seed; what was read ahead changes no number.

    Args:
        data: what the rows are of.
        seed: of the order and of the flips.
        batch_size: rows of a part.
        parts: accumulation parts of a step.
        device: where batches are wanted.
        random_flip: every sample is mirrored (its last dimension) with probability 1/2.
        ahead: while a step runs, a thread reads the same rows of the next part. Arrays in memory are not read ahead:
            there is nothing to wait for.
    """

    def __init__(
        self,
        data: TrainData,
        seed: int,
        batch_size: int,
        parts: int,
        device: torch.device,
        *,
        random_flip: bool = False,
        ahead: bool = True,
    ) -> None:
        self._data, self._seed, self._batch_size, self._parts = data, seed, batch_size, parts
        self._device, self._random_flip = device, random_flip
        self._order = BatchOrder(len(data), seed)
        self._thread = ThreadPoolExecutor(1, "loader") if ahead and not data.in_memory else None
        # By the rows that are asked for: the next part and what is read of it.
        self._next: dict[tuple[int, int], tuple[int, Future[Tensor]]] = {}

    def batch(self, step: int, part: int, first: int = 0, count: int | None = None) -> tuple[Tensor, NDArray[np.int64]]:
        """Rows first .. first + count - 1 of a part, by default all: float32 ``[count, *]``, and their samples.

        Raises:
            DataError: an image cannot be read.
        """
        rows = (first, self._batch_size if count is None else count)
        position = step * self._parts + part
        indices = self._indices(position, rows)
        expected, future = self._next.pop(rows, (None, None))
        stored = future.result() if future is not None and expected == position else self._read(indices)
        if self._thread is not None:
            following = self._indices(position + 1, rows)
            self._next[rows] = (position + 1, self._thread.submit(self._read, following))
        x = self._data.scaled(stored.to(self._device, non_blocking=True))
        return (self._flipped(x, step, part * self._batch_size + first) if self._random_flip else x), indices

    def indices(self, step: int) -> NDArray[np.int64]:
        """Which samples of the data a step is trained on, all its parts in order."""
        return self._indices(step * self._parts, (0, self._parts * self._batch_size))

    def _indices(self, position: int, rows: tuple[int, int]) -> NDArray[np.int64]:
        return self._order.indices(position * self._batch_size + rows[0], rows[1])

    def _read(self, indices: NDArray[np.int64]) -> Tensor:
        stored = self._data.stored(indices)
        if self._thread is None or self._device.type != "cuda":
            return stored
        with torch.cuda.device(self._device):  # a thread begins on the first GPU
            return stored.pin_memory()

    def _flipped(self, x: Tensor, step: int, first_sample: int) -> Tensor:
        u = uniform(len(x), seed=derive_seed(self._seed, "flips"), step=step, first_sample=first_sample)
        chosen = (u < 0.5).to(x.device).view(-1, *[1] * (x.dim() - 1))
        return torch.where(chosen, x.flip(-1), x)
