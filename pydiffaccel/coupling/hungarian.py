"""The batch's noises, assigned to its samples at the least total distance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel.coupling._assignment import as_rows, assignment_cost, class_blocks
from pydiffaccel.coupling._checks import check_count, check_noise, checked, checked_labels
from pydiffaccel.coupling._projection import PROJECTIONS, projected
from pydiffaccel.coupling.base import Coupling
from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import hungarian

__all__ = ["Hungarian"]


@dataclass(frozen=True, eq=False)
class Hungarian(Coupling):
    """Linear assignment: the permutation of the batch's noises with the least total squared distance (2406.12303).

    The paper's distance is not squared. Squared, ``|x_i|^2`` and ``|n_j|^2`` add the same to every permutation, so the
    cost is ``-<x_i, n_j>``, one matrix product. The noise rows keep their multiset, so their law stays exactly
    Gaussian. The assignment is exact and takes O(B^3) time at worst.

    With a pool of P > B noises each row gets another one of them (a rectangular assignment, where ``|n_j|^2`` does
    count). As under ``KNN(metric="l2")`` the chosen noises are then a little shorter than Gaussian ones.

    ``pair(x, noise)`` takes noise ``[P, *]`` with any P >= B.

    Args:
        labels: "within" pairs inside each class where labels are given, so that the noise law does not depend on the
            class (2503.10636); "across" pairs the whole batch (the paper). Of a pool of P noises, noise p belongs to
            the class of row p modulo B.
        pool: how many noises ``__call__`` draws, at least the batch size; None draws one per row. The first B are the
            plain noises of the rows, so a batch of one, or None, starts from the baseline's.

        project: search in a space of at most this many dimensions instead of D: cheaper where D is huge, and no longer
            exact. None, or at least D, is the exact search. It does not go with a mask.
        projection: how to get there. "pool" averages square windows of the last two dimensions (images); natural images
            keep most of the gain. "random" is a random projection of any shape; noise is white, so most of the gain is
            lost. docs/coupling.md has both measured.

    "within" looks at the labels on the host: on a GPU it waits once.

    Raises:
        TypeError: pool or project is no int.
        ValueError: labels or projection is an unknown word, pool < 1 or project < 1.
    """

    name: ClassVar[str] = "hungarian"

    labels: str = "within"
    pool: int | None = None
    project: int | None = field(default=None, metadata={"optional": True})
    projection: str = field(default="pool", metadata={"optional": True})

    def __post_init__(self) -> None:
        if self.labels not in ("within", "across"):
            raise ValueError(f"labels must be 'within' or 'across', got {self.labels!r}")
        if self.pool is not None:
            check_count("pool", self.pool)
        if self.project is not None:
            check_count("project", self.project)
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection must be 'pool' or 'random', got {self.projection!r}")

    def pool_size(self, batch: int) -> int:
        """How many noises are drawn for a batch.

        Raises:
            ValueError: the pool is smaller than the batch.
        """
        if self.pool is None:
            return batch
        if self.pool < batch:
            raise ValueError(f"pool must be at least the batch size {batch}, got {self.pool}")
        return self.pool

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        noise = gaussian_noise(x, seed, step, first_sample)
        missing = self.pool_size(len(x)) - len(x)
        if missing == 0 or len(x) == 0:
            return self._pair(x, noise, labels, mask)
        # Further noises in rounds of one per row, each round from a seed of its own: row indices beyond the batch would
        # be those of the next rank's rows.
        rounds = [noise]
        for number in range(1, math.ceil(missing / len(x)) + 1):
            rows = min(len(x), missing - (number - 1) * len(x))
            rounds.append(gaussian_noise(x[:rows], pool_seed(seed, number), step, first_sample))
        return self._pair(x, torch.cat(rounds), labels, mask)

    def pair(
        self,
        x: Tensor,
        noise: Tensor,
        *,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        noise_labels: Tensor | None = None,
    ) -> Tensor:
        """For each row of x another one of the noises ``[P, *]``, P >= B, that the caller drew.

        Args:
            x, labels, mask: as for every coupling.
            noise: ``[P, *]``, x's dtype and device.
            noise_labels: integer ``[P]``, the class that each noise belongs to under labels="within"; None is the class
                of row p modulo B.

        Raises:
            TypeError, ValueError: as for every coupling; ValueError also where noise_labels come without labels or do
                not fit the noise, or a class has more rows than noises.
        """
        if noise_labels is None:
            return super().pair(x, noise, labels=labels, mask=mask)
        x, labels, mask = checked(x, labels, mask)
        check_noise(x, noise)
        if labels is None:
            raise ValueError("noise_labels need the labels of the rows beside them, got labels=None")
        if noise.dim() == 0:
            raise ValueError("noise must be [P, *], got a scalar")
        noise_labels = checked_labels("noise_labels", noise_labels, len(noise)).to(x.device)
        with torch.no_grad():
            return self._assign(x, noise, labels, mask, noise_labels)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        return self._assign(x, noise, labels, mask, None)

    def _assign(
        self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None, noise_labels: Tensor | None
    ) -> Tensor:
        if noise.dim() != x.dim() or noise.shape[1:] != x.shape[1:] or len(noise) < len(x):
            raise ValueError(
                f"noise must be [P, *] with P >= {len(x)} and rows of shape {tuple(x.shape[1:])}, "
                f"got {tuple(noise.shape)}"
            )
        if len(x) == 0 or (len(noise) == 1 and noise_labels is None):
            return noise[: len(x)].detach()
        data, candidates, squares = as_rows(x), as_rows(noise), None
        real = None if mask is None else as_rows(mask)
        if self.project is not None:
            if mask is not None:
                raise ValueError(f"a search in a cheaper space does not go with a mask, got project={self.project}")
            cheaper = projected(x, noise, self.project, self.projection)
            if cheaper is not None:
                squares = None if len(noise) == len(x) else candidates.to(cheaper[1].dtype).square().sum(1)
                data, candidates = cheaper
        if labels is None or self.labels == "across":
            chosen = hungarian(assignment_cost(data, candidates, real, squares))
        else:
            chosen = torch.empty(len(x), dtype=torch.int64, device=x.device)
            for rows, columns in class_blocks(labels, len(noise), noise_labels):
                cost = assignment_cost(
                    data[rows],
                    candidates[columns],
                    None if real is None else real[rows],
                    None if squares is None else squares[columns],
                )
                chosen[rows] = columns.gather(1, hungarian(cost))
        # On a GPU an invalid problem (NaN in the data) is not raised but answered with -1. The loss then shows it.
        return noise.detach().index_select(0, chosen.clamp_(min=0))

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "hungarian", "labels": ..., "pool": ...}``, and project and projection where there is one."""
        description = {"name": self.name, "labels": self.labels, "pool": self.pool}
        if self.project is not None:
            description |= {"project": self.project, "projection": self.projection}
        return description


def pool_seed(seed: int, number: int) -> int:
    """The seed of the noises number B .. (number + 1) B - 1 of a pool."""
    return seed if number == 0 else derive_seed(seed, f"hungarian-pool-{number}")
