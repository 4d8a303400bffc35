"""Inpainting by sampling with a mask: the lower half of unseen digits, given the upper half.

The denoiser's prediction of the data gets the known pixels put back at every evaluation, so the known part of the state
runs along its own noise to the known values, and the model fits the rest to it. A few rounds of adding noise and
sampling again let both parts agree better, as RePaint (2201.09865) does.

    python examples/inpainting.py            # about a minute
    python examples/inpainting.py --quick    # seconds, a worse model
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

import pydiffaccel as da
from pydiffaccel.networks import build_network, default_network
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.solvers.denoiser import conversion
from pydiffaccel.solvers.point import Point
from pydiffaccel.trainer.data import load_digits

HELD_OUT = 297  # digits that the model never sees


class Masked(da.Denoiser):
    """A denoiser whose prediction of the data has the known values [B, *] where known [B, *] is True."""

    def __init__(self, inner: da.Denoiser, values: Tensor, known: Tensor) -> None:
        self.inner, self.values, self.known = inner, values, known
        self.schedule = inner.schedule

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        data = torch.where(self.known, self.values, self.inner(x, point, "sample"))
        of_state, of_data = conversion("sample", output_type, point)
        return of_state * x + of_data * data


def inpaint(
    denoiser: da.Denoiser, process: da.Process, values: Tensor, known: Tensor, *, seed: int = 0, rounds: int = 3
) -> Tensor:
    """Samples [B, *] that have the values [B, *] where known [B, *] is True."""
    masked = Masked(denoiser, values, known)
    x = da.integrate(da.make_plan("euler", process, 10), masked, gaussian_noise(values, seed))
    late = [0.3 + 0.1 * step for step in range(7)]  # the second half or so of the way from noise to data
    for number in range(1, rounds):
        t = torch.full((len(x),), late[0], dtype=torch.float64)
        x = process.add_noise(x, gaussian_noise(values, seed, number), t)
        x = da.integrate(da.make_plan("euler", process, timesteps=late), masked, x)
    return torch.where(known, values, x)  # they are there already, up to rounding


def train(images: Tensor, steps: int, channels: tuple[int, ...]) -> tuple[torch.nn.Module, da.Process]:
    """Flow matching with the network of the training command."""
    channel, height, width = images.shape[1:]
    network, process = build_network(default_network((channel, height, width), channels)).train(), da.FlowProcess()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x = images[torch.randint(len(images), (64,))]
        t = process.sample_timesteps(len(x), seed=0, step=step)
        loss = da.diffusion_loss(network, x, t, process=process, noise=gaussian_noise(x, 0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return network.eval(), process


def main(quick: bool = False) -> dict[str, float]:
    """Trains, inpaints, and returns errors on the unknown pixels, and how far the whole is from the nearest digit."""
    torch.manual_seed(0)
    digits = load_digits()
    images = digits.batch(np.arange(len(digits)))
    seen, truth = images[:-HELD_OUT], images[-HELD_OUT:]
    network, process = train(seen, 150 if quick else 600, (16,) if quick else ())
    denoiser = da.wrap_model(network, prediction_type="flow", time_scale=process.time_scale, schedule=process.schedule)

    known = torch.zeros_like(truth, dtype=torch.bool)
    known[:, :, :4] = True
    several = torch.stack([inpaint(denoiser, process, truth, known, seed=seed) for seed in range(4)])
    unrelated = da.integrate(da.make_plan("euler", process, 10), denoiser, gaussian_noise(truth, 0))
    fills = {
        "mean of the digits": torch.where(known, truth, seen.mean(0)),
        "a sample that looks at nothing": torch.where(known, truth, unrelated),
        "inpainted": several[0],
        "mean of 4 inpaintings": several.mean(0),
    }
    figures = {"largest change of a known pixel": float((several - truth)[:, known].abs().max())}
    for name, filled in fills.items():
        nearest = torch.cdist(filled.flatten(1), seen.flatten(1)).amin(1)
        figures[f"error, {name}"] = float((filled - truth)[~known].square().mean())
        figures[f"distance, {name}"] = float(nearest.square().mean() / truth[0].numel())
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    print(f"the lower half of {HELD_OUT} digits: mean squared error, and mean squared distance to the nearest digit:")
    for name, value in main(parser.parse_args().quick).items():
        print(f"  {name:44} {value:.3f}")
