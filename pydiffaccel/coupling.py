"""Which noise each sample is trained with.

Plain diffusion training gives every sample an independent noise. Pairing samples with noises near them ("immiscible
diffusion", 2406.12303 and 2505.18521) untangles the paths from noise to data. Only the noise is chosen: data, labels
and times stay where they are, and the loss must use the chosen noise for the input and for the target.

    x = coupling.scale_data(x)
    noise = coupling(x, seed=seed, step=step)
    loss = diffusion_loss(model, x, t, process=process, noise=noise)

Samples may have any shape: images, latents, action chunks ``[B, T, A]``, vectors ``[B, D]``.
"""

from __future__ import annotations

import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._assignment import assignment_cost, class_blocks
from pydiffaccel._tensors import compute_dtype
from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import hungarian, knn_noise, knn_select

__all__ = ["KNN", "Coupling", "Hungarian", "Independent", "Scaled", "coupling_from_dict"]

METRICS = ("l2", "dot")


class Coupling(ABC):
    """Noise for data, without gradient and without touching torch's generators.

    Arguments shared by ``__call__`` and ``pair``:
        x: the data that is diffused, ``[B, *]``, floating point. Half precision is compared in float32.
        labels: integer ``[B]``, the class of each sample.
        mask: bool, True where an element is real and False where it is padding; padding never enters a distance. Its
            dimensions are the leading ones of x, each of x's size or 1: ``[B, T]`` masks steps of ``[B, T, A]``.

    Instances are immutable, compare and hash by content, and survive ``coupling_from_dict(c.to_dict())``.
    """

    name: ClassVar[str]

    def __call__(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        step: int = 0,
        first_sample: int = 0,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Noise of x's shape, dtype and device, drawn as a function of (seed, step, sample index) and x.

        Args:
            seed: any int64.
            step: the training step, 0 .. 2**32 - 1.
            first_sample: index of row 0 in the global batch.

        Raises:
            TypeError: x is no floating-point tensor, labels are not integers, or mask is not bool.
            ValueError: x has no batch dimension, or labels or mask do not fit it.
        """
        x, labels, mask = _checked(x, labels, mask)
        with torch.no_grad():
            return self._draw(x, seed, step, first_sample, labels, mask)

    def pair(self, x: Tensor, noise: Tensor, *, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """For each row of x one of the noises that the caller drew; which shapes noise may have, the coupling says.

        Raises:
            TypeError, ValueError: as ``__call__``; ValueError also where the noise does not fit x.
        """
        x, labels, mask = _checked(x, labels, mask)
        if not isinstance(noise, Tensor):
            raise TypeError(f"noise must be a tensor, got {type(noise).__name__}")
        with torch.no_grad():
            return self._pair(x, noise, labels, mask)

    def scale_data(self, x: Tensor) -> Tensor:
        """The data as it is diffused: x itself, except under ``Scaled``."""
        return x

    def unscale_data(self, x: Tensor) -> Tensor:
        """Samples of the trained model back in the range of the data: x itself, except under ``Scaled``."""
        return x

    @abstractmethod
    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """``__call__`` after validation; mask has x's shape."""

    @abstractmethod
    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        """``pair`` after validation; mask has x's shape."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; ``coupling_from_dict`` reads it."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))


@dataclass(frozen=True, eq=False)
class Independent(Coupling):
    """The baseline: noise that does not look at the data. ``pair`` returns the noise object it was given."""

    name: ClassVar[str] = "independent"

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        return gaussian_noise(x, seed, step, first_sample)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        if noise.shape != x.shape:
            raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, got {tuple(noise.shape)}")
        return noise

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "independent"}``."""
        return {"name": self.name}


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

    "within" looks at the labels on the host: on a GPU it waits once.

    Raises:
        TypeError: pool is no int.
        ValueError: labels is neither word, or pool < 1.
    """

    name: ClassVar[str] = "hungarian"

    labels: str = "within"
    pool: int | None = None

    def __post_init__(self) -> None:
        if self.labels not in ("within", "across"):
            raise ValueError(f"labels must be 'within' or 'across', got {self.labels!r}")
        if self.pool is not None:
            _check_count("pool", self.pool)

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        noise = gaussian_noise(x, seed, step, first_sample)
        missing = 0 if self.pool is None else self.pool - len(x)
        if missing < 0:
            raise ValueError(f"pool must be at least the batch size {len(x)}, got {self.pool}")
        if missing == 0 or len(x) == 0:
            return self._pair(x, noise, labels, mask)
        # Further noises in rounds of one per row, each round from a seed of its own: row indices beyond the batch would
        # be those of the next rank's rows.
        rounds = [noise]
        for number in range(1, math.ceil(missing / len(x)) + 1):
            rows = min(len(x), missing - (number - 1) * len(x))
            extra_seed = derive_seed(seed, f"hungarian-pool-{number}")
            rounds.append(gaussian_noise(x[:rows], extra_seed, step, first_sample))
        return self._pair(x, torch.cat(rounds), labels, mask)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        if noise.dim() != x.dim() or noise.shape[1:] != x.shape[1:] or len(noise) < len(x):
            raise ValueError(
                f"noise must be [P, *] with P >= {len(x)} and rows of shape {tuple(x.shape[1:])}, "
                f"got {tuple(noise.shape)}"
            )
        if len(x) == 0 or len(noise) == 1:
            return noise[: len(x)].detach()
        data, candidates = x.flatten(1), noise.flatten(1)
        real = None if mask is None else mask.flatten(1)
        if labels is None or self.labels == "across":
            chosen = hungarian(assignment_cost(data, candidates, real))
        else:
            chosen = torch.empty(len(x), dtype=torch.int64, device=x.device)
            for rows, columns in class_blocks(labels, len(noise)):
                cost = assignment_cost(data[rows], candidates[columns], None if real is None else real[rows])
                chosen[rows] = columns.gather(1, hungarian(cost))
        # On a GPU an invalid problem (NaN in the data) is not raised but answered with -1. The loss then shows it.
        return noise.detach().index_select(0, chosen.clamp_(min=0))

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "hungarian", "labels": ..., "pool": ...}``."""
        return {"name": self.name, "labels": self.labels, "pool": self.pool}


@dataclass(frozen=True, eq=False)
class KNN(Coupling):
    """Of k fresh noises per sample the nearest, sample by sample (2505.18521).

    The noise is drawn directly from the law of the nearest one: its component along the sample and its remaining length
    are those of the best of k pairs of scalars, its direction is that of one Gaussian. The cost does not grow with k
    (``ops.knn_noise``).

    Nearness prefers short noises: the mean square of the chosen ones is some percent below 1, whereas sampling starts
    from N(0, I). ``metric="dot"`` ranks by ``<x, n>`` alone and leaves the length as it is. A mean that all data
    share shifts all noises along it; ``center`` takes it out of the ranking.

    ``pair(x, noise)`` takes candidates ``[B, k, *]`` per sample or ``[k, *]`` shared by all. With k = 1 it also takes
    noise of x's shape, and returns it as it is.

    Under a mask the law is that of the nearest of k noises of the real elements alone; padding gets plain noise. Rows
    are handled in runs of equally many real elements, counted on the host.

    Args:
        k: candidates, at least 1; 1 is the baseline's noise, bit for bit. The paper's best: 8 for DDIM on pixels, 64
            on latents, 4 for flow matching, 2 for robot actions.
        metric: "l2" (the paper) or "dot".
        center: None, a data mean of a shape that broadcasts to one sample, or "mean" for the mean of the batch at hand
            (then the result depends on the whole batch, and a batch of one has nothing left to rank by). Real data
            means, constant over the run, keep each row's noise a function of the row.

    Raises:
        TypeError: k is no int, or center is neither None, "mean" nor a floating-point tensor.
        ValueError: k < 1, an unknown metric, an unknown word or a value that is not finite in center.
    """

    name: ClassVar[str] = "knn"

    k: int
    metric: str = "l2"
    center: Tensor | str | None = None

    def __post_init__(self) -> None:
        _check_count("k", self.k)
        if self.metric not in METRICS:
            raise ValueError(f"metric must be 'l2' or 'dot', got {self.metric!r}")
        if isinstance(self.center, str):
            if self.center != "mean":
                raise ValueError(f"center must be None, 'mean' or a tensor, got {self.center!r}")
        elif self.center is not None:
            if not isinstance(self.center, Tensor) or not self.center.is_floating_point():
                raise TypeError(
                    "center must be None, 'mean' or a floating-point tensor, "
                    f"got {getattr(self.center, 'dtype', type(self.center).__name__)}"
                )
            if not bool(torch.isfinite(self.center).all()):
                raise ValueError("center must be finite")
            object.__setattr__(self, "center", self.center.detach().clone())

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.k == 1 or x.numel() == 0:
            return gaussian_noise(x, seed, step, first_sample)
        query = self._centered(x, mask)
        if mask is None:
            return knn_noise(query, self.k, self.metric, seed, step, first_sample).to(x.dtype)
        noise = gaussian_noise(x, derive_seed(seed, "knn-padding"), step, first_sample)
        flat, query, mask = noise.reshape(len(x), -1), query.flatten(1), mask.flatten(1)
        for start, stop, count in _runs(mask.sum(1).tolist()):
            real = mask[start:stop]
            packed = query[start:stop][real].view(stop - start, count)
            nearest = knn_noise(packed, self.k, self.metric, seed, step, first_sample + start)
            flat[start:stop][real] = nearest.to(x.dtype).flatten()
        return flat.view(x.shape)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.k == 1 and noise.shape == x.shape:
            return noise
        shared = noise.shape == (self.k, *x.shape[1:])
        if not shared and noise.shape != (len(x), self.k, *x.shape[1:]):
            raise ValueError(
                f"noise must be [B, k, *] = {(len(x), self.k, *x.shape[1:])} or [k, *] = {(self.k, *x.shape[1:])}, "
                f"got {tuple(noise.shape)}"
            )
        noise = noise.detach()
        if x.numel() == 0:
            return noise.new_empty(x.shape)
        query, candidates = self._centered(x, mask).to(compute_dtype(x)), noise.to(compute_dtype(x))
        if mask is not None:
            # Zero on both sides adds nothing to either metric.
            query = torch.where(mask, query, 0)
            candidates = torch.where(mask.unsqueeze(1), candidates, 0)
        chosen = knn_select(query, candidates, self.metric)
        if shared:
            return noise.index_select(0, chosen)
        return noise[torch.arange(len(x), device=x.device), chosen]

    def _centered(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x minus the centre, in the dtype that x is computed in; x itself without one."""
        if self.center is None:
            return x.detach()
        # Contiguous, so that a batch mean is summed in the same order whatever the memory format.
        wide = x.detach().to(compute_dtype(x)).contiguous()
        if isinstance(self.center, Tensor):
            try:
                return wide - self.center.to(x.device, wide.dtype).expand(x.shape[1:])
            except RuntimeError:
                raise ValueError(
                    f"center must broadcast to one sample {tuple(x.shape[1:])}, got {tuple(self.center.shape)}"
                ) from None
        if mask is None:
            return wide - wide.mean(0)
        real = mask.sum(0).clamp(min=1)
        return wide - torch.where(mask, wide, 0).sum(0) / real

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "knn", "k": ..., "metric": ..., "center": ...}``, a tensor as nested lists of floats."""
        center = self.center.double().tolist() if isinstance(self.center, Tensor) else self.center
        return {"name": self.name, "k": self.k, "metric": self.metric, "center": center}


@dataclass(frozen=True, eq=False)
class Scaled(Coupling):
    """Data multiplied by a factor before it is diffused, noise untouched (2505.18521: factors 2 and 4).

    Equal to a shift of the log-SNR, 2 log(factor). The caller scales the data (``scale_data``) and undoes it on samples
    (``unscale_data``), clipping bounds included. ``__call__`` and ``pair`` take data that is scaled already and hand it
    to the inner coupling.

    Args:
        factor: positive and finite; 1 returns the data object itself.
        coupling: how the scaled data gets its noise; None is ``Independent()``.

    Raises:
        TypeError: factor is no number, or coupling no coupling.
        ValueError: factor is not positive and finite.
    """

    name: ClassVar[str] = "scaled"

    factor: float
    coupling: Coupling | None = None

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)):
            raise TypeError(f"factor must be a number, got {type(self.factor).__name__}")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise ValueError(f"factor must be positive and finite, got {self.factor}")
        if self.coupling is not None and not isinstance(self.coupling, Coupling):
            raise TypeError(f"coupling must be a Coupling, got {type(self.coupling).__name__}")
        object.__setattr__(self, "factor", float(self.factor))

    @property
    def inner(self) -> Coupling:
        """The coupling that draws the noise."""
        return Independent() if self.coupling is None else self.coupling

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        return self.inner._draw(x, seed, step, first_sample, labels, mask)

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        return self.inner._pair(x, noise, labels, mask)

    def scale_data(self, x: Tensor) -> Tensor:
        """factor x, in x's dtype."""
        x = self.inner.scale_data(x)
        return x if self.factor == 1 else x * self.factor

    def unscale_data(self, x: Tensor) -> Tensor:
        """x / factor, in x's dtype."""
        x = x if self.factor == 1 else x / self.factor
        return self.inner.unscale_data(x)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "scaled", "factor": ..., "coupling": {...}}``."""
        return {"name": self.name, "factor": self.factor, "coupling": self.inner.to_dict()}


def coupling_from_dict(d: Mapping[str, Any]) -> Coupling:
    """The coupling that ``to_dict`` described.

    Raises:
        TypeError: d is no mapping.
        ValueError: the name is unknown, or a field is missing, unknown or invalid.
    """
    if not isinstance(d, Mapping):
        raise TypeError(f"a coupling is described by a dict, got {type(d).__name__}")
    known: dict[str, type[Independent | Hungarian | KNN | Scaled]] = {
        kind.name: kind for kind in (Independent, Hungarian, KNN, Scaled)
    }
    name = d.get("name")
    if name not in known:
        raise ValueError(f"unknown coupling {name!r}; known: {', '.join(sorted(known))}")
    kind = known[name]
    values = {key: value for key, value in d.items() if key != "name"}
    expected = {field.name for field in fields(kind)}
    if set(values) != expected:
        raise ValueError(f"a {name} description has the fields {sorted(expected)}, got {sorted(values)}")
    if name == Scaled.name:
        values["coupling"] = coupling_from_dict(values["coupling"])
    if name == KNN.name and not isinstance(values["center"], (str, type(None))):
        values["center"] = torch.tensor(values["center"], dtype=torch.float64)
    return kind(**values)


def _checked(x: Tensor, labels: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Validated arguments: labels on x's device, the mask expanded to x's shape."""
    compute_dtype(x)
    if x.dim() == 0:
        raise ValueError("x must have a batch dimension, got a scalar")
    if labels is not None:
        if labels.is_floating_point() or labels.is_complex():
            raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
        if labels.shape != x.shape[:1]:
            raise ValueError(f"labels must have shape ({len(x)},), got {tuple(labels.shape)}")
        labels = labels.to(x.device)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True at real elements, got dtype {mask.dtype}")
        leading = x.shape[: mask.dim()]
        sizes_fit = all(size in (1, full) for size, full in zip(mask.shape, leading, strict=False))
        if mask.dim() > x.dim() or not sizes_fit:
            raise ValueError(
                f"mask must have the leading dimensions of x, {tuple(x.shape)}, each or 1, got {tuple(mask.shape)}"
            )
        mask = mask.to(x.device).reshape(*mask.shape, *(1,) * (x.dim() - mask.dim())).expand(x.shape)
    return x, labels, mask


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _runs(counts: list[int]) -> list[tuple[int, int, int]]:
    """(start, stop, count) of each run of equal positive counts."""
    runs = []
    start = 0
    for count, group in itertools.groupby(counts):
        stop = start + sum(1 for _ in group)
        if count:
            runs.append((start, stop, count))
        start = stop
    return runs
