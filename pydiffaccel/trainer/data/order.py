"""The order in which samples are visited."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pydiffaccel.noise import derive_seed, permutation

__all__ = ["BatchOrder"]


class BatchOrder:
    """Which images each step sees: position p of the stream is entry p mod N of epoch p // N's permutation."""

    def __init__(self, num_images: int, seed: int) -> None:
        self._n = num_images
        self._seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            order = permutation(self._n, derive_seed(self._seed, f"epoch {epoch}"))
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1} | {epoch: order}
        return self._epochs[epoch]

    def indices(self, first: int, n: int) -> NDArray[np.int64]:
        """Image indices int64 ``[n]`` at positions first .. first + n - 1 of the stream."""
        out = np.empty(n, np.int64)
        done = 0
        while done < n:
            epoch, offset = divmod(first + done, self._n)
            take = min(n - done, self._n - offset)
            out[done : done + take] = self._permutation(epoch)[offset : offset + take]
            done += take
        return out
