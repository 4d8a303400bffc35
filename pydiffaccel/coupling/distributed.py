"""The assignment over the batches of all ranks, without sending noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling._assignment import as_rows, solve, split_invariant_cost
from pydiffaccel.coupling.base import Coupling, Wrapper
from pydiffaccel.coupling.hungarian import Hungarian, pool_seed
from pydiffaccel.coupling.independent import Independent
from pydiffaccel.coupling.knn import KNN
from pydiffaccel.noise import gaussian_noise

__all__ = ["Distributed"]

# Noise elements that a rank holds at once while it builds its rows of the cost.
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Distributed(Wrapper):
    """``Hungarian`` over the batches of all ranks together.

    The noise of a global row is a function of (seed, step, row), so none is sent. Each rank computes its rows of the
    cost against the noises of all rows, regenerated block by block; the rows of the cost (and the labels) are gathered,
    ``[B, P]`` numbers for B rows of all ranks; every rank solves the same problem and regenerates the noises that its
    rows were given. Batch sizes may differ between ranks, also be 0.

    The cost is computed in a way that does not depend on the split: data and noise are rounded to some 20 bits (at
    D = 3072 to 2^-20 of the largest element of a row and to 2^-18) so that float64 adds up all products exactly, in
    whatever order a matrix product takes. So any number of ranks gives the same noises as one process on the
    concatenated batch, bit for bit. ``Hungarian`` alone multiplies in float32, where the order does change last bits;
    it gives the same noises unless two assignments are that nearly equal.

    ``Independent`` and ``KNN`` choose row by row: they are passed through and nothing is exchanged. ``pair`` is the
    inner coupling's on the rank's own rows: noise that the caller drew is not sent either.

    Every rank calls with the same seed and step, and with first_sample the sum of the batch sizes of the ranks before
    it (plus what the batch starts at). Calls of one group must come in the same order on all ranks: for pairing beside
    other collectives (``start``) use a group of its own. A call waits for the GPU: batch sizes are exchanged first.
    What does not fit together is refused by all ranks with one sentence; an argument that a rank refuses by itself, as
    labels of the wrong length, leaves the others waiting for the group's timeout.

    Args:
        coupling: ``Hungarian``, or one that chooses row by row. ``Scaled`` and ``WarmUp`` go around it.
        group: the process group; None is the default one, or a single process where there is none. It is not part
            of the description.

    Raises:
        TypeError: coupling is of another kind.
        ValueError: the coupling is ``KNN(center="mean")``, whose mean would be each rank's own, or ``Hungarian`` with a
            projection.
    """

    name: ClassVar[str] = "distributed"

    coupling: Coupling
    group: dist.ProcessGroup | None = field(default=None, repr=False, metadata={"described": False})

    def __post_init__(self) -> None:
        if not isinstance(self.coupling, (Hungarian, Independent, KNN)):
            raise TypeError(
                f"Distributed takes Hungarian, Independent or KNN, got {type(self.coupling).__name__}; "
                f"Scaled and WarmUp go around it"
            )
        if isinstance(self.coupling, Hungarian) and self.coupling.project is not None:
            raise ValueError(f"Distributed searches in the full space, got project={self.coupling.project}")
        if isinstance(self.coupling, KNN) and isinstance(self.coupling.center, str):
            raise ValueError("KNN(center='mean') would take each rank's own mean; give the mean of the data as center")

    @property
    def inner(self) -> Coupling:
        """The coupling of the whole batch."""
        return self.coupling

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if not isinstance(self.coupling, Hungarian):
            return self.coupling._draw(x, seed, step, first_sample, labels, mask)
        ranks = _Ranks(self.group, x)
        within = labels is not None and self.coupling.labels == "within"
        batch = _agree(ranks, x, seed, step, first_sample, within, mask is not None)
        pool = self.coupling.pool_size(batch.rows)
        if batch.rows == 0:
            return gaussian_noise(x, seed, step, first_sample)
        source = _Source(x, seed, step, batch.first, batch.rows, pool)
        norms = pool > batch.rows or batch.masked
        real = None if mask is None else as_rows(mask)
        data = as_rows(x.detach())
        cost = x.new_empty(len(x), pool, dtype=compute_dtype(x))
        width = max(1, _BLOCK_ELEMENTS // max(1, math.prod(x.shape[1:])))
        for start in range(0, pool, width):
            stop = min(pool, start + width)
            cost[:, start:stop] = split_invariant_cost(data, as_rows(source.block(start, stop)), real, norms)
        cost = ranks.gather_rows(cost, batch.sizes)
        all_labels = ranks.gather_rows(labels.long(), batch.sizes) if within and labels is not None else None
        chosen = solve(cost, all_labels)
        before = sum(batch.sizes[: ranks.rank])
        return source.rows(chosen[before : before + len(x)])

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "distributed", "coupling": {...}}``."""
        return {"name": self.name, "coupling": self.coupling.to_dict()}


