"""How much nearer couplings bring the noise of smooth images: figures that theory and other programs give, too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import KNN, Coupling, Hungarian
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import total


def mixture(count: int) -> Tensor:
    """Images about ten smooth ones (1 / f, standard deviation 0.5), clipped to [-1, 1]: ``[count, 3, 32, 32]``."""
    g = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]) + 1 / 32

    def smooth(images: int) -> np.ndarray:
        waves = g.standard_normal((images, 3, 32, 32)) + 1j * g.standard_normal((images, 3, 32, 32))
        found = np.fft.ifft2(waves / frequency).real
        return found / found.std((1, 2, 3), keepdims=True)

    images = 0.5 * smooth(10)[g.integers(10, size=count)] + 0.3 * smooth(count)
    return torch.from_numpy(images.clip(-1, 1)).float()


def reduction(coupling: Coupling, x: Tensor) -> float:
    """By how many per cent the squared distance is smaller."""
    return 100 * (1 - total(x, coupling(x, seed=3)) / total(x, gaussian_noise(x, 3)))


@pytest.mark.parametrize(("batch", "expected"), [(128, 3.2), (1024, 3.9)])
def test_the_assignment_of_a_mixture_of_images(batch: int, expected: float) -> None:
    assert reduction(Hungarian(), mixture(batch)) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(("k", "expected"), [(4, 2.6), (8, 3.6), (16, 4.4), (64, 5.8)])
def test_the_nearest_of_k_noises(k: int, expected: float) -> None:
    x = mixture(1024)
    x = 0.5 * x / x.std((1, 2, 3), keepdim=True)
    assert reduction(KNN(k), x) == pytest.approx(expected, abs=0.3)
