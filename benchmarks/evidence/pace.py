"""How long a step of each cell takes, in steps of plain training: trained in turns with it, in one process.

    python -m benchmarks.evidence.pace --set digits

The seconds of whole runs also tell what else the machine did at the time. Here a cell and the reference train some
steps each, again and again; a cell's pace is the median of the ratios. The page multiplies steps by it. The reference
is judged, too, as at a checkpoint: what training and judging all cells once more would take.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.cells import Cell, cells_of
from benchmarks.evidence.judge import Judge
from benchmarks.evidence.run import in_workers, parse, shared_judge
from benchmarks.evidence.train import judged, make_trainer
from benchmarks.evidence.trained import Kept
from benchmarks.harness import environment
from pydiffaccel.networks import default_network
from pydiffaccel.trainer.data import TrainData
from pydiffaccel.trainer.loop import Trainer

REFERENCE = "flow-plain"
STEPS, TURNS = 8, 20  # a turn holds whole windows of a coupling


def clock_of(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" else time.monotonic


def make_endless(cell: Cell, options: Any, train: TrainData, folder: Path) -> Trainer:
    """The training of a cell, with more steps than will be taken."""
    endless = replace(options.data_set, steps=10**6)
    return make_trainer(cell, endless, 0, train, folder, options.device, options.threads)


def stepper(trainer: Trainer) -> Callable[[int], float]:
    """A function that trains so many steps and returns the seconds that they took."""
    clock = clock_of(trainer.options.device)

    def train_steps(count: int) -> float:
        trainer.network.train()
        before = clock()
        for _ in range(count):
            loss, _, _ = trainer.train_step()
        loss.item()  # a GPU is waited for
        return clock() - before

    return train_steps


def judging(trainer: Trainer, options: Any, train: TrainData, judge: Judge) -> float:
    """The seconds that a checkpoint takes to judge."""
    clock, spent = clock_of(options.device), []
    config = default_network(train.shape, trainer.options.channels, trainer.options.layers_per_block)
    for _ in range(1 if options.quick else 3):
        before = clock()
        judged(trainer, config, options.data_set, judge)
        spent.append(clock() - before)
    return statistics.median(spent)


def measured(cell: Cell, options: Any, train: TrainData, judge: Judge) -> dict[str, Any]:
    """A cell beside the reference."""
    reference = next(one for one in cells_of(options.data_set.name) if one.name == REFERENCE)
    steps, turns = (1, 2) if options.quick else (STEPS, TURNS)
    with tempfile.TemporaryDirectory() as folder:
        trainers = [
            make_endless(one, options, train, Path(folder) / place)
            for one, place in ((cell, "cell"), (reference, "reference"))
        ]
        ours, theirs = map(stepper, trainers)
        ours(steps)
        theirs(steps)
        pairs = [(ours(steps), theirs(steps)) for _ in range(turns)]
        checkpoint = judging(trainers[1], options, train, judge) if cell.name == REFERENCE else None
    ratios = [mine / other for mine, other in pairs]
    return {
        "cell": cell.name,
        "pace": statistics.median(ratios),
        "error": 1.25 * statistics.stdev(ratios) / len(ratios) ** 0.5,  # the median's standard error
        "milliseconds_of_a_step": 1000 * statistics.median(mine for mine, _ in pairs) / steps,
        **({} if checkpoint is None else {"seconds_of_a_checkpoint": checkpoint}),
    }


def work(options: Any, deadline: float) -> int:
    """One worker: takes the first cell that nobody has; returns how many it measured."""
    os.nice(options.nice)
    torch.set_num_threads(options.threads)
    train, test = options.data_set.load(options.data)
    judge = shared_judge(options, train, test)
    head = {**environment(torch.device(options.device)), "recipe": {"steps": STEPS, "turns": TURNS, "of": REFERENCE}}
    folder, done = options.data_set.name, 0
    kept = Kept(options.results / folder / "pace.json", head, ("cell",), options.work / folder)
    for cell in cells_of(folder):
        if not re.search(options.only, cell.name) or time.monotonic() > deadline:
            continue
        with kept.turn(cell.name) as mine:
            if mine:
                kept.add([measured(cell, options, train, judge)])
                done += 1
    return done


def main(arguments: list[str] | None = None) -> int:
    return in_workers(work, parse(arguments, __doc__))


if __name__ == "__main__":
    sys.exit(main())
