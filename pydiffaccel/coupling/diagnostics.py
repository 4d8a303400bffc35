"""What a coupling did to a batch: how much nearer its noises are, whether they are still Gaussian, how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pydiffaccel._tensors import compute_dtype
from pydiffaccel.coupling._checks import checked
from pydiffaccel.noise import gaussian_noise

__all__ = ["CouplingDiagnostics", "diagnose"]


@dataclass(frozen=True)
class CouplingDiagnostics:
    """Figures of one batch. Nothing waits for a GPU before ``to_dict`` is called.

    Attributes:
        cost_reduction: float64 scalar tensor: by how many % ``sum |x_i - n_i|^2`` is smaller than with the plain noises
            of the rows.
        mean_square: float64 scalar tensor: the mean of the noise's squared elements; 1 for Gaussian noise.
        milliseconds: returns how long the pairing took, in ms; waits for its end on a GPU. None where nobody measured.
    """

    cost_reduction: Tensor
    mean_square: Tensor
    milliseconds: Callable[[], float] | None = None

    def to_dict(self) -> dict[str, float]:
        """The figures as numbers, by the names that the trainer logs them under."""
        figures = {
            "cost_reduction": float(self.cost_reduction),
            "noise_mean_square": float(self.mean_square),
        }
        if self.milliseconds is not None:
            figures["coupling_ms"] = self.milliseconds()
        return figures


def diagnose(
    x: Tensor,
    noise: Tensor,
    *,
    seed: int = 0,
    step: int = 0,
    first_sample: int = 0,
    mask: Tensor | None = None,
    milliseconds: Callable[[], float] | None = None,
) -> CouplingDiagnostics:
    """Compares noise with the plain noises of the rows, ``gaussian_noise(x, seed, step, first_sample)``; O(B D).

    Args:
        x: the data as it was paired, ``[B, *]``.
        noise: what the coupling returned for it.
        seed, step, first_sample, mask: what the coupling was called with. Padding does not count.
        milliseconds: passed on.

    Raises:
        TypeError, ValueError: as the coupling; ValueError also where noise has not the shape of x.
    """
    x, _, mask = checked(x, None, mask)
    if noise.shape != x.shape:
        raise ValueError(f"noise must have the shape of x, {tuple(x.shape)}, got {tuple(noise.shape)}")
    with torch.no_grad():
        dtype = compute_dtype(x)
        plain = gaussian_noise(x, seed, step, first_sample)
        tensors = [tensor.detach().to(dtype) for tensor in (x, noise, plain)]
        if mask is not None:
            tensors = [torch.where(mask, tensor, 0) for tensor in tensors]
        data, chosen, before = (tensor.reshape(-1) for tensor in tensors)
        data, factor = _scaled(data)
        squares = _products(data, data)
        length = _products(chosen, chosen)
        # Both divided by factor^2, factor by factor: its square need not be a number.
        cost = squares - 2 * _products(data, chosen) / factor + length / factor / factor
        plain_cost = squares - 2 * _products(data, before) / factor + _products(before, before) / factor / factor
        count = torch.full_like(length, x.numel()) if mask is None else mask.sum().double()
        # An empty batch is not 0 / 0 per cent nearer.
        reduction = torch.where(plain_cost > 0, 100 * (1 - cost / plain_cost), 0.0)
        return CouplingDiagnostics(reduction, length / count.clamp(min=1), milliseconds)


def _scaled(data: Tensor) -> tuple[Tensor, Tensor]:
    """data without those of its magnitudes whose squares overflow, and the power of two (at least 1, float64) that it
    was divided by; exact where nothing underflows."""
    if data.numel() == 0:
        return data, data.new_ones((), dtype=torch.float64)
    _, exponent = torch.frexp(data.abs().amax())
    # What is left is below 8, and the factor a number.
    exponent = exponent.clamp(min=0, max=125 if data.dtype == torch.float32 else 1021)
    factor = torch.ldexp(torch.ones_like(data[0]), exponent)
    return data / factor, factor.double()


def _products(a: Tensor, b: Tensor) -> Tensor:
    """<a, b>, a float64 scalar, added up in float32 over runs short enough for it."""
    if a.numel() == 0:
        return a.new_zeros((), dtype=torch.float64)
    width = 1 << 14
    runs, rest = a.numel() // width, a.numel() % width
    whole = a.numel() - rest
    total: Tensor = torch.linalg.vecdot(a[:whole].view(runs, width), b[:whole].view(runs, width)).double().sum()
    total += torch.dot(a[whole:], b[whole:])
    return total
