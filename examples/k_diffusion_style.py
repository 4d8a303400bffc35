"""A denoiser of x_0 + sigma noise, as EDM's and k-diffusion's are, sampled with that library's signature.

python examples/k_diffusion_style.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from pydiffaccel.k_diffusion import sample_dpmpp_2m, sample_heun, sample_unipc


def denoiser(x: Tensor, sigma: Tensor, deviation: float = 0.5) -> Tensor:
    """Stands for yours: the best prediction of data whose elements are normal with this deviation."""
    gain = deviation**2 / (deviation**2 + sigma**2)
    return gain.reshape(-1, *(1,) * (x.dim() - 1)) * x


def main() -> dict[str, Tensor]:
    ramp = torch.linspace(80.0 ** (1 / 7), 0.002 ** (1 / 7), 24)
    sigmas = torch.cat([ramp**7, torch.zeros(1)])
    x = 80.0 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    samplers = {"heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m, "unipc": sample_unipc}
    return {name: sampler(denoiser, x, sigmas, {"deviation": 0.5}) for name, sampler in samplers.items()}


if __name__ == "__main__":
    for name, samples in main().items():
        print(f"{name:10} standard deviation {samples.std():.4f}")
