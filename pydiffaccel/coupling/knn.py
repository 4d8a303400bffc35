"""For each sample the nearest of k noises of its own."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling._assignment import as_rows
from pydiffaccel.coupling._checks import check_count
from pydiffaccel.coupling.base import Coupling
from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import knn_noise, knn_select

__all__ = ["KNN"]

METRICS = ("l2", "dot")


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
        ValueError: k < 1, an unknown metric, an unknown word or a value that is not finite in center. On the CPU a call
            raises it, too, where x is not finite; on a GPU, where that would wait, such a row gets NaN.
    """

    name: ClassVar[str] = "knn"

    k: int
    metric: str = "l2"
    center: Tensor | str | None = None

    def __post_init__(self) -> None:
        check_count("k", self.k)
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

    def is_plain(self, step: int) -> bool:
        """Whether there is no choice, k = 1."""
        return self.k == 1

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.k == 1 or x.numel() == 0:
            return gaussian_noise(x, seed, step, first_sample)
        query = self._centered(x, mask)
        if mask is None:
            return _finite(knn_noise(query, self.k, self.metric, seed, step, first_sample)).to(x.dtype)
        noise = gaussian_noise(x, derive_seed(seed, "knn-padding"), step, first_sample)
        flat, query, mask = as_rows(noise), as_rows(query), as_rows(mask)
        for start, stop, count in _runs(mask.sum(1).tolist()):
            real = mask[start:stop]
            packed = query[start:stop][real].view(stop - start, count)
            nearest = _finite(knn_noise(packed, self.k, self.metric, seed, step, first_sample + start), start)
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

    @classmethod
    def from_fields(cls, values: dict[str, Any]) -> KNN:
        """``center`` may be nested lists of floats."""
        center = values["center"]
        if not isinstance(center, (str, type(None))):
            try:
                center = torch.tensor(center, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"center must be None, 'mean' or nested lists of numbers: {error}") from None
        return cls(**{**values, "center": center})


def _finite(noise: Tensor, first: int = 0) -> Tensor:
    """noise ``[B, *]`` itself, unless x was not finite: then a row is NaN in all elements. On a GPU that would wait."""
    if noise.is_cpu and not torch.compiler.is_compiling():
        bad = torch.isnan(as_rows(noise)[:, 0]).nonzero()
        if len(bad):
            raise ValueError(f"x must be finite and of a norm below 1e150, row {first + int(bad[0])} is not")
    return noise


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
