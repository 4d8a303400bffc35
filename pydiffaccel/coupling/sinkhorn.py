"""Assignment of batches that are too large for an exact one: entropic transport that never stores the cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling._assignment import as_rows, class_blocks
from pydiffaccel.coupling._checks import check_count
from pydiffaccel.coupling._projection import PROJECTIONS, projected
from pydiffaccel.coupling._transport import Scores, column_potentials, permutation, row_potentials, sampled
from pydiffaccel.coupling.base import Coupling
from pydiffaccel.noise import derive_seed, gaussian_noise, uniform

__all__ = ["Sinkhorn", "sinkhorn_potentials"]

OUTPUTS = ("permutation", "sampled")
# Beyond, a plan is that of an assignment or of independent noise, as far as float32 can tell.
_LEAST_EPSILON, _GREATEST_EPSILON = 1e-6, 1e6
_GREATEST_SCORE = 1e-8  # of what the dtype holds


@dataclass(frozen=True, eq=False)
class Sinkhorn(Coupling):
    """Near-exact assignment in memory linear in the batch, by entropic transport (Cuturi 2013).

    ``Hungarian`` stores B x B costs; this computes them block by block, as often as it needs them, and keeps
    `candidates` per row. Column potentials of the entropic plan say how much in demand each noise is; with them each
    row's best candidates are found in one pass, and an auction among the candidates assigns nearly all rows. The rest
    is assigned exactly among itself; where few dimensions leave many over, all are, in slices. Where B x B costs fit
    into memory ``Hungarian`` is the better choice on a CPU; docs/coupling.md has gain and time of both.

    ``pair(x, noise)`` takes noise of x's shape. With output="sampled" it draws with seed 0.

    Args:
        epsilon: the plan's temperature, in [1e-6, 1e6], in units of the standard deviation of a product ``<x_i, n_j>``
            over noise, which is the root mean square of ``|x_i - mean|``. Small values need more iterations.
        iterations: Sinkhorn iterations for the column potentials, one pass over the products each; where there are
            several, the first three see every 8th, 4th and 2nd of the rows. 0 is the baseline's noise, bit for bit.
        output: "permutation" keeps the noises a permutation of those drawn, so their law stays exactly Gaussian.
            "sampled" draws each row's noise from its row of the plan: noises repeat, and the law is Gaussian only as
            far as the plan's column sums have converged (small stride and many iterations); a batch then holds fewer
            different noises.
        stride: an iteration sees every stride-th row, though at least 512; None is 8 for permutations, which need
            rough potentials only, and 1 for samples.
        candidates: noises per row that the auction chooses from, at least 2. Memory and the time of the auction grow
            with it.
        labels: "within" pairs inside each class where labels are given, "across" the whole batch; as ``Hungarian``.
        project: search in a space of at most this many dimensions instead of D; candidates are then compared in all D.
            None, or at least D, searches in D. It does not go with a mask.
        projection: how to get there, "pool" or "random"; as ``Hungarian``.

    On a GPU a permutation waits once, for the number of rows left over, and labels="within" once more.

    Raises:
        TypeError: epsilon is no number; iterations, stride, candidates or project is no int.
        ValueError: epsilon is outside [1e-6, 1e6], iterations < 0, stride < 1, candidates < 2, project < 1, or
            output, labels or projection is an unknown word.
    """

    name: ClassVar[str] = "sinkhorn"

    epsilon: float = 0.3
    iterations: int = 1
    output: str = "permutation"
    stride: int | None = None
    candidates: int = 32
    labels: str = "within"
    project: int | None = None
    projection: str = "pool"

    def __post_init__(self) -> None:
        _check_epsilon(self.epsilon)
        object.__setattr__(self, "epsilon", float(self.epsilon))
        check_count("iterations", self.iterations, 0)
        if self.output not in OUTPUTS:
            raise ValueError(f"output must be 'permutation' or 'sampled', got {self.output!r}")
        if self.stride is not None:
            check_count("stride", self.stride)
        check_count("candidates", self.candidates, 2)
        if self.labels not in ("within", "across"):
            raise ValueError(f"labels must be 'within' or 'across', got {self.labels!r}")
        if self.project is not None:
            check_count("project", self.project)
        if self.projection not in PROJECTIONS:
            raise ValueError(f"projection must be 'pool' or 'random', got {self.projection!r}")

    def is_plain(self, step: int) -> bool:
        """Whether nothing is paired, iterations = 0."""
        return self.iterations == 0

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        noise = gaussian_noise(x, seed, step, first_sample)
        return self._choose(x, noise, labels, mask, (derive_seed(seed, "sinkhorn"), step, first_sample))

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        return self._choose(x, noise, labels, mask, (derive_seed(0, "sinkhorn"), 0, 0))

    def _choose(
        self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None, place: tuple[int, int, int]
    ) -> Tensor:
        if noise.shape != x.shape:
            raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, got {tuple(noise.shape)}")
        if self.project is not None and mask is not None:
            raise ValueError(f"a search in a cheaper space does not go with a mask, got project={self.project}")
        if self.iterations == 0:
            return noise
        x, noise = x.detach(), noise.detach()
        if len(x) < 2 or x.numel() == 0:
            return noise
        dtype = compute_dtype(x)
        rows, noises = as_rows(x).to(dtype), as_rows(noise).to(dtype)
        if mask is not None:
            rows, noises = _masked(rows, noises, as_rows(mask))
        _check_range(rows, noises)
        cheap = None if self.project is None else projected(x, noise, self.project, self.projection)
        uniforms = None
        if self.output == "sampled":
            seed, step, first_sample = place
            uniforms = uniform(len(x), seed=seed, step=step, first_sample=first_sample, device=x.device)
        chosen = torch.empty(len(x), dtype=torch.int64, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            if labels is None or self.labels == "across":
                chosen = self._solve(rows, noises, cheap, uniforms)
            else:
                for own, theirs in _classes(labels):
                    fewer = None if cheap is None else (cheap[0][own], cheap[1][theirs])
                    some = None if uniforms is None else uniforms[own]
                    chosen[own] = theirs[self._solve(rows[own], noises[theirs], fewer, some)]
        return noise.index_select(0, chosen)

    def _solve(
        self, rows: Tensor, noises: Tensor, cheap: tuple[Tensor, Tensor] | None, uniforms: Tensor | None
    ) -> Tensor:
        """The noise of each row, int64 ``[B]``: rows and noises ``[B, D]``, cheap the same in fewer dimensions."""
        if len(rows) == 1:
            return torch.zeros(1, dtype=torch.int64, device=rows.device)
        if uniforms is not None:
            scores = Scores(*(cheap or (rows, noises)))
            columns = scores.x.new_zeros(len(rows))
            columns = column_potentials(scores, self.epsilon, self.iterations, self.stride or 1, columns)
            return sampled(scores, self.epsilon, columns, uniforms)
        full = Scores(rows, noises)
        searched = full if cheap is None else Scores(*cheap)
        return permutation(searched, full, self.epsilon, self.iterations, self.stride or 8, self.candidates)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "sinkhorn", "epsilon": ..., ...}``, every setting."""
        return {
            "name": self.name,
            "epsilon": self.epsilon,
            "iterations": self.iterations,
            "output": self.output,
            "stride": self.stride,
            "candidates": self.candidates,
            "labels": self.labels,
            "project": self.project,
            "projection": self.projection,
        }


