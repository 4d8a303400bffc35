"""Noise of the gradient under the draws of KL diffusion, at equal numbers of network evaluations.

A small network is trained on the packaged digits for a moment. Then, with the network fixed, the gradient of the loss
is drawn many times, and the trace of its covariance is compared:

- "noise": images and times are fixed, only noises are drawn. Baseline: M independent noises per image.
- "step": images, times and noises are all drawn, as from step to step. Baseline: DDPM on M times as many images.

A ratio below 1 is less noise than the baseline. Ratios do not depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from harness import environment
from torch import Tensor, nn

from pydiffaccel import KLProcess, VPProcess, VPSchedule, diffusion_loss, kl_loss
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.trainer.data import BatchOrder, load_digits

IMAGES = 16
GROUPS = 10
TYPES = ("epsilon", "sample", "v_prediction")
DRAWS = ("iid", "antithetic", "orthogonal")
# Bands of times, for where the draws matter.
BANDS = ((0, 50), (50, 200), (200, 500), (500, 1000))


class Network(nn.Module):
    """Three layers on 64 pixels and 32 features of the time."""

    def __init__(self, pixels: int, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, -9.2, 16)))
        self.layers = nn.Sequential(
            nn.Linear(pixels + 32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, pixels)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        phase = time[:, None] * self.frequencies
        return self.layers(torch.cat([x, phase.sin(), phase.cos()], 1))


@dataclass(frozen=True)
class Row:
    """One comparison: the trace of the gradient's covariance over the baseline's, and the ratio's standard error."""

    measure: str
    prediction_type: str
    terms: int
    times: str
    weights: str
    draws: str
    baseline: str
    ratio: float
    error: float


class Bench:
    def __init__(self, prediction_type: str, draws: int, steps: int, device: torch.device) -> None:
        self.kind, self.draws, self.device = prediction_type, draws, device
        self.process = VPProcess(schedule=VPSchedule.linear(), prediction_type=prediction_type)
        digits = load_digits()
        self.order = BatchOrder(len(digits), 0)
        self.pixels = digits.batch(range(len(digits))).flatten(1).to(device)
        torch.manual_seed(0)
        self.network = Network(self.pixels.shape[1], 128).to(device)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=2e-3)
        self.losses = []
        for step in range(steps):
            x, t = self.data(step, 128)
            loss = diffusion_loss(self.network, x, t, process=self.process, noise=gaussian_noise(x, 0, step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            self.losses.append(loss.item())

    def data(self, step: int, images: int, first: int = 0, last: int = 1000) -> tuple[Tensor, Tensor]:
        """Images, and times in first .. last - 1, of a step."""
        x = self.pixels[self.order.indices(step * images, images)]
        t = self.process.sample_timesteps(images, seed=0, step=step, device=self.device)
        return x, first + t * (last - first) // 1000

    def traces(self, loss: Callable[[int], Tensor]) -> list[float]:
        """The trace of the covariance of the gradient of loss(step) over steps, from each of GROUPS sets of steps."""
        found, count = [], self.draws // GROUPS
        for group in range(GROUPS):
            mean, square = 0.0, 0.0
            for step in range(group * count, (group + 1) * count):
                gradients = torch.autograd.grad(loss(10_000 + step), list(self.network.parameters()))
                flat = torch.cat([gradient.flatten() for gradient in gradients]).double()
                mean, square = mean + flat / count, square + flat.square().sum().item() / count
            found.append((square - mean.square().sum().item()) * count / (count - 1))
        return found

    def rows(self, terms: tuple[int, ...], bands: bool) -> list[Row]:
        rows = []
        for count in terms:
            rows += self.by_noise(count, 0, 1000)
            rows += self.by_step(count)
        for first, last in BANDS if bands else ():
            rows += self.by_noise(4, first, last)
        return rows

    def by_noise(self, terms: int, first: int, last: int) -> list[Row]:
        x, t = self.data(1, IMAGES, first, last)
        process = KLProcess(VPSchedule.linear(), terms, prediction_type=self.kind)

        def trace(weights: str, draws: str) -> list[float]:
            return self.traces(
                lambda step: kl_loss(
                    self.network, x, t, process=process, weights=weights, draws=draws, seed=1, step=step
                )
            )

        baseline = trace("uniform", "iid")
        return [
            self.row("noise", terms, f"{first}..{last - 1}", weights, draws, "M independent noises", found, baseline)
            for weights in ("uniform", "coefficient")
            for draws in DRAWS
            for found in [baseline if (weights, draws) == ("uniform", "iid") else trace(weights, draws)]
        ]

    def by_step(self, terms: int) -> list[Row]:
        process = KLProcess(VPSchedule.linear(), terms, prediction_type=self.kind)

        def many_images(step: int) -> Tensor:
            x, t = self.data(step, IMAGES * terms)
            return diffusion_loss(self.network, x, t, process=self.process, noise=gaussian_noise(x, 1, step))

        def one_loss(step: int, **options: Any) -> Tensor:
            x, t = self.data(step, IMAGES)
            return kl_loss(self.network, x, t, process=process, seed=1, step=step, **options)

        baseline = self.traces(many_images)
        cases = [(weights, draws) for weights in ("uniform", "coefficient") for draws in DRAWS]
        return [
            self.row(
                "step",
                terms,
                "0..999",
                weights,
                draws,
                "batch x M",
                self.traces(lambda step, w=weights, d=draws: one_loss(step, weights=w, draws=d)),
                baseline,
            )
            for weights, draws in cases
        ]

    def row(
        self,
        measure: str,
        terms: int,
        times: str,
        weights: str,
        draws: str,
        baseline: str,
        found: list[float],
        reference: list[float],
    ) -> Row:
        ratio = statistics.mean(found) / statistics.mean(reference)
        spread = [statistics.stdev(values) / statistics.mean(values) / GROUPS**0.5 for values in (found, reference)]
        error = 0.0 if found is reference else ratio * (spread[0] ** 2 + spread[1] ** 2) ** 0.5
        row = Row(measure, self.kind, terms, times, weights, draws, baseline, ratio, error)
        print(
            f"{measure:6} {self.kind:13} {terms:3} {times:9} {weights:12} {draws:11} {ratio:7.3f} +- {error:.3f}",
            flush=True,
        )
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description="kl_draws: noise of the gradient, ratios against named baselines")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--quick", action="store_true", help="fewer draws, one number of terms")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    draws, steps, terms = (60, 200, (4,)) if chosen.quick else (400, 2000, (2, 4, 8))
    print(f"kl_draws on {environment(device)['device']}: {IMAGES} images, {draws} draws, {steps} training steps")
    print("measure prediction   M    times     weights      draws         ratio")
    rows, trained = [], {}
    for kind in TYPES:
        bench = Bench(kind, draws, steps, device)
        trained[kind] = statistics.mean(bench.losses[-100:])
        rows += bench.rows(terms, bands=not chosen.quick)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        setting = {"images": IMAGES, "draws": draws, "training_steps": steps, "loss_after_training": trained}
        record = {"benchmark": "kl_draws", **environment(device), **setting, "rows": [asdict(row) for row in rows]}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
