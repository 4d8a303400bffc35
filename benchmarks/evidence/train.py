"""One cell with one seed: trained by the project's trainer, judged at fixed checkpoints."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evidence.cells import BATCH, Cell
from benchmarks.evidence.judge import FIRST_SEED, Judge
from benchmarks.evidence.sets import DataSet
from pydiffaccel.coupling import KNN, Coupling, Scaled
from pydiffaccel.forward import Process, VPProcess
from pydiffaccel.networks import NetworkConfig, build_network, default_network
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.sampler import sample
from pydiffaccel.schedule import VPSchedule
from pydiffaccel.solvers import make_plan
from pydiffaccel.trainer.build import make_coupling, make_curriculum, make_process, make_schedulers
from pydiffaccel.trainer.checkpoint import load_checkpoint, newest_whole, read_json, write_json
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import BatchOrder, TrainData
from pydiffaccel.trainer.ema import make_emas
from pydiffaccel.trainer.loop import Trainer
from pydiffaccel.trainer.pictures import to_uint8
from pydiffaccel.trainer.run import RunFolder

__all__ = ["make_trainer", "options_of", "process_of", "solver_of", "train_cell"]

SHOWN = 8  # samples that are kept for the picture


def options_of(cell: Cell, data_set: DataSet, seed: int, folder: Path, device: str, threads: int) -> TrainOptions:
    """The training of a cell: as many network evaluations in all as ``data_set.steps`` of a plain batch."""
    options = TrainOptions(
        **{
            "output_dir": folder,
            "seed": seed,
            "channels": data_set.channels,
            "train_batch_size": BATCH,
            "max_train_steps": data_set.steps,
            "checkpointing_steps": 10**9,
            "checkpoints_total_limit": 1,
            "device": device,
            "num_threads": threads,
            **data_set.flags,
            **cell.flags,
        }
    )
    spent = options.train_batch_size * options.evaluations_per_image
    return replace(options, max_train_steps=round(data_set.steps * BATCH / spent))


def process_of(cell: Cell, options: TrainOptions) -> Process:
    """The forward process, with the noise levels shifted where the cell says so."""
    if cell.log_snr_shift == 1:
        return make_process(options)
    kept = VPSchedule.linear().alphas_cumprod
    ratio = kept / (1 - kept) * cell.log_snr_shift**2
    return VPProcess(schedule=VPSchedule(ratio / (1 + ratio)), prediction_type=options.prediction_type)


def coupling_of(cell: Cell, options: TrainOptions, data: TrainData) -> Coupling:
    """The coupling, KNN centred on the mean of all images where the cell says so."""
    if not cell.center:
        return make_coupling(options)
    total = torch.zeros(data.shape, dtype=torch.float64)
    for start in range(0, len(data), 4096):
        rows = range(start, min(len(data), start + 4096))
        total += data.batch(torch.tensor(rows).numpy()).double().sum(0)
    center = (total / len(data)).float().to(options.device) * options.data_scale
    return Scaled(options.data_scale, KNN(options.knn_k, options.knn_metric, center))


def solver_of(process: Process) -> str:
    """The sampler that all cells of an objective are judged with."""
    return "euler" if process.schedule.kind == "flow" else "ddim"


def make_trainer(
    cell: Cell, data_set: DataSet, seed: int, train: TrainData, folder: Path, device: str, threads: int
) -> Trainer:
    """The training of a cell with a seed, before its first step."""
    options = options_of(cell, data_set, seed, folder, device, threads)
    process = process_of(cell, options)
    config = default_network(train.shape, options.channels, options.layers_per_block)
    network = build_network(config, seed=seed).to(device)
    if options.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True)
    folder.mkdir(parents=True, exist_ok=True)
    return Trainer(
        network=network,
        process=process,
        coupling=coupling_of(cell, options, train),
        optimizer=optimizer,
        data=train,
        options=options,
        curriculum=make_curriculum(options, process),
        schedulers=make_schedulers(options, optimizer),
        emas=make_emas(network, options),
    )


def train_cell(
    cell: Cell,
    data_set: DataSet,
    seed: int,
    train: TrainData,
    judge: Judge,
    folder: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    deadline: float = float("inf"),
) -> dict[str, Any] | None:
    """The figures of a cell with a seed; None where the deadline (of time.monotonic) came first.

    The folder keeps checkpoints and figures, so that a second call goes on where the first one stopped.
    """
    torch.set_num_threads(threads)
    torch.compiler.reset()  # one program for each network, however many a process trains
    trainer = make_trainer(cell, data_set, seed, train, folder, device, threads)
    options = trainer.options
    config = default_network(train.shape, options.channels, options.layers_per_block)
    run, figures = RunFolder(folder), folder / "figures.json"
    newest = newest_whole(run.checkpoints)
    if newest is not None:
        trainer.load(load_checkpoint(newest, check=False))
    kept: dict[str, Any] = read_json(figures) if figures.exists() else {"rows": [], "shown": {}, "cpu_seconds": 0.0}
    rows: list[dict[str, Any]] = [row for row in kept["rows"] if row["step"] <= trainer.step]
    spent, judging, shown = kept["cpu_seconds"], kept.get("judge_cpu_seconds", 0.0), kept["shown"]
    # Other work on the machine does not count; what a GPU does takes no time of the host's.
    clock = time.process_time if device == "cpu" else time.monotonic
    for share in data_set.checkpoints:
        step = max(1, round(share * options.max_train_steps))
        if any(row["step"] == step for row in rows):
            continue
        before = clock()
        whole = trainer.fit(run, stop=lambda step=step: trainer.step >= step or time.monotonic() > deadline)
        spent += clock() - before
        if not whole and trainer.step < step:
            write_json(figures, {"rows": rows, "shown": shown, "cpu_seconds": spent, "judge_cpu_seconds": judging})
            return None
        before = clock()
        found, shown = judged(trainer, config, data_set, judge)
        judging += clock() - before
        rows.append(
            {
                "step": trainer.step,
                "images": trainer.step * options.images_per_step,
                "evaluations": trainer.step * options.images_per_step * options.evaluations_per_image,
                "seconds": trainer.seconds,
                "cpu_seconds": spent,
                "coupling_seconds": trainer.coupling_seconds,
                "figures": found,
            }
        )
        write_json(figures, {"rows": rows, "shown": shown, "cpu_seconds": spent, "judge_cpu_seconds": judging})
        trainer.network.train()
    before = clock()
    noise = noise_law(trainer.coupling, train, options, min(8192, 10 * data_set.num_samples))
    judging += clock() - before
    return {"seed": seed, "rows": rows, "judge_cpu_seconds": judging, "shown": shown, "noise": noise}


def judged(
    trainer: Trainer, config: NetworkConfig, data_set: DataSet, judge: Judge
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Figures of the averaged network at each number of evaluations, and its first samples as base64 of uint8."""
    found, shown = {}, {}
    for count in data_set.evaluations:
        images, _ = sample(
            trainer.sampling_network.eval(),
            config.shape,
            range(FIRST_SEED, FIRST_SEED + data_set.num_samples),
            process=trainer.process,
            coupling=trainer.coupling,
            plan=make_plan(solver_of(trainer.process), trainer.process, count),
            batch_size=250,
            device=trainer.device,
        )
        found[str(count)] = judge(images)
        shown[str(count)] = base64.b64encode(to_uint8(images[:SHOWN]).tobytes()).decode()
    return found, shown


