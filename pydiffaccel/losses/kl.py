"""Losses of KL diffusion: one sample of data seen through several noises of one expansion (2503.17657)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pydiffaccel._condition import repeated, sliced
from pydiffaccel.forward import KLProcess
from pydiffaccel.forward.process import check_batch
from pydiffaccel.losses.common import Model, answer_of, check_reduction, mean_square, reduced
from pydiffaccel.losses.draws import mixed
from pydiffaccel.losses.kl_inputs import Noised, Place, Seen, partial_of_terms, path, term_weights, terms

__all__ = ["KLObjective", "kl_loss", "kl_loss_parts"]

_CHOICES = {
    "mode": ("component", "schedule", "recombined", "path"),
    "partial_probabilities": ("coefficient", "uniform"),
    "draws": ("iid", "antithetic", "orthogonal"),
    "weights": ("coefficient", "uniform"),
}


@dataclass(frozen=True)
class KLObjective:
    """Which loss of KL diffusion: the settings of ``kl_loss``, where they are described.

    Raises:
        TypeError: partial is no int.
        ValueError: an unknown name, partial < 1, or settings that do not go together.
    """

    mode: str = "component"
    partial: int | None = None
    partial_probabilities: str = "coefficient"
    draws: str = "iid"
    weights: str = "coefficient"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(map(repr, choices[:-1]))
                raise ValueError(f"{name} must be {known} or {choices[-1]!r}, got {value!r}")
        if self.mode != "component":
            given = [
                f"{name} {getattr(self, name)!r}"
                for name, plain in (("partial", None), ("draws", "iid"), ("weights", "coefficient"))
                if getattr(self, name) != plain
            ]
            if given:
                raise ValueError(f"{given[0]} goes with mode 'component', got mode {self.mode!r}")
        if self.partial is None:
            if self.partial_probabilities != "coefficient":
                raise ValueError(f"partial_probabilities {self.partial_probabilities!r} needs partial, got None")
            return
        if isinstance(self.partial, bool) or not isinstance(self.partial, int):
            raise TypeError(f"partial must be an int, got {type(self.partial).__name__}")
        if self.partial < 1:
            raise ValueError(f"partial must be at least 1, got {self.partial}")
        if self.draws != "iid":
            raise ValueError(f"partial draws its terms on their own: it goes with draws 'iid', got {self.draws!r}")

    def evaluations(self, num_terms: int, num_times: int = 1) -> int:
        """Network evaluations per sample of data.

        Args:
            num_terms: M.
            num_times: S, the times of a path.

        Raises:
            ValueError: partial is more than num_terms.
        """
        if self.partial is not None and self.partial > num_terms:
            raise ValueError(f"partial must be at most the number of terms, {num_terms}, got {self.partial}")
        if self.mode == "schedule":
            return 1
        if self.mode == "path":
            return num_times
        return num_terms if self.partial is None else self.partial


def kl_loss(
    model: Model,
    x0: Tensor,
    t: Tensor,
    *,
    process: KLProcess,
    mode: str = "component",
    partial: int | None = None,
    partial_probabilities: str = "coefficient",
    draws: str = "iid",
    weights: str = "coefficient",
    seed: int = 0,
    step: int = 0,
    first_sample: int = 0,
    noise: Tensor | None = None,
    weight: Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss of KL diffusion (2503.17657, whose exact loss is not public), in one of four modes.

    Z_1 .. Z_M ~ N(0, I) are drawn per sample, c_k = ``process.terms(t)``, (alpha, s) = ``process.levels(t)``:

    - "component": x^(k) = alpha x_0 + s Z_k and loss = sum_k w_k(t) |answer(x^(k), t) - target(x_0, Z_k, t)|^2. It has
      DDPM's expected value and minimiser. M evaluations of the network per sample.
    - "schedule": one evaluation, x_t = alpha x_0 + s eps with eps = sum_k c_k Z_k / sigma_M. At one time only the law
      of eps matters, which is N(0, I): one normal is drawn, not M.
    - "recombined": |sum_k c_k (target_k - answer_k)|^2 on the inputs of "component". M evaluations. Biased: with r the
      error of one term, S1 = sum_k c_k^2 and S2 = (sum_k c_k)^2 its expected value is
      S1 E|r|^2 + (S2 - S1) E|E[r | x_0]|^2.
    - "path": one smooth path x_t = alpha x_0 + s sum_k c_k(t) Z_k / sigma_M(t) per sample, seen at S times; the mean of
      the S losses. S evaluations.

    All evaluations are one call of the network, samples in the order (0, first), (0, second), .., (1, first), ...
    With M = 1 (and S = 1) and a process that renormalises, "component", "schedule" and "path" are ``diffusion_loss`` on
    the VP process bit for bit. The fair baseline of E evaluations per sample is ``diffusion_loss`` on E noises per
    sample, or on a batch of E B.

    Args:
        model: as in ``diffusion_loss``.
        x0: data ``[B, *]``, floating point.
        t: times of the process, ``[B]``; ``[B, S]`` for mode "path".
        process: the KL process, for M, the noise levels and the coefficients.
        mode: which loss.
        partial: under "component", m <= M of the terms, chosen at random for each sample by systematic sampling, each
            weighted by w_k / (m p_k): the expected loss is that of all terms, at m evaluations. None is all terms.
        partial_probabilities: p_k of that choice: "coefficient" for c_k^2 / sum_j c_j^2, or "uniform" for 1 / M, where
            m = M is the whole loss bit for bit.
        draws: the joint law of Z_1 .. Z_M under "component", each N(0, I) on its own: "iid", "antithetic" for
            Z_2 = -Z_1, Z_4 = -Z_3, .., or "orthogonal" for orthogonal ones of independent lengths. The expected loss is
            the same.
        weights: w_k of "component": "coefficient" for c_k(t)^2 / sum_j c_j(t)^2, or "uniform" for 1 / M.
        seed, step, first_sample: what noises and choices are drawn from: Z_1 is ``gaussian_noise``.
        noise: noises from a coupling instead: Z ``[B, M, *]`` (``coupled_noises``), under "schedule" eps ``[B, *]``.
        weight: a factor per sample, ``[B]``, or per time of a path, ``[B, S]``; None is 1.
        condition: as in ``diffusion_loss``; all evaluations of a sample get that sample's row.
        reduction: "mean" over the batch, or "none" for one loss per sample, ``[B]``.

    Returns:
        The loss in float32 (float64 for float64 data), averaged over the elements of a sample.

    Raises:
        TypeError: process is no KLProcess, partial is no int, or as ``diffusion_loss``.
        ValueError: an unknown name, settings that do not go together, partial outside 1 .. M, draws other than "iid"
            for given noises, or as ``diffusion_loss``.
    """
    check_reduction(x0, reduction)
    objective = KLObjective(mode, partial, partial_probabilities, draws, weights)
    _check(x0, t, process, objective, noise)
    data = _noised(x0, t, process, objective, Place(seed, step, first_sample))
    seen = _seen(data, process, objective, noise)
    target = data.target(seen.noise, process.prediction_type)
    count = target.shape[1]
    time = process.model_time(t.flatten())
    time = time if mode == "path" else time.repeat_interleave(count)
    answer = answer_of(model, seen.inputs.flatten(0, 1), time, repeated(condition, len(x0), count))
    error = answer.to(target.dtype) - target.flatten(0, 1)
    if mode == "recombined":
        total = mixed(data.coefficients.unsqueeze(1), error.view(target.shape))
        return reduced(mean_square(total), weight, reduction)
    losses = mean_square(error).view(len(x0), count)
    if seen.factor is not None:
        losses = losses * seen.factor.to(losses)
    return reduced(losses if mode == "path" else losses.sum(1), weight, reduction)


