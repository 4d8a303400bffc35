"""Training objectives: mean squared error of a network's answer, plain and over Karhunen-Loeve terms.

A perfect network reaches zero under each of them, with every coupling and prediction type: the noise that made the
input is the noise in the target.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype, per_sample
from pydiffaccel.coupling import Coupling
from pydiffaccel.forward import KLProcess, Process
from pydiffaccel.forward.process import check_batch
from pydiffaccel.noise import derive_seed
from pydiffaccel.ops import kl_components

__all__ = ["Model", "coupled_noises", "diffusion_loss", "kl_loss"]

REDUCTIONS = ("mean", "none")


class Model(Protocol):
    """A network ``model(x_t, time)`` with x_t ``[B, *]`` and time float32 ``[B]``.

    It answers with a tensor of x_t's shape, or an object that holds one as ``.sample`` (diffusers).
    """

    def __call__(self, x_t: Tensor, time: Tensor, /) -> object: ...


def diffusion_loss(
    model: Model,
    x0: Tensor,
    t: Tensor,
    *,
    process: Process,
    noise: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Mean squared error between the network's answer and the process' target (DDPM, 2006.11239, equation 14).

    Args:
        model: the network; it receives ``process.model_input`` of ``process.add_noise(x0, noise, t)`` and
            ``process.model_time(t)``.
        x0: data ``[B, *]``, floating point.
        t: times ``[B]`` of the process.
        process: the forward process.
        noise: ``[B, *]``, from a coupling.
        weight: a factor per sample, ``[B]``; None is 1.
        reduction: "mean" over the batch, or "none" for one loss per sample, ``[B]``.

    Returns:
        The loss in float32 (float64 for float64 data), averaged over the elements of a sample.

    Raises:
        TypeError: x0 is no floating-point tensor, or the network answers with no tensor.
        ValueError: a shape does not fit, an empty batch under "mean", or an unknown reduction.
    """
    _check_reduction(x0, reduction)
    target = process.target(x0, noise, t)
    state = process.model_input(process.add_noise(x0, noise, t), t)
    answer = _answer(model, state, process.model_time(t))
    return _reduce(_mean_square(answer, target), weight, reduction)


