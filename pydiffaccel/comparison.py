"""Several solvers on the same noise: one picture, and a table of evaluations, seconds and errors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pydiffaccel.models import Model
from pydiffaccel.sampler import draw
from pydiffaccel.solvers import Plan, make_plan
from pydiffaccel.trainer.pictures import save_comparison, to_uint8

__all__ = ["Entry", "compare", "fine_solution", "save_sheet", "table"]


@dataclass(frozen=True)
class Entry:
    """One solver at one number of steps.

    Attributes:
        name: the solver's name, or the plan's file.
        plan: its table.
        seconds: for all samples.
        error: mean squared distance to the fine solution.
        samples: ``[N, *]``, as the solver leaves them.
    """

    name: str
    plan: Plan
    seconds: float
    error: float
    samples: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The figures, without the samples."""
        return {
            "name": self.name,
            "solver": self.plan.solver,
            "steps": self.plan.num_steps,
            "nfe": self.plan.nfe,
            "seconds": self.seconds,
            "error": self.error,
        }


def fine_solution(model: Model, num_steps: int) -> Plan:
    """The plan that stands for the exact solution of the model's ODE: second order, uniform in time, many steps."""
    return make_plan("dpm_solver++", model.schedule, num_steps, order=2, spacing="uniform")


def compare(
    model: Model,
    plans: Sequence[tuple[str, Plan]],
    seeds: Sequence[int],
    *,
    fine_steps: int,
    batch_size: int,
    device: torch.device,
) -> list[Entry]:
    """Runs every plan on the noise of the seeds, and the fine solution that they are measured by."""

    def run(plan: Plan) -> Tensor:
        return draw(plan, model.denoiser, model.shape, seeds, batch_size=batch_size, device=device)

    fine = run(fine_solution(model, fine_steps))
    run(plans[0][1])  # so that no clock sees what is only done once
    entries = []
    for name, plan in plans:
        begin = time.perf_counter()
        samples = run(plan)
        seconds = time.perf_counter() - begin
        entries.append(Entry(name, plan, seconds, float((samples - fine).double().square().mean()), samples))
    return entries


def table(entries: Sequence[Entry]) -> str:
    """The figures as text, a line per entry."""
    width = max(6, *(len(entry.name) for entry in entries))
    lines = [f"{'solver':<{width}} {'steps':>6} {'NFE':>5} {'seconds':>8}  error to the fine solution"]
    lines += [
        f"{e.name:<{width}} {e.plan.num_steps:>6} {e.plan.nfe:>5} {e.seconds:>8.2f}  {e.error:.6g}" for e in entries
    ]
    return "\n".join(lines)


def save_sheet(path: Path, entries: Sequence[Entry], model: Model, shown: int, title: str) -> None:
    """The first samples of every entry as one PNG: a row per number of steps, a column per solver."""
    steps = sorted({entry.plan.num_steps for entry in entries})
    names = list(dict.fromkeys(entry.name for entry in entries))
    cells = {
        (steps.index(entry.plan.num_steps), names.index(entry.name)): (
            to_uint8(model.unscale(entry.samples[:shown])),
            f"NFE {entry.plan.nfe}, error {entry.error:.3g}",
        )
        for entry in entries
    }
    save_comparison(path, [f"{n} step{'s' * (n > 1)}" for n in steps], names, cells, title)