def kl_loss_parts(
    model: Model,
    x0: Tensor,
    t: Tensor,
    *,
    process: KLProcess,
    microbatch: int | None = None,
    mode: str = "component",
    partial: int | None = None,
    partial_probabilities: str = "coefficient",
    draws: str = "iid",
    weights: str = "coefficient",
    seed: int = 0,
    step: int = 0,
    first_sample: int = 0,
    noise: Tensor | None = None,
    weight: Tensor | None = None,
    condition: Mapping[str, Any] | None = None,
) -> Iterator[Tensor]:
    """``kl_loss`` of a batch in parts whose sum it is, so that memory holds the network's activations of one part.

        for part in kl_loss_parts(model, x0, t, process=process, microbatch=256):
            part.backward()

    A part is made when it is asked for: call backward before the next. Noise is a function of the sample's index, so
    the parts are those of the whole batch, and their sum differs by rounding alone. Under DistributedDataParallel all
    parts but the last belong into ``no_sync()``, as with accumulated gradients.

    Args:
        microbatch: the most network evaluations in one call of the network; each part holds as many whole samples as
            fit. None is one part, ``kl_loss`` bit for bit.
        model, x0, t, process, mode, ..., condition: as in ``kl_loss``.

    Raises:
        TypeError: microbatch is no int, or as ``kl_loss``.
        ValueError: microbatch is less than the evaluations of one sample, or as ``kl_loss``.
    """
    check_reduction(x0, "mean")
    inputs = repeated(condition, len(x0), 1)
    objective = KLObjective(mode, partial, partial_probabilities, draws, weights)
    _check(x0, t, process, objective, noise)
    rows = len(x0)
    if microbatch is not None:
        rows = min(rows, samples_per_part(microbatch, objective.evaluations(process.num_terms, _times(t))))

    def part(start: int, reduction: str) -> Tensor:
        mine = slice(start, start + rows)
        return kl_loss(
            model,
            x0[mine],
            t[mine],
            process=process,
            mode=mode,
            partial=partial,
            partial_probabilities=partial_probabilities,
            draws=draws,
            weights=weights,
            seed=seed,
            step=step,
            first_sample=first_sample + start,
            noise=None if noise is None else noise[mine],
            weight=None if weight is None else weight[mine],
            condition=sliced(inputs, start, start + rows),
            reduction=reduction,
        )

    if rows == len(x0):
        return (part(0, "mean") for _ in range(1))
    return (part(start, "none").sum() / len(x0) for start in range(0, len(x0), rows))


