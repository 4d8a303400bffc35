"""Exact denoisers: data distributions whose best prediction, and whose sampling trajectory, have a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel.solvers import Denoiser, Point
from pydiffaccel.solvers.point import output_parts


def as_output(x: Tensor, x_0: Tensor, point: Point, output_type: str) -> Tensor:
    """The prediction of the given type that belongs to the data prediction x_0 at the state x."""
    p, q = output_parts(output_type, point.alpha, point.sigma)
    noise = (x - point.alpha * x_0) / point.sigma
    return p * x_0 + q * noise


@dataclass(frozen=True)
class GaussianDenoiser(Denoiser):
    """Data N(mean, deviation^2), independent in every coordinate; mean and deviation broadcast over a sample."""

    mean: Tensor
    deviation: Tensor

    def spread(self, point: Point) -> Tensor:
        return torch.sqrt(point.alpha**2 * self.deviation**2 + point.sigma**2)

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        gain = point.alpha * self.deviation**2 / self.spread(point) ** 2
        return as_output(x, self.mean + gain * (x - point.alpha * self.mean), point, output_type)

    def exact(self, x: Tensor, start: Point, end: Point) -> Tensor:
        """Where the probability-flow ODE takes x."""
        scale = self.spread(end) / self.spread(start)
        return end.alpha * self.mean + scale * (x - start.alpha * self.mean)


@dataclass(frozen=True)
class MixtureDenoiser(Denoiser):
    """Data from equally likely Gaussians N(centre, deviation^2 I); centres [K, D], states [B, D]. Nonlinear."""

    centres: Tensor
    deviation: float

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        variance = point.alpha**2 * self.deviation**2 + point.sigma**2
        offset = x[:, None] - point.alpha * self.centres
        weight = torch.softmax(-offset.square().sum(-1) / (2 * variance), dim=1)
        best = self.centres + point.alpha * self.deviation**2 / variance * offset
        return as_output(x, (weight[..., None] * best).sum(1), point, output_type)


@dataclass(frozen=True)
class Recorder(Denoiser):
    """Passes on to another denoiser and keeps every call."""

    inner: Denoiser
    calls: list[tuple[Tensor, Point, str, Tensor]]

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        output = self.inner(x, point, output_type)
        self.calls.append((x.clone(), point, output_type, output.clone()))
        return output


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """Standard normal float64 draws from their own generator: normal(seed, *shape)."""

    def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

    return draw


@pytest.fixture
def gaussian() -> GaussianDenoiser:
    mean = torch.tensor([0.3, -0.7, 0.0, 1.2], dtype=torch.float64)
    return GaussianDenoiser(mean, torch.tensor([0.5, 0.2, 1.0, 0.8], dtype=torch.float64))


@pytest.fixture
def isotropic() -> GaussianDenoiser:
    return GaussianDenoiser(torch.zeros((), dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))


@pytest.fixture
def mixture(normal: Callable[..., Tensor]) -> MixtureDenoiser:
    return MixtureDenoiser(normal(3, 6, 8), 0.3)


@pytest.fixture
def record() -> Callable[[Denoiser], Recorder]:
    return lambda inner: Recorder(inner, [])