def kl_loss(
    model: Model,
    x0: Tensor,
    t: Tensor,
    *,
    process: KLProcess,
    mode: str = "component",
    seed: int = 0,
    step: int = 0,
    first_sample: int = 0,
    noise: Tensor | None = None,
    weights: str = "coefficient",
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss of KL diffusion (2503.17657, whose exact loss is not public): each term noises the data on its own.

    Mode "component": with Z_1 .. Z_M ~ N(0, I) per sample, (alpha, s) = ``process.levels(t)`` and
    x^(k) = alpha x_0 + s Z_k,

        loss = sum_k w_k(t) |answer(x^(k), t) - target(x_0, Z_k, t)|^2,

    the M evaluations in one call of the network on a batch of B M. It has DDPM's minimiser, and with M = 1 it is
    ``diffusion_loss`` on the VP process bit for bit. It costs M network evaluations per sample: the fair baseline is
    ``diffusion_loss`` on M noises per sample, or on a batch of B M.

    Args:
        model, x0, t, weight, reduction: as in ``diffusion_loss``; the network sees samples in the order
            (0, term 1), .., (0, term M), (1, term 1), ..
        process: the KL process, for M, alpha, s (sigma, or sigma_M without ``renormalise``) and the coefficients.
        mode: "component".
        seed, step, first_sample: what the noises are drawn from where none are given: Z_1 is ``gaussian_noise``.
        noise: Z, ``[B, M, *]``, for noises from a coupling (``coupled_noises``).
        weights: "coefficient" for w_k = c_k(t)^2 / sum_j c_j(t)^2, or "uniform" for 1 / M.

    Raises:
        TypeError: process is no KLProcess, or as ``diffusion_loss``.
        ValueError: an unknown mode or weights, or as ``diffusion_loss``.
    """
    _check_reduction(x0, reduction)
    if not isinstance(process, KLProcess):
        raise TypeError(f"kl_loss needs a KLProcess, got {type(process).__name__}")
    if mode != "component":
        raise ValueError(f"mode must be 'component', got {mode!r}")
    if weights not in ("coefficient", "uniform"):
        raise ValueError(f"weights must be 'coefficient' or 'uniform', got {weights!r}")
    check_batch(x0, x0, t)
    terms = process.num_terms
    shape = (len(x0), terms, *x0.shape[1:])
    if noise is not None and noise.shape != shape:
        raise ValueError(f"noise must be [B, M, *] = {shape}, got {tuple(noise.shape)}")

    dtype = compute_dtype(x0)
    coefficients = process.terms(t)
    alpha, level = process.levels(t)
    noised = None
    if noise is None:
        noised, noise = kl_components(
            x0, alpha.to(x0.device, dtype), level.to(x0.device, dtype), terms, seed, step, first_sample
        )
    alpha, level = per_sample(alpha, noise), per_sample(level, noise)
    data, noise = x0.to(dtype).unsqueeze(1), noise.to(dtype)
    if noised is None:
        noised = (alpha * data + level * noise).to(x0.dtype)
    if process.prediction_type == "epsilon":
        target = noise
    elif process.prediction_type == "sample":
        target = data.expand(shape)
    else:
        target = alpha * noise - level * data
    answer = _answer(model, noised.flatten(0, 1), process.model_time(t).repeat_interleave(terms))
    losses = _mean_square(answer, target.flatten(0, 1)).view(-1, terms)
    return _reduce((losses * _term_weights(coefficients, weights).to(losses)).sum(1), weight, reduction)


def coupled_noises(
    coupling: Coupling,
    x: Tensor,
    num_terms: int,
    *,
    seed: int = 0,
    step: int = 0,
    first_sample: int = 0,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Noises ``[B, num_terms, *]`` for ``kl_loss``, each term coupled to the data on its own.

    Term 0 is ``coupling(x, seed=seed, step=step, ...)``; each further term has a seed derived from seed.

    Raises:
        ValueError: num_terms < 1, or what the coupling raises.
    """
    if num_terms < 1:
        raise ValueError(f"num_terms must be at least 1, got {num_terms}")
    seeds = [seed, *(derive_seed(seed, f"kl-term-{k}") for k in range(1, num_terms))]
    draws = [
        coupling(x, seed=term_seed, step=step, first_sample=first_sample, labels=labels, mask=mask)
        for term_seed in seeds
    ]
    return torch.stack(draws, 1)


def _term_weights(coefficients: Tensor, weights: str) -> Tensor:
    """w_k ``[B, M]``, float64, each row of sum 1."""
    uniform = torch.full_like(coefficients, 1 / coefficients.shape[1])
    if weights == "uniform":
        return uniform
    square = coefficients.square()
    total = square.sum(1, keepdim=True)
    # Without noise at the first index (alphabar = 1) all coefficients are 0.
    return torch.where(total > 0, square / total, uniform)


def _answer(model: Model, x_t: Tensor, time: Tensor) -> Tensor:
    output = model(x_t, time)
    tensor = output if isinstance(output, Tensor) else getattr(output, "sample", None)
    if not isinstance(tensor, Tensor):
        raise TypeError(f"the model must answer with a tensor or an object with .sample, got {type(output).__name__}")
    if tensor.shape != x_t.shape:
        # Subtraction would broadcast silently.
        raise ValueError(
            f"the model must answer in the shape of its input, {tuple(x_t.shape)}, got {tuple(tensor.shape)}"
        )
    return tensor


def _mean_square(answer: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each row, ``[rows]``, in the target's dtype."""
    return (answer.to(target.dtype) - target).square().flatten(1).mean(1)


def _check_reduction(x0: Tensor, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    if reduction == "mean" and x0.dim() and len(x0) == 0:
        raise ValueError("x0 must hold at least one sample for reduction 'mean'")


def _reduce(losses: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is not None:
        if weight.shape != losses.shape:
            raise ValueError(f"weight must have shape {tuple(losses.shape)}, got {tuple(weight.shape)}")
        losses = losses * weight.to(losses)
    return losses.mean() if reduction == "mean" else losses