def samples_per_part(microbatch: int, evaluations: int) -> int:
    """How many samples of so many evaluations each fit into a micro-batch.

    Raises:
        TypeError: microbatch is no int.
        ValueError: not even one does.
    """
    if isinstance(microbatch, bool) or not isinstance(microbatch, int):
        raise TypeError(f"microbatch must be an int, got {type(microbatch).__name__}")
    if microbatch < evaluations:
        raise ValueError(
            f"microbatch must be at least {evaluations}, the network evaluations of one sample, got {microbatch}"
        )
    return microbatch // evaluations


def _check(x0: Tensor, t: Tensor, process: KLProcess, objective: KLObjective, noise: Tensor | None) -> None:
    """The arguments fit together."""
    if not isinstance(process, KLProcess):
        raise TypeError(f"kl_loss needs a KLProcess, got {type(process).__name__}")
    if objective.mode == "path":
        if t.dim() != 2 or t.shape[1] < 1:
            raise ValueError(f"mode 'path' needs times [B, S] with S >= 1, got shape {tuple(t.shape)}")
        check_batch(x0, x0, t[:, 0])
    else:
        check_batch(x0, x0, t)
    objective.evaluations(process.num_terms)
    crossed = (objective.weights, objective.partial_probabilities) == ("uniform", "coefficient")
    if objective.partial is not None and crossed and process.basis == "haar":
        # Most terms of this basis are 0 at any time: what is never chosen cannot be made up for.
        raise ValueError("weights 'uniform' over the basis 'haar' need partial_probabilities 'uniform'")
    if noise is None:
        return
    if objective.draws != "iid":
        raise ValueError(f"draws must be 'iid' for given noises, got {objective.draws!r}")
    schedule = objective.mode == "schedule"
    shape = tuple(x0.shape) if schedule else (len(x0), process.num_terms, *x0.shape[1:])
    if noise.shape != shape:
        raise ValueError(f"noise must be {'[B, *]' if schedule else '[B, M, *]'} = {shape}, got {tuple(noise.shape)}")


def _noised(x0: Tensor, t: Tensor, process: KLProcess, objective: KLObjective, place: Place) -> Noised:
    times = _times(t)
    flat = t.flatten()
    alpha, level = (value.view(len(x0), times) for value in process.levels(flat))
    if objective.mode == "schedule":
        # The law of the sum is all that counts: no term is looked at, however many there are.
        return Noised(x0, alpha, level, alpha.new_empty(*t.shape, 0), place)
    return Noised(x0, alpha, level, process.terms(flat).view(*t.shape, process.num_terms), place)


def _seen(data: Noised, process: KLProcess, objective: KLObjective, noise: Tensor | None) -> Seen:
    """What the network sees under the objective."""
    if objective.mode == "schedule":
        return terms(data, 1, None if noise is None else noise.unsqueeze(1), "iid")
    if objective.mode == "path":
        return path(data, noise)
    if objective.partial is not None:
        return partial_of_terms(data, objective.partial, objective.partial_probabilities, objective.weights, noise)
    seen = terms(data, process.num_terms, noise, objective.draws)
    if objective.mode == "recombined":
        return seen
    return Seen(seen.inputs, seen.noise, term_weights(data.coefficients, objective.weights))


def _times(t: Tensor) -> int:
    return t.shape[1] if t.dim() == 2 else 1