class _Ranks:
    """The processes of a group, or this one alone."""

    def __init__(self, group: dist.ProcessGroup | None, x: Tensor) -> None:
        self._group = group
        together = dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size(group) if together else 1
        self.rank = dist.get_rank(group) if together else 0
        if self.rank < 0:
            raise ValueError("this process is no member of the group that Distributed was given")
        self._home = x.device
        # gloo gathers in host memory.
        self._device = torch.device("cpu") if together and dist.get_backend(group) == "gloo" else x.device

    def gather_numbers(self, numbers: Sequence[int]) -> list[list[int]]:
        """The numbers of each rank, on the host."""
        if self.count == 1:
            return [list(numbers)]
        own = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        everyone = own.new_empty(self.count, len(numbers))
        dist.all_gather(list(everyone.unbind()), own, group=self._group)
        return [[int(value) for value in row] for row in everyone.tolist()]

    def gather_rows(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows ``[sizes[rank], *]`` of all ranks in their order."""
        if self.count == 1:
            return own
        longest = max(sizes)
        padded = own.new_zeros(longest, *own.shape[1:], device=self._device)
        padded[: len(own)] = own
        everyone = padded.new_empty(self.count, *padded.shape)
        dist.all_gather(list(everyone.unbind()), padded, group=self._group)
        if min(sizes) == longest:
            return everyone.flatten(0, 1).to(self._home)
        parts = [part[:size] for part, size in zip(everyone, sizes, strict=True)]
        return torch.cat(parts).to(self._home)


@dataclass(frozen=True)
class _Batch:
    """The batch of all ranks: rows of each, index of the first row, and whether any has a mask."""

    sizes: tuple[int, ...]
    first: int
    masked: bool

    @property
    def rows(self) -> int:
        return sum(self.sizes)


def _agree(ranks: _Ranks, x: Tensor, seed: int, step: int, first_sample: int, within: bool, masked: bool) -> _Batch:
    """What all ranks are about to do; where they do not fit together every one of them raises the same sentence."""
    gaussian_noise(x[:0], seed, step, first_sample)  # refuses numbers out of range
    shared = {
        "seed": seed,
        "step": step,
        "elements of a sample": math.prod(x.shape[1:]),
        "bytes of an element": x.element_size(),
        "labels given (1) or not (0)": int(within),
    }
    everyone = ranks.gather_numbers([len(x), first_sample, int(masked), *shared.values()])
    for column, what in enumerate(shared, start=3):
        values = [row[column] for row in everyone]
        if len(set(values)) > 1:
            raise ValueError(f"all ranks must pair with the same {what}, got {values}")
    expected = everyone[0][1]
    for rank, (size, first, *_) in enumerate(everyone):
        if first != expected:
            raise ValueError(
                f"first_sample of a rank must follow the rows of the rank before: rank {rank} must have "
                f"first_sample={expected}, got {first}"
            )
        expected += size
    return _Batch(tuple(row[0] for row in everyone), everyone[0][1], any(row[2] for row in everyone))


class _Source:
    """The noises 0 .. pool - 1 of a batch, made when they are asked for, as ``Hungarian`` draws them."""

    def __init__(self, x: Tensor, seed: int, step: int, first: int, batch: int, pool: int) -> None:
        self._like = x.detach().new_empty((1,) * x.dim()).expand(1, *x.shape[1:])
        self._seed, self._step, self._first = seed, step, first
        self._batch, self._pool = batch, pool

    def block(self, start: int, stop: int) -> Tensor:
        """Noises start .. stop - 1, ``[stop - start, *]``."""
        parts = []
        while start < stop:
            number, row = divmod(start, self._batch)
            count = min(stop - start, self._batch - row)
            like = self._like.expand(count, *self._like.shape[1:])
            parts.append(gaussian_noise(like, pool_seed(self._seed, number), self._step, self._first + row))
            start += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows(self, chosen: Tensor) -> Tensor:
        """The noises with the indices chosen, ``[len(chosen), *]``."""
        if chosen.device.type == "cpu":
            return torch.cat([self._like[:0], *(self.block(index, index + 1) for index in chosen.tolist())])
        # On a GPU all are made once more, in blocks, which is cheaper than to wait for the indices.
        out = self._like.new_empty(len(chosen), *self._like.shape[1:])
        width = max(1, _BLOCK_ELEMENTS // max(1, self._like.numel()))
        for start in range(0, self._pool, width):
            stop = min(self._pool, start + width)
            inside = ((chosen >= start) & (chosen < stop)).view(-1, *(1,) * (out.dim() - 1))
            block = self.block(start, stop).index_select(0, (chosen - start).clamp(0, stop - start - 1))
            out = torch.where(inside, block, out)
        return out
