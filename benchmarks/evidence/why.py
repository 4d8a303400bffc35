"""Why a method helps or harms, and sampling remedies, on the networks of trained cells.

    python -m benchmarks.evidence.why --set digits

Needs the cells that it names to be trained (benchmarks.evidence.run, the same --work). For each network:

- its figure with so many evaluations that only the network decides ("fine"), and how far few evaluations end from
  there: what a coupling changes in the network, and what in the straightness of the paths;
- how wrong the image is that the first evaluation implies, for held-out images and the noise that the coupling gives
  them: 1 is the mean image, less is what the pairing tells, more is rounding that the prediction type blows up;
- the figures where sampling starts from a Gaussian with the mean and covariance of the selected noise instead of
  N(0, I), and where the implied image is clipped to the range of the data.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.judge import FIRST_SEED, Judge
from benchmarks.evidence.run import in_workers, parse
from benchmarks.evidence.trained import Session, Trained
from pydiffaccel.coupling import Coupling
from pydiffaccel.noise import noise_for_seeds
from pydiffaccel.solvers import Denoiser, Plan, clip_denoised, integrate, make_plan
from pydiffaccel.trainer.data import BatchOrder, TrainData

CELLS = (
    *(f"{objective}-{name}" for objective in ("flow", "eps", "v") for name in ("plain", "hungarian", "knn-l24")),
    *("flow-knn-l24-centred", "eps-knn-l24-centred", "flow-knn-l28", "eps-knn-l28", "flow-preset", "v-preset"),
)
FINE = 50
LAW_ROWS = 16_384


def selected(coupling: Coupling, data: TrainData, rows: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``[rows, D]`` and the noise that the coupling gives them, from steps that no training takes."""
    order, images, noises = BatchOrder(len(data), 2), [], []
    for step in range(-(-rows // batch)):
        x = data.batch(order.indices(step * batch, batch), device)
        images.append(x.flatten(1))
        noises.append(coupling(x, seed=2, step=2 * 10**6 + step).flatten(1))
    return torch.cat(images)[:rows], torch.cat(noises)[:rows]


def gaussian_like(noise: Tensor, plain: Tensor) -> Tensor:
    """plain ``[n, *]`` with the mean and covariance of noise ``[N, D]``."""
    law = noise.double()
    mean, factor = law.mean(0), torch.linalg.cholesky(law.T.cov())
    return (mean + plain.flatten(1).double() @ factor.T).to(plain.dtype).view_as(plain)


def implied_error(one: Trained, plan: Plan, held_out: TrainData, batch: int, device: torch.device) -> float:
    """Mean square error of the image that the first evaluation implies, over the variance of the images."""
    x, noise = selected(one.coupling, held_out, 4 * batch, batch, device)
    start = plan.start
    with torch.no_grad():
        state = (start.alpha * x + start.sigma * noise).view(-1, *one.shape)
        implied = one.denoiser(state, start, "sample").flatten(1)
    return float((implied - x).square().mean() / (x - x.mean(0)).square().mean())


def scaled(noise: Tensor, plan: Plan) -> Tensor:
    """Noise of standard deviation 1 as the plan starts from it."""
    return noise * plan.schedule.prior_std_at(plan.start.t)


def sampled(plan: Plan, denoiser: Denoiser, noise: Tensor) -> Tensor:
    """What a plan makes of noise ``[n, *]``."""
    return torch.cat([integrate(plan, denoiser, part).cpu() for part in noise.split(250)])


def measured(one: Trained, options: Any, judge: Judge, train: TrainData, test: TrainData) -> dict[str, Any]:
    """Everything about a network."""
    begun = time.process_time()
    device, batch = torch.device(options.device), one.options.train_batch_size * one.options.coupling_window
    schedule, flow = one.process.schedule, one.process.schedule.kind == "flow"
    solver, counts = "euler" if flow else "ddim", options.data_set.evaluations
    fine_plan = make_plan("adams_bashforth" if flow else "unipc", schedule, 4 if options.quick else FINE)
    seeds = range(FIRST_SEED, FIRST_SEED + options.data_set.num_samples)
    noise = noise_for_seeds(one.shape, seeds, device=device)
    starts = {"plain": noise}
    if one.cell.flags.get("coupling") == "knn":
        _, chosen = selected(one.coupling, train, LAW_ROWS, batch, device)
        starts["law"] = gaussian_like(chosen, noise)
    plans = {count: make_plan(solver, schedule, count) for count in counts}
    row: dict[str, Any] = {"cell": one.cell.name, "seed": one.seed, "fine_nfe": fine_plan.nfe, "fine": {}}
    row["implied_error"] = implied_error(one, plans[max(counts)], test, batch, device)
    for start, states in starts.items():
        fine = sampled(fine_plan, one.denoiser, scaled(states, fine_plan))
        row["fine"][start] = judge(fine)
        spread = (fine - fine.mean(0)).square().mean()
        for count, plan in plans.items():
            first = scaled(states, plan)
            images = sampled(plan, one.denoiser, first)
            row.setdefault(start, {})[str(count)] = {
                "off": float((images - fine).square().mean() / spread),
                "figures": judge(images),
                "clipped": judge(sampled(plan, clip_denoised(one.denoiser), first)),
            }
    row["cpu_seconds"] = time.process_time() - begun
    return row


def work(options: Any, deadline: float) -> int:
    """One worker: takes the first network that nobody has; returns how many it measured."""
    session, done = Session.of(options, deadline, "why.json", ("cell", "seed")), 0
    for one in session.networks(CELLS):
        with session.kept.turn(one.cell.name, one.seed) as mine:
            if mine:
                session.kept.add([measured(one, options, session.judge, session.train, session.test)])
                print(f"{one.cell.name} seed {one.seed} done", flush=True)
                done += 1
    return done


def main(arguments: list[str] | None = None) -> int:
    return in_workers(work, parse(arguments, __doc__))


if __name__ == "__main__":
    sys.exit(main())
