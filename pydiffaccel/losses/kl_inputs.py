"""What the network sees, and what it is to answer, under each mode of ``kl_loss``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.losses.draws import chosen_terms, mixed, orthogonal, partial_uniforms
from pydiffaccel.ops import kl_components, kl_sample

__all__ = ["Noised", "Place", "Seen", "partial_of_terms", "path", "term_weights", "terms"]


@dataclass(frozen=True)
class Place:
    """What noises are a function of, beside the sample's place in the batch."""

    seed: int
    step: int
    first_sample: int


@dataclass(frozen=True)
class Noised:
    """Data ``[B, *]`` at its noise levels.

    Attributes:
        x0: the data.
        alpha, level: float64 ``[B, 1]``, or ``[B, S]`` for several times of each sample.
        coefficients: c_k, float64 ``[B, M]`` or ``[B, S, M]``; of no term where none is needed.
        place: what noises that are not given are a function of.
    """

    x0: Tensor
    alpha: Tensor
    level: Tensor
    coefficients: Tensor
    place: Place

    def state(self, noise: Tensor) -> Tensor:
        """alpha x_0 + level noise ``[B, E, *]`` in the data's dtype, rounded as ``Process.add_noise`` does."""
        alpha, level = self._levels(noise)
        dtype = compute_dtype(self.x0)
        return (alpha * self.x0.to(dtype).unsqueeze(1) + level * noise.to(dtype)).to(self.x0.dtype)

    def target(self, noise: Tensor, prediction_type: str) -> Tensor:
        """What a perfect network answers, as ``Process.target``: ``[B, E, *]``, in the dtype of computation."""
        dtype = compute_dtype(self.x0)
        data, noise = self.x0.to(dtype).unsqueeze(1), noise.to(dtype)
        if prediction_type == "epsilon":
            return noise
        if prediction_type == "sample":
            return data.expand(noise.shape)
        alpha, level = self._levels(noise)
        return alpha * noise - level * data

    def _levels(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and level to multiply ``[B, E, *]`` with."""
        dtype, ones = compute_dtype(self.x0), (1,) * (noise.dim() - 2)
        alpha, level = (value.to(noise.device, dtype) for value in (self.alpha, self.level))
        return alpha.view(*alpha.shape, *ones), level.view(*level.shape, *ones)


@dataclass(frozen=True)
class Seen:
    """E evaluations of the network for each sample.

    Attributes:
        inputs: ``[B, E, *]`` in the data's dtype.
        noise: the noise in each, likewise.
        factor: what each error counts, float64 ``[B, E]``; None where all count alike.
    """

    inputs: Tensor
    noise: Tensor
    factor: Tensor | None = None


def terms(data: Noised, count: int, noise: Tensor | None, draws: str) -> Seen:
    """alpha x_0 + level Z_k for the first `count` terms; noise is ``[B, count, *]`` or None."""
    if noise is None:
        x0, place = data.x0, data.place
        alpha, level = (value[:, 0].to(x0.device, compute_dtype(x0)) for value in (data.alpha, data.level))
        native = "iid" if draws == "orthogonal" else draws
        inputs, noise = kl_components(x0, alpha, level, count, place.seed, place.step, place.first_sample, native)
        if native == draws:
            return Seen(inputs, noise)
        noise = orthogonal(noise)
    return Seen(data.state(noise), noise)


def partial_of_terms(data: Noised, chosen: int, probabilities: str, weights: str, noise: Tensor | None) -> Seen:
    """alpha x_0 + level Z_k for terms chosen at random, with w_k / (m p_k) as factors; no other Z_k is drawn."""
    x0, place, coefficients = data.x0, data.place, data.coefficients
    count, device = coefficients.shape[1], coefficients.device
    u = partial_uniforms(len(x0), place.seed, place.step, place.first_sample, device)
    wanted = term_weights(coefficients, weights)
    if probabilities == "uniform":
        index = chosen_terms(None, count, chosen, u)
        factor = wanted.gather(1, index) * (count / chosen)
    else:
        p = term_weights(coefficients, "coefficient")
        index = chosen_terms(p, count, chosen, u)
        factor = wanted.gather(1, index) / (chosen * p.gather(1, index))
    if noise is not None:
        mine = noise[torch.arange(len(x0), device=noise.device).unsqueeze(1), index.to(noise.device)]
        return Seen(data.state(mine), mine, factor)
    # At a level of 0 the operator would not see which term is meant; this one is 0 beside any data.
    least = data.level.clamp(min=1e-150).unsqueeze(2).expand(-1, chosen, 1)
    rows = torch.zeros(len(x0), chosen, count, dtype=torch.float64, device=device)
    rows = rows.scatter(2, index.unsqueeze(2), least).to(x0.device)
    alpha = data.alpha.expand(-1, chosen).to(x0.device)
    return Seen(*kl_sample(x0, alpha, rows, place.seed, place.step, place.first_sample), factor)


def path(data: Noised, noise: Tensor | None) -> Seen:
    """alpha x_0 + level sum_k c_k Z_k / sigma_M at every time, with the same Z_k of a sample at all of them."""
    x0, place, coefficients = data.x0, data.place, data.coefficients
    length = coefficients.square().sum(2, keepdim=True).sqrt()
    # Where there is no noise yet, that of Z_1: as kl_sample does.
    first = (torch.arange(coefficients.shape[2], device=coefficients.device) == 0).to(coefficients)
    unit = torch.where(length > 0, coefficients / length, first)
    if noise is not None:
        mine = mixed(unit, noise)
        return Seen(data.state(mine), mine)
    rows = (data.level.unsqueeze(2) * unit).to(x0.device)
    return Seen(*kl_sample(x0, data.alpha.to(x0.device), rows, place.seed, place.step, place.first_sample))


def term_weights(coefficients: Tensor, weights: str) -> Tensor:
    """w_k ``[B, M]``, float64, each row of sum 1."""
    uniform = torch.full_like(coefficients, 1 / coefficients.shape[1])
    if weights == "uniform":
        return uniform
    square = coefficients.square()
    total = square.sum(1, keepdim=True)
    # Without noise at the first index (alphabar = 1) all coefficients are 0.
    return torch.where(total > 0, square / total, uniform)
