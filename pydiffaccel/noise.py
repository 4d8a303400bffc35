"""Counter-based randomness: every draw is a pure function of (seed, step, sample index, element).

Nothing here reads or moves torch's global generators, so a batch can be split over ranks, chunks or threads and
regenerated at will (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pydiffaccel.ops.gaussian_noise import gaussian_noise

__all__ = ["derive_seed", "gaussian_noise", "noise_for_seeds", "permutation", "uniform"]


def derive_seed(seed: int, purpose: str) -> int:
    """An int64 seed for one purpose, statistically independent of the seeds of all other purposes.

    Args:
        seed: the run's seed, any int that fits in 64 bits.
        purpose: what the draws are for, as ``"timesteps"``.

    Raises:
        TypeError: seed is no int.
        ValueError: seed does not fit in 64 bits.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits, got {seed}")
    digest = hashlib.blake2b(purpose.encode(), key=(seed % 2**64).to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# A compiled graph holds the derived seed as a constant. This is what torch.compiler.assume_constant_result does, less
# its import of torch._dynamo, which takes a second.
derive_seed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def uniform(
    n: int, *, seed: int, step: int = 0, first_sample: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """n draws, float64 in [0, 1): draw j is a pure function of (seed, step, first_sample + j).

    They are Phi(z) of one standard normal each, so they are as reproducible as ``gaussian_noise``.
    """
    z = gaussian_noise(torch.empty(n, 1, device=device), seed, step, first_sample)[:, 0].double()
    # Phi rounds to 1 only for z > 8.2; the largest z that 32 bits can make is 6.8.
    u: Tensor = torch.special.erfc(z * -math.sqrt(0.5)) * 0.5
    return u


def noise_for_seeds(
    shape: Sequence[int],
    seeds: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Gaussian noise ``[len(seeds), *shape]`` in which each sample depends on its own seed alone."""
    out = torch.empty(len(seeds), *shape, dtype=dtype, device=device)
    for row, seed in enumerate(seeds):
        out[row] = gaussian_noise(out[row : row + 1], seed)[0]
    return out


def permutation(n: int, seed: int) -> NDArray[np.int64]:
    """The numbers 0 .. n - 1, int64 ``[n]``, in an order that depends on the seed alone.

    Args:
        n: how many, at least 0.
        seed: any int; its lowest 64 bits count.
    """
    # Sorting raw 64-bit words: the bit generator's stream is a promise of NumPy, Generator.permutation is not.
    return np.argsort(np.random.Philox(key=seed % 2**64).random_raw(n), kind="stable")
