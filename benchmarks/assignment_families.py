"""Cost matrices for the assignment benchmark: images against Gaussian noise, and what solvers are published on."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# Images beside the repository's folder; the family is left out, and said so, where they are absent.
CIFAR = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg" / "train.zip"
DIMENSIONS = 3 * 32 * 32


def against_noise(x: np.ndarray, generator: np.random.Generator) -> Tensor:
    """-<x, n> for noises n of x's shape: squared distances but for what each row or column adds alike."""
    noise = generator.standard_normal(x.shape, dtype=np.float32)
    return torch.from_numpy(-(x.astype(np.float32) @ noise.T))


def spectrum(count: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Smooth random images of standard deviation 0.5: ``[count, 3072]``."""
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None]) + 1 / 32
    shape = (count, 3, 32, 32)
    waves = (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / frequency**exponent
    modes = np.fft.ifft2(waves).real.reshape(count, -1)
    return modes / modes.std(1, keepdims=True) * 0.5


def gmm(rows: int) -> Tensor:
    """A mixture of ten smooth random images (1/f spectrum)."""
    generator = np.random.default_rng(0)
    modes = spectrum(10, 1, generator)
    x = modes[generator.integers(10, size=rows)] + 0.1 * generator.standard_normal((rows, DIMENSIONS))
    return against_noise(x.clip(-1, 1), generator)


def images(rows: int) -> Tensor:
    """Images of their own each, smooth and of different brightness: rows compete for the same noises."""
    generator = np.random.default_rng(1)
    x = spectrum(rows, 1.5, generator) + 0.5 * generator.standard_normal((rows, 1))
    return against_noise(x.clip(-1, 1), generator)


def patches(rows: int) -> Tensor:
    """32 x 32 crops of the two photographs that scikit-learn bundles."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(2)
    photographs = [photograph.astype(np.float32) / 127.5 - 1 for photograph in load_sample_images().images]
    x = np.empty((rows, DIMENSIONS), dtype=np.float32)
    for row in range(rows):
        photograph = photographs[generator.integers(len(photographs))]
        top, left = (generator.integers(size - 31) for size in photograph.shape[:2])
        x[row] = photograph[top : top + 32, left : left + 32].ravel()
    return against_noise(x, generator)


def cifar(rows: int) -> Tensor:
    """The images of CIFAR-10, in an order drawn at random."""
    from PIL import Image

    generator = np.random.default_rng(3)
    with zipfile.ZipFile(CIFAR) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = generator.choice(len(names), rows, replace=False)
        x = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(names[k])))).ravel() for k in chosen])
    return against_noise(x.astype(np.float32) / 127.5 - 1, generator)


def uniform(rows: int) -> Tensor:
    return torch.rand(rows, rows, generator=torch.Generator().manual_seed(0))


def integers(rows: int) -> Tensor:
    return (10 * uniform(rows)).floor()


def constant(rows: int) -> Tensor:
    return torch.full((rows, rows), 2.5)


def log_normal(rows: int) -> Tensor:
    return (3 * torch.randn(rows, rows, generator=torch.Generator().manual_seed(0))).exp()


def points(rows: int) -> Tensor:
    """Squared distances in the unit square."""
    left, right = torch.rand(2, rows, 2, generator=torch.Generator().manual_seed(0))
    return torch.cdist(left, right) ** 2


def outer_product(rows: int) -> Tensor:
    left, right = torch.rand(2, rows, generator=torch.Generator().manual_seed(0))
    return torch.outer(left, right)


SMALL = (64, 128, 512, 1024)
LARGE = (*SMALL, 2048, 4096, 8192)

# Each family with its sizes: large ones where a goal or the growth asks for them.
FAMILIES: dict[str, tuple[Callable[[int], Tensor], tuple[int, ...]]] = {
    "gmm": (gmm, LARGE),
    "images": (images, (*SMALL, 2048, 4096)),
    "patches": (patches, LARGE),
    "cifar": (cifar, LARGE),
    "uniform": (uniform, LARGE),
    "integer 0..9": (integers, (*SMALL, 4096)),
    "constant": (constant, (*SMALL, 4096)),
    "log-normal": (log_normal, (*SMALL, 4096)),
    "points": (points, (*SMALL, 2048)),
    "outer product": (outer_product, (*SMALL, 2048)),
}


def available() -> dict[str, tuple[Callable[[int], Tensor], tuple[int, ...]]]:
    """FAMILIES without those whose images are absent, which is printed."""
    found = dict(FAMILIES)
    if not CIFAR.exists():
        print(f"no CIFAR images at {CIFAR}: that family is left out")
        del found["cifar"]
    try:
        patches(1)
    except Exception as error:  # scikit-learn absent or without its photographs
        print(f"no photographs from scikit-learn ({error}): the family patches is left out")
        del found["patches"]
    return found
