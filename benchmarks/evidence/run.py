"""Trains and judges all cells of a data set, some at a time; what is done is not done again.

    python -m benchmarks.evidence.run --set digits --workers 2
    python -m benchmarks.evidence.run --set cifar32 --device cuda --minutes 8.5 --work /tmp/evidence --by seed

One JSON per cell goes to --results; checkpoints of unfinished cells to --work. Seconds are CPU seconds of one thread on
the CPU (other work on the machine does not count) and seconds of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.cells import Cell, cells_of
from benchmarks.evidence.judge import Judge, make_judge
from benchmarks.evidence.sets import CIFAR_FOLDER, SETS, DataSet
from pydiffaccel.trainer.checkpoint import read_json, write_json
from pydiffaccel.trainer.data import TrainData

RESULTS = Path(__file__).resolve().parents[1] / "results" / "evidence"
FORMAT = 1


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process may work on something; others are refused, or wait, until it lets go or ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def definition(cell: Cell, data_set: DataSet) -> dict[str, Any]:
    """What the figures of a cell depend on, beside the program and the machine."""
    words = ("about", "method")  # may be put in other words
    settings = {name: value for name, value in asdict(cell).items() if name not in words}
    return {
        "format": FORMAT,
        "cell": {**settings, "flags": dict(cell.flags)},
        "set": {**asdict(data_set), "flags": dict(data_set.flags)},
    }


def stored(path: Path, wanted: dict[str, Any], device: str, judged_by: str | None = None) -> list[dict[str, Any]]:
    """The seeds that a file has, where it is of the same definition and machine: seconds of two are not compared; and,
    where its hash is given, judged by the same network."""
    if not path.exists():
        return []
    found, wanted = read_json(path), json.loads(json.dumps(wanted))
    found["cell"] = {name: value for name, value in found["cell"].items() if name in wanted["cell"]}
    same = found["device"] == device and all(found.get(key) == value for key, value in wanted.items())
    same = same and judged_by in (None, found["recipe"]["features"]["hash"])
    return list(found["seeds"]) if same else []


def jobs(options: argparse.Namespace) -> Iterator[tuple[Cell, range]]:
    """Cells with the seeds that are to be trained of them in this turn."""
    chosen = [cell for cell in cells_of(options.data_set.name) if re.search(options.only, cell.name)]
    everything = range(options.seeds)
    for turn in [everything] if options.by == "cell" else [range(seed, seed + 1) for seed in everything]:
        yield from ((cell, turn) for cell in chosen)


def shared_judge(options: argparse.Namespace, train: TrainData, test: TrainData) -> Judge:
    """The judge of all processes with the same --work."""
    keep = options.work / options.data_set.name / "judge.safetensors"
    with claim(keep.with_suffix(".lock"), wait=True):
        return make_judge(train, test, torch.device(options.device), keep=keep, quick=options.quick)


def work(options: argparse.Namespace, deadline: float) -> int:
    """One worker: takes the first cell that nobody has; returns how many runs it finished."""
    from benchmarks.evidence.train import train_cell
    from benchmarks.harness import environment

    os.nice(options.nice)
    torch.set_num_threads(options.threads)
    data_set, device = options.data_set, torch.device(options.device)
    head = environment(device)

    def kept(cell: Cell, judged_by: str | None = None) -> list[dict[str, Any]]:
        path = options.results / data_set.name / f"{cell.name}.json"
        return stored(path, definition(cell, data_set), head["device"], judged_by)

    if all(len(kept(cell)) >= options.seeds for cell, _ in jobs(options)):
        return 0  # nothing to load anything for
    train, test = data_set.load(options.data)
    judge = shared_judge(options, train, test)
    done = 0
    for cell, turn in jobs(options):
        wanted = definition(cell, data_set)
        target = options.results / data_set.name / f"{cell.name}.json"
        with claim(options.work / data_set.name / f"{cell.name}.lock") as mine:
            if not mine:
                continue
            seeds = kept(cell, judge.recipe()["features"]["hash"])
            for seed in turn:
                if any(entry["seed"] == seed for entry in seeds) or time.monotonic() > deadline:
                    continue
                folder = options.work / data_set.name / cell.name / str(seed)
                entry = train_cell(
                    cell,
                    data_set,
                    seed,
                    train,
                    judge,
                    folder,
                    device=options.device,
                    threads=options.threads,
                    deadline=deadline,
                )
                if entry is None:
                    return done
                done += 1
                seeds = sorted([*seeds, entry], key=lambda row: row["seed"])
                target.parent.mkdir(parents=True, exist_ok=True)
                clock = "CPU" if device.type == "cpu" else "wall"
                write_json(target, {**wanted, **head, "clock": clock, "recipe": judge.recipe(), "seeds": seeds})
                last = entry["rows"][-1]
                figures = ", ".join(f"{n}: {row['frechet']:.2f}" for n, row in last["figures"].items())
                print(f"{cell.name} seed {seed}: {figures} ({last['cpu_seconds']:.0f} CPU s)", flush=True)
    return done


def parse(arguments: list[str] | None = None, about: str | None = __doc__) -> argparse.Namespace:
    """The options that all commands of the evidence share; about is what --help tells of this one."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), default="digits", help="data set (default digits)")
    parser.add_argument("--only", default="", help="regular expression: the cells to run")
    parser.add_argument("--solvers", default="", help="regular expression: the solvers that are measured on them")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each cell (default 3)")
    parser.add_argument("--by", choices=("cell", "seed"), default="cell", help="what is completed first (default cell)")
    parser.add_argument("--workers", type=int, default=1, help="cells at a time (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default 1)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long, to be gone on with")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data", type=Path, default=CIFAR_FOLDER, help=f"folder of CIFAR-10 (default {CIFAR_FOLDER})")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="where unfinished cells are kept")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority by this")
    parser.add_argument("--quick", action="store_true", help="two steps of a tiny network: whether everything works")
    chosen = parser.parse_args(arguments)
    chosen.data_set = SETS[chosen.set]
    if chosen.quick:
        tiny = {"channels": (8,), "steps": 2, "checkpoints": (0.5, 1.0), "evaluations": (4,), "num_samples": 100}
        flags = {name: value for name, value in chosen.data_set.flags.items() if name != "compile"}
        chosen.data_set = replace(chosen.data_set, flags=flags, **tiny)
    if chosen.set != "digits" and not chosen.data.exists():
        parser.error(f"no images at {chosen.data}; give --data")
    if chosen.quick and chosen.results == RESULTS:
        parser.error("--quick measures nothing; give another --results")
    return chosen


def in_workers(target: Callable[[argparse.Namespace, float], int], options: argparse.Namespace) -> int:
    """target(options, deadline), in as many processes as the command line asks for; the exit status."""
    deadline = time.monotonic() + 60 * options.minutes
    if options.workers == 1:
        target(options, deadline)
        return 0
    # NumPy's threads of two processes wait for each other: a small matrix product then takes 20 times as long.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=target, args=(options, deadline)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


def main(arguments: list[str] | None = None) -> int:
    return in_workers(work, parse(arguments))


if __name__ == "__main__":
    sys.exit(main())
