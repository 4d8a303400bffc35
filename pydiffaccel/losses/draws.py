"""The noises of KL losses: coupled to the data, orthogonal to each other, or a random few of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling import Coupling
from pydiffaccel.noise import derive_seed, uniform

__all__ = ["chosen_terms", "coupled_noises", "mixed", "orthogonal", "partial_uniforms"]


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


def orthogonal(noise: Tensor) -> Tensor:
    """Noises ``[B, M, *]`` turned so that those of a sample are orthogonal, their lengths and the first one kept.

    Z_k becomes |Z_k| q_k, with q_1, q_2, .. the Gram-Schmidt frame of Z_1, Z_2, .. of a sample. q_k is uniform on the
    sphere and independent of |Z_k|, so each noise is N(0, I) as before; only their joint law changes (orthogonal random
    features, 1610.09072). More noises than the D elements of one sample cannot be orthogonal: then each D in a row are.

    Args:
        noise: independent Gaussian noises, float32, float64, float16 or bfloat16.

    Returns:
        The same shape and dtype.
    """
    terms, size = noise.shape[1], math.prod(noise.shape[2:])
    if terms == 1 or size < 2:
        return noise
    flat = noise.flatten(2)
    return torch.cat([_orthogonal_block(block) for block in flat.split(size, 1)], 1).view(noise.shape)


def _orthogonal_block(noise: Tensor) -> Tensor:
    """``orthogonal`` for ``[B, m, D]`` with m <= D."""
    terms, size = noise.shape[1:]
    if terms == 1:
        return noise
    # Nearly as many as there are dimensions may be nearly dependent: float64, and a second time for what rounding left.
    close = 2 * terms > size
    with torch.autocast(noise.device.type, enabled=False):
        wide = noise.double() if close else noise.to(compute_dtype(noise))
        frame = _frame_of(_frame_of(wide)) if close else _frame_of(wide)
        turned = (wide.norm(dim=2, keepdim=True) * frame).to(noise.dtype)
    # Noises so nearly dependent that float64 finds no frame (less than once in a million samples, and only where m is
    # about D) stay as they are.
    whole = turned.isfinite().flatten(1).all(1)
    turned = torch.where(whole[:, None, None], turned, noise)
    return torch.cat([noise[:, :1], turned[:, 1:]], 1)


def _frame_of(rows: Tensor) -> Tensor:
    """The Gram-Schmidt frame of the rows of ``[B, m, D]``, by the Cholesky factor of their Gram matrix in float64.

    NaN where the factorisation breaks down.
    """
    factor, failed = torch.linalg.cholesky_ex((rows @ rows.mT).double())
    factor = torch.where(failed[:, None, None] == 0, factor, torch.nan)
    one = torch.eye(rows.shape[1], dtype=torch.float64, device=rows.device).expand_as(factor)
    frame: Tensor = torch.linalg.solve_triangular(factor, one, upper=False).to(rows.dtype) @ rows
    return frame


def chosen_terms(probabilities: Tensor | None, terms: int, chosen: int, u: Tensor) -> Tensor:
    """Term numbers int64 ``[B, chosen]`` by systematic sampling: term k is there chosen * p_k times on average.

    The points (u + j) / chosen, j = 0 .. chosen - 1, are looked up in the cumulated probabilities: the count of term k
    is chosen * p_k rounded up or down (Kish 1965, "Survey Sampling", chapter 4).

    Args:
        probabilities: p_k ``[B, terms]``, float64, rows of sum 1; None is 1 / terms, where chosen = terms picks each
            term once, in order.
        terms, chosen: 1 <= chosen <= terms.
        u: uniform draws in [0, 1), float64 ``[B]``.
    """
    points = u.unsqueeze(1) + torch.arange(chosen, device=u.device)
    if probabilities is None:
        return (points * (terms / chosen)).long().clamp_(max=terms - 1)
    # The last bound is exactly 1, also where the last terms have probability 0: such a term is never chosen.
    bounds = probabilities.cumsum(1)
    return torch.searchsorted(bounds / bounds[:, -1:], points / chosen, right=True)


def partial_uniforms(n: int, seed: int, step: int, first_sample: int, device: torch.device) -> Tensor:
    """The draw u of each sample for ``chosen_terms``, float64 ``[n]``; made on the CPU, alike for every device."""
    return uniform(n, seed=derive_seed(seed, "kl-partial"), step=step, first_sample=first_sample).to(device)


def mixed(unit: Tensor, noise: Tensor) -> Tensor:
    """sum_k unit[b, s, k] noise[b, k] for unit ``[B, S, M]`` and noise ``[B, M, *]``: ``[B, S, *]``, noise's dtype."""
    dtype = compute_dtype(noise)
    with torch.autocast(noise.device.type, enabled=False):
        total = torch.bmm(unit.to(noise.device, dtype), noise.to(dtype).flatten(2))
    return total.view(*unit.shape[:2], *noise.shape[2:]).to(noise.dtype)
