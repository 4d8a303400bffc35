"""Paths around an obstacle: action sequences [B, T, A] of different lengths, told their task.

A path leads from the left to the right of a square, above or below a disk in its middle. The average of both ways runs
into the disk, so regression fails here, and a diffusion model need not.

    python examples/planning.py            # about half a minute
    python examples/planning.py --quick    # seconds, a worse planner
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn

import pydiffaccel as da

LONGEST, RADIUS = 20, 0.35


def make_tasks(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tasks [n, 3], heights of the start at x = -1, the goal at x = 1 and the disk at x = 0; lengths [n], 12 to 20."""
    heights = (torch.rand(n, 3, generator=generator) * 2 - 1) * torch.tensor([0.4, 0.4, 0.2])
    return heights, torch.randint(12, LONGEST + 1, (n,), generator=generator)


def real_steps(lengths: Tensor) -> Tensor:
    """Which steps of the LONGEST are real, bool [B, T]; the others are padding."""
    return torch.arange(LONGEST) < lengths[:, None]


def progress(lengths: Tensor) -> Tensor:
    """How far along its path a step is, 0 to 1 [B, T]."""
    return (torch.arange(LONGEST) / (lengths[:, None] - 1)).clamp(max=1)


def straight(tasks: Tensor, lengths: Tensor) -> Tensor:
    """The paths [B, T, 2] that look at no obstacle."""
    u = progress(lengths)
    start, goal = tasks[:, :1], tasks[:, 1:2]
    return torch.stack([2 * u - 1, start + (goal - start) * u], 2) * real_steps(lengths)[..., None]


def demonstrate(tasks: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Good paths [B, T, 2], half of them above the disk."""
    side = torch.randint(2, (len(tasks),), generator=generator) * 2 - 1
    room = 0.1 + 0.1 * torch.rand(len(tasks), generator=generator)
    middle = tasks[:, 2] + side * (RADIUS + room)
    bend = middle - tasks[:, :2].mean(1)
    paths = straight(tasks, lengths)
    paths[..., 1] += bend[:, None] * torch.sin(math.pi * progress(lengths))
    return paths * real_steps(lengths)[..., None]


def success(paths: Tensor, tasks: Tensor, lengths: Tensor) -> Tensor:
    """Which paths start and end where they should, take no leaps and stay out of the disk, bool [B]."""
    disk = torch.stack([torch.zeros(len(tasks)), tasks[:, 2]], 1)
    ends = torch.stack([torch.tensor([-1.0, 1.0]).expand(len(tasks), 2), tasks[:, :2]], 2)
    last = paths[torch.arange(len(paths)), lengths - 1]
    arrives = (torch.stack([paths[:, 0], last], 1) - ends).norm(dim=2).amax(1) < 0.15
    moves = paths[:, 1:] - paths[:, :-1]
    between = paths[:, :-1, None] + moves[:, :, None] * torch.linspace(0, 1, 9)[:, None]  # [B, T - 1, 9, 2]
    real = real_steps(lengths)[:, 1:]
    clear = ((between - disk[:, None, None]).norm(dim=3).amin(2) > RADIUS) | ~real
    steady = (moves.norm(dim=2) < 0.5) | ~real
    good: Tensor = arrives & clear.all(1) & steady.all(1)
    return good


class Block(nn.Module):
    """A residual convolution over the steps, scaled and shifted by what the whole path is told."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv1d(width, width, 5, padding=2))
        self.told = nn.Linear(width, 2 * width)
        self.out = nn.Conv1d(width, width, 5, padding=2)

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.told(told)[:, :, None].chunk(2, dim=1)
        out: Tensor = h + self.out(torch.nn.functional.silu(self.layers(h) * (1 + scale) + shift))
        return out


class Planner(nn.Module):
    """Velocities [B, T, 2] from noisy paths [B, T, 2], the time [B], the tasks [B, 3] and the lengths [B].

    Its answer is 0 at padding, as data and noise are, so padding adds nothing to the loss and stays 0 in sampling.
    """

    def __init__(self, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.told = nn.Sequential(nn.Linear(10, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv1d(4, width, 5, padding=2)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.last = nn.Conv1d(width, 2, 5, padding=2)

    def forward(self, x: Tensor, t: Tensor, tasks: Tensor, lengths: Tensor) -> Tensor:
        real = real_steps(lengths).to(x)
        waves = t[:, None] / 1000 * math.pi * torch.tensor([1.0, 2.0, 4.0])  # the process says 1000 at the data
        told = self.told(torch.cat([tasks, lengths[:, None] / LONGEST, waves.sin(), waves.cos()], 1))
        h = self.first(torch.cat([x.mT, progress(lengths)[:, None], real[:, None]], 1))
        for block in self.blocks:
            h = block(h, told)
        out: Tensor = self.last(h).mT * real[..., None]
        return out


def main(quick: bool = False) -> dict[str, float]:
    """Trains and returns the success rates."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    steps, batch = 600 if quick else 2000, 64 if quick else 128
    network, process = Planner(), da.FlowProcess()
    coupling = da.Standardized(da.Hungarian())  # each coordinate counts alike when paths and noises are paired
    optimizer = torch.optim.Adam(network.parameters(), lr=6e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        tasks, lengths = make_tasks(batch, generator)
        paths, mask = demonstrate(tasks, lengths, generator), real_steps(lengths)
        noise = coupling(paths, step=step, mask=mask) * mask[..., None]
        t = process.sample_timesteps(batch, seed=0, step=step)
        condition = {"tasks": tasks, "lengths": lengths}
        loss = da.diffusion_loss(network, paths, t, process=process, noise=noise, condition=condition)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()

    tasks, lengths = make_tasks(500, generator)
    network.eval()
    denoiser = da.wrap_model(network, prediction_type="flow", time_scale=process.time_scale)
    start = torch.randn(500, LONGEST, 2, generator=generator) * real_steps(lengths)[..., None]
    given = {
        "random paths": start,
        "straight lines": straight(tasks, lengths),
        "demonstrations": demonstrate(tasks, lengths, generator),
    }
    figures = {name: rate(success(paths, tasks, lengths)) for name, paths in given.items()}
    for evaluations in (1, 2, 10):
        plan = da.make_plan("euler", process, evaluations)
        found = da.integrate(plan, denoiser, start, condition={"tasks": tasks, "lengths": lengths})
        good = success(found, tasks, lengths)
        figures[f"planned, {evaluations} evaluation{'s' * (evaluations > 1)}"] = rate(good)
    above = found[torch.arange(len(found)), lengths // 2, 1] > tasks[:, 2]
    figures["of these, above the disk"] = rate(above[good])
    figures["largest value at padding"] = float(found[~real_steps(lengths)].abs().max())
    return figures


def rate(good: Tensor) -> float:
    """The share of True."""
    return float(good.double().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    for name, value in main(parser.parse_args().quick).items():
        print(f"{name:40} {value:.1%}")