def first_axis(x: Tensor, rounds: int = 100) -> Tensor:
    """The direction ``[D]`` of length 1 in which rows x ``[N, D]`` of mean 0 vary most, by the power method."""
    product = x.T @ x
    axis = product.diagonal()
    for _ in range(rounds):
        axis = product @ axis
        axis = axis / axis.norm()
    return axis


def noise_law(coupling: Coupling, data: TrainData, options: TrainOptions, rows: int) -> dict[str, float]:
    """The noise that the coupling gives to the data, as plain noise would have: 1, about (D / rows)^(1/2), 1, 0.

    mean_square is that of all elements, mean_norm the norm of the mean noise, top_variance the variance along the
    direction in which the data varies most, cost_reduction how much nearer the noise is than plain noise.
    """
    order, n = BatchOrder(len(data), 1), options.train_batch_size * options.coupling_window
    images, noises, plain = [], [], []
    for step in range(-(-rows // n)):
        x = coupling.scale_data(data.batch(order.indices(step * n, n), torch.device(options.device)))
        # Far from the steps of the training, and after every warm-up.
        images.append(x.flatten(1))
        noises.append(coupling(x, seed=1, step=10**6 + step).flatten(1))
        plain.append(gaussian_noise(x, 1, 10**6 + step, 0).flatten(1))
    x, noise, independent = (torch.cat(parts).double() for parts in (images, noises, plain))
    top = first_axis(x - x.mean(0))
    return {
        "mean_square": float(noise.square().mean()),
        "mean_norm": float(noise.mean(0).norm()),
        "top_variance": float((noise @ top).var()),
        "cost_reduction": float(1 - (x - noise).square().sum() / (x - independent).square().sum()),
    }
