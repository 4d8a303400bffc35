"""Min-SNR-gamma: all times count alike in the error of the data, up to a signal-to-noise ratio of gamma."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pydiffaccel.forward import Process

__all__ = ["min_snr_weight"]


def min_snr_weight(process: Process, t: Tensor, gamma: float = 5.0) -> Tensor:
    """The loss' factor at each time under min-SNR-gamma weighting (2303.09556).

    With SNR = alpha(t)^2 / sigma(t)^2 the squared error of the data is to count min(SNR, gamma) times. The error of
    what the network predicts is that error up to a factor, so the weight is

        sample: min(SNR, gamma)        epsilon: min(SNR, gamma) / SNR        v_prediction: min(SNR, gamma) / (SNR + 1)

    and for flow matching min(SNR, gamma) sigma^2, by the same derivation (the paper has no flow matching). For noise
    levels that do not preserve the variance (a truncated expansion) v_prediction's factor is
    min(SNR, gamma) sigma^2 / (alpha^2 + sigma^2)^2. Products with other weights, as those of a curriculum, are theirs.

    Args:
        process: the forward process, for its noise levels and what is predicted.
        t: times of the process, any shape, as ``[B]`` or ``[B, S]``.
        gamma: a positive number; the paper's choice is 5.

    Returns:
        float64, of t's shape and on its device: a ``weight`` for ``diffusion_loss`` and ``kl_loss``.

    Raises:
        TypeError: gamma is no number, or t is not of the dtype that the process' times have.
        ValueError: gamma is not positive and finite, a time is out of range, or the process' prediction type is "edm",
            whose preconditioning is a weight already.
    """
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)):
        raise TypeError(f"gamma must be a number, got {type(gamma).__name__}")
    if not (math.isfinite(gamma) and gamma > 0):
        raise ValueError(f"gamma must be positive and finite, got {gamma}")
    kind = process.prediction_type
    if kind not in ("epsilon", "sample", "v_prediction", "flow"):
        raise ValueError(
            f"min-SNR weights are for epsilon, sample, v_prediction and flow, got prediction type {kind!r}"
        )
    levels = process.levels(t.flatten())
    alpha, sigma = (level.square().view(t.shape) for level in levels)  # squared
    if kind == "epsilon":
        return torch.clamp(gamma * sigma / alpha, max=1.0)
    # Without noise SNR is infinite and with noise alone it is 0: neither divides by 0 below.
    if kind == "sample":
        return torch.clamp(alpha / sigma, max=gamma)
    capped = torch.minimum(alpha, gamma * sigma)  # min(SNR, gamma) sigma^2
    return capped if kind == "flow" else capped / (alpha + sigma).square()
