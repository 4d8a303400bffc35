"""Sampling with a network of one's own: plan, denoiser, integrate.

python examples/own_loop.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pydiffaccel as da


class Network(nn.Module):
    """Stands for yours: noise prediction from the state [B, 8], the time [B] and a label [B]; label 0 is none."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = nn.Embedding(4, 8)
        self.layers = nn.Sequential(nn.Linear(9, 32), nn.SiLU(), nn.Linear(32, 8))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x + self.labels(label), t[:, None] / 1000], dim=1))
        return out


def main() -> Tensor:
    torch.manual_seed(0)
    network, x_T = Network().eval(), torch.randn(6, 8)

    plan = da.make_plan("dpm_solver++", da.VPSchedule.linear(1000), num_steps=10, order=2)
    denoiser = da.wrap_model(network, prediction_type="epsilon")
    labels = {"label": torch.tensor([1, 1, 2, 2, 3, 3])}
    samples = da.integrate(plan, denoiser, x_T, condition=labels)

    # With classifier-free guidance, both predictions in one call:
    nothing = {"label": torch.tensor([0])}
    guided = da.integrate(plan, denoiser, x_T, condition=labels, unconditional=nothing, guidance_scale=3.0)

    # With fresh noise in every step, a function of each sample's seed alone:
    noisy = da.make_plan("dpm_solver++", da.VPSchedule.linear(1000), num_steps=20, stochastic=True)
    random = da.integrate(noisy, denoiser, x_T, condition=labels, seeds=range(6))
    return torch.stack([samples, guided, random])


if __name__ == "__main__":
    print(tuple(main().shape))