def sinkhorn_potentials(
    x: Tensor,
    noise: Tensor,
    epsilon: float,
    iterations: int,
    *,
    stride: int = 1,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Potentials of the entropic transport plan between rows and noises, without a B x P array.

    The plan is ``exp((<x_i, n_j> + f_i + g_j) / (epsilon s)) / (B P)`` with s the root mean square of ``|x_i - mean|``,
    its marginals are uniform. Log-domain Sinkhorn iterations, the columns' half from sums over blocks of rows as they
    are normalised, so that an iteration is one pass over the products; a last pass makes the row sums exact.
    Deterministic; on a GPU nothing waits.

    Args:
        x: ``[B, D]``, B >= 1, floating point. Half precision is computed in float32.
        noise: ``[P, D]``, P >= 1, of x's dtype and device.
        epsilon: in [1e-6, 1e6], in units of s.
        iterations: at least 0; where there are several, the first three see every 8th, 4th and 2nd of the rows.
        stride: iterations see every stride-th row. Of fewer than 1,024 rows all are seen, whatever the stride.
        start: column potentials to start from, ``[P]``, as a call returned them; None is those of equal demand for
            the mean row.

    Returns:
        (f ``[B]``, g ``[P]``, s scalar), in float32, or float64 for float64; potentials in units of ``<x, n>``.

    Raises:
        TypeError: x is no floating-point tensor, noise is no tensor of its dtype, epsilon is no number, or iterations
            or stride is no int.
        ValueError: shapes or devices do not fit, epsilon is out of range, iterations < 0 or stride < 1; on the CPU also
            where x, noise or start is not finite, or too large for products in its dtype.
    """
    dtype = compute_dtype(x)
    if not isinstance(noise, Tensor) or noise.dtype != x.dtype:
        raise TypeError(
            f"noise must be a tensor of the dtype of x, {x.dtype}, got {getattr(noise, 'dtype', type(noise).__name__)}"
        )
    if x.dim() != 2 or noise.dim() != 2 or x.shape[1] != noise.shape[1] or not len(x) or not len(noise):
        raise ValueError(
            f"x and noise must be [B, D] and [P, D] with B, P >= 1, got {tuple(x.shape)} and {tuple(noise.shape)}"
        )
    if noise.device != x.device:
        raise ValueError(f"noise must be on the device of x, {x.device}, got {noise.device}")
    _check_epsilon(epsilon)
    check_count("iterations", iterations, 0)
    check_count("stride", stride)
    if start is not None and (not isinstance(start, Tensor) or start.shape != noise.shape[:1]):
        raise ValueError(
            f"start must be a tensor [{len(noise)}], got {tuple(start.shape) if isinstance(start, Tensor) else start!r}"
        )
    _check_range(x.detach().to(dtype), noise.detach().to(dtype))
    if start is not None and not start.is_cuda and not bool(torch.isfinite(start).all()):
        raise ValueError("start must be finite, got NaN or infinity")
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        scores = Scores(x.to(dtype), noise.to(dtype))
        unit = (epsilon * scores.deviation).to(dtype)
        shift = scores.noise @ scores.mean
        columns = torch.zeros_like(shift)
        if start is not None:
            # Potentials mean nothing where all rows are the same.
            columns = torch.where(unit > 0, (start.to(x.device, dtype) + shift) / unit, 0.0)
        columns = column_potentials(scores, epsilon, iterations, stride, columns)
        rows = row_potentials(scores, epsilon, columns)
        return rows * unit, columns * unit - shift, scores.deviation.to(dtype)


def _check_epsilon(epsilon: float) -> None:
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)):
        raise TypeError(f"epsilon must be a number, got {type(epsilon).__name__}")
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if not _LEAST_EPSILON <= epsilon <= _GREATEST_EPSILON:
        raise ValueError(f"epsilon must be in [{_LEAST_EPSILON:g}, {_GREATEST_EPSILON:g}], got {epsilon}")


def _check_range(x: Tensor, noise: Tensor) -> None:
    """Rows ``[B, D]`` and noises are finite, and so small that no sum overflows. On a GPU that would wait."""
    if not x.is_cpu:
        return
    sizes = [max(abs(float(bound)) for bound in torch.aminmax(rows)) if rows.numel() else 0.0 for rows in (x, noise)]
    if not all(math.isfinite(size) for size in sizes):
        raise ValueError("x and noise must be finite, got NaN or infinity")
    # A logit is a score over epsilon times the deviation, which may be as little as the rounding of x.
    if sizes[0] * max(1.0, sizes[1]) * max(1, x.shape[1]) > _GREATEST_SCORE * torch.finfo(x.dtype).max:
        raise ValueError(
            f"x and noise are too large for products in {x.dtype}, got magnitudes {sizes[0]:g} and {sizes[1]:g}"
        )


def _masked(rows: Tensor, noises: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and noises ``[B, 2 D]`` whose products are those over real elements less half the noise's squares there.

    Half the squared distance, up to what is the same for all noises. The squares are centred and of variance 1, as the
    noise itself.
    """
    root = math.sqrt(0.5)
    real = mask.to(rows.dtype)
    return torch.cat([torch.where(mask, rows, 0), real * root], 1), torch.cat([noises, (1 - noises.square()) * root], 1)


def _classes(labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows ``[R]`` and noises ``[R]`` of each class."""
    return [pair for block in class_blocks(labels, len(labels)) for pair in zip(*block, strict=True)]
