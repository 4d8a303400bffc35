"""Distilled solvers beside their base: mean squared distance to the fine solution on samples the fit never saw.

`table` is DDIM with "leading" steps on a mixture of twenty Gaussians in 32 dimensions, mean over twenty mixtures;
`families` every solver on its own default schedule and grid, mean over a few mixtures; `digits` a run that
pydiffaccel.train made with --forward vp (--run FOLDER): seconds of a fit and errors. Clusters are narrow, so most of an
error is from the few samples that end in another cluster than they should. Parts that are not run stay in --json as
they were.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import environment
from torch import Tensor

import pydiffaccel as da
from pydiffaccel.solvers import Denoiser, Plan, Point, distill_plan, integrate, make_plan
from pydiffaccel.solvers.make import FAMILIES
from pydiffaccel.solvers.point import output_parts

DIMENSIONS, CLUSTERS = 32, 20
STEPS = (5, 10, 20)
SCHEDULES: dict[str, da.Schedule] = {
    "vp": da.VPSchedule.linear(),
    "flow": da.FlowSchedule(),
    "edm": da.EDMSchedule(),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lambda": {},
    "history": {"parameters": "history"},
    "history, consistent": {"parameters": "history", "consistent": True},
}
# For solvers with inner stages, whose own teacher is of first order.
BETTER_TEACHER = {"lambda, teacher dpm_solver++": {"teacher_solver": "dpm_solver++"}}
GRIDS: dict[str, dict[str, Any]] = {
    "learned grid": {"parameters": "none", "learn_grid": True, "teacher_multiplier": 5},
    "learned grid, lambda": {"learn_grid": True, "teacher_multiplier": 5},
}


def normal(seed: int, rows: int) -> Tensor:
    return torch.randn(rows, DIMENSIONS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Mixture(Denoiser):
    """Data from equally likely Gaussians N(centre, deviation^2 I)."""

    centres: Tensor
    deviation: float

    def __call__(self, x: Tensor, point: Point, output_type: str) -> Tensor:
        variance = point.alpha**2 * self.deviation**2 + point.sigma**2
        offset = x[:, None] - point.alpha * self.centres
        weight = torch.softmax(-offset.square().sum(-1) / (2 * variance), dim=1)
        best = self.centres + point.alpha * self.deviation**2 / variance * offset
        x_0 = (weight[..., None] * best).sum(1)
        p, q = output_parts(output_type, point.alpha, point.sigma)
        return p * x_0 + q * (x - point.alpha * x_0) / point.sigma


def mixture(seed: int, device: torch.device) -> Mixture:
    return Mixture(0.55 * normal(3 + seed, CLUSTERS).to(device), 0.15)


class Errors:
    """Means over mixtures of the distance to the fine solution, for one schedule."""

    def __init__(self, fine: Plan, mixtures: int, device: torch.device) -> None:
        schedule = fine.schedule
        self.samples = []
        for seed in range(mixtures):
            x, held_out = (
                schedule.prior_std * normal(offset + seed, n).to(device) for offset, n in ((1000, 100), (2000, 200))
            )
            model = mixture(seed, device)
            self.samples.append((model, x, held_out, integrate(fine, model, held_out)))

    def of(self, plan: Plan, options: dict[str, Any] | None = None) -> float:
        """The error of a plan, distilled first where there are options for that."""
        total = 0.0
        for model, x, held_out, exact in self.samples:
            made = plan if options is None else distill_plan(plan, model, x, **options)
            total += float((integrate(made, model, held_out) - exact).square().mean()) / len(self.samples)
        return total


def table(mixtures: int, device: torch.device) -> Iterator[dict[str, Any]]:
    errors = Errors(make_plan("ddim", SCHEDULES["vp"], 500), mixtures, device)
    for steps in STEPS:
        plan = make_plan("ddim", SCHEDULES["vp"], steps, spacing="leading")
        row = {"steps": steps, "ddim": errors.of(plan)}
        yield row | {grid: errors.of(plan, {"grid": grid}) for grid in ("official", "aligned")}


def families(mixtures: int, only: str | None, device: torch.device) -> Iterator[dict[str, Any]]:
    errors = {}
    for name, family in FAMILIES.items():
        kind = next(iter(family.spacings))
        for order in family.orders:
            if only is not None and only not in f"{name}-{order}":
                continue
            if kind not in errors:
                errors[kind] = Errors(make_plan("dpm_solver++", SCHEDULES[kind], 300, order=2), mixtures, device)
            variants = {**VARIANTS, **GRIDS} if order == family.orders[0] else {"lambda": VARIANTS["lambda"]}
            if name == "dpm_solver" and order > 1:
                variants |= BETTER_TEACHER
            for steps in STEPS:
                plan = make_plan(name, SCHEDULES[kind], steps, order=order)
                row = {"solver": name, "order": order, "schedule": kind, "steps": steps, "nfe": plan.nfe}
                row["error"] = {"base": errors[kind].of(plan)}
                for key, options in variants.items():
                    row["error"][key] = errors[kind].of(plan, options)
                yield row


def digits(run: Path, device: torch.device) -> Iterator[dict[str, Any]]:
    """Fits on 100 samples; errors on 100 others, to 100 second-order steps."""
    from pydiffaccel.models import load_model
    from pydiffaccel.sampler import draw, start_noise

    model = load_model(str(run), device)
    fit_seeds, held_out = range(1_000_000, 1_000_100), range(2_000_000, 2_000_100)
    fine_plan = make_plan("dpm_solver++", model.schedule, 100, order=2)
    fine = draw(fine_plan, model.denoiser, model.shape, held_out, device=device)
    choices = {"base": None, "lambda": {}, "history": VARIANTS["history"], "learned grid, lambda": {"learn_grid": True}}
    for solver, steps in (("ddim", 5), ("ddim", 10), ("dpm_solver++", 5)):
        plan = make_plan(solver, model.schedule, steps)
        x = start_noise(plan, model.shape, fit_seeds, device)
        row: dict[str, Any] = {"solver": solver, "steps": steps, "nfe": plan.nfe, "error": {}, "seconds": {}}
        row["threads"] = torch.get_num_threads()
        for key, options in choices.items():
            begin = time.perf_counter()
            made = plan if options is None else distill_plan(plan, model.denoiser, x, **options)
            if options is not None:
                row["seconds"][key] = time.perf_counter() - begin
            samples = draw(made, model.denoiser, model.shape, held_out, device=device)
            row["error"][key] = float((samples - fine).double().square().mean())
        yield row | {"training_step": model.training_step}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", type=Path, help="folder of a run for the part `digits`")
    parser.add_argument("--mixtures", type=int, default=5, help="for the part `families`")
    parser.add_argument("--only", help="part of solver-order, as dpm_solver-3")
    parser.add_argument("--parts", default="table,families,digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a mixture or two, one solver of the part `families`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    parts = options.parts.split(",")
    known = json.loads(options.json.read_text()) if options.json is not None and options.json.exists() else {}
    results: dict[str, Any] = {**known, "benchmark": "distill", **environment(device)}
    work = {
        "table": lambda: table(2 if options.quick else 20, device),
        "families": lambda: families(
            1 if options.quick else options.mixtures,
            options.only or ("dpm_solver++-2" if options.quick else None),
            device,
        ),
        "digits": lambda: digits(options.run, device),
    }
    for part in parts:
        if part == "digits" and options.run is None:
            continue
        results[part] = []
        for row in work[part]():
            results[part].append(row)
            print(part, json.dumps(row), flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
