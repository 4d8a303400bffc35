"""The networks that cells have trained, and what is measured on them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.cells import Cell, cells_of
from benchmarks.evidence.judge import Judge
from benchmarks.evidence.run import claim, shared_judge
from benchmarks.evidence.train import coupling_of, options_of, process_of
from benchmarks.harness import environment
from pydiffaccel.coupling import Coupling
from pydiffaccel.forward import Process
from pydiffaccel.networks import build_network, default_network
from pydiffaccel.sampler import denoiser_of
from pydiffaccel.solvers import Denoiser
from pydiffaccel.trainer.checkpoint import list_checkpoints, load_checkpoint, read_json, write_json
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import TrainData

__all__ = ["Kept", "Session", "Trained", "trained_cells"]


@dataclass(frozen=True)
class Trained:
    """The averaged network of a cell with a seed, and how it was trained."""

    cell: Cell
    seed: int
    options: TrainOptions
    process: Process
    coupling: Coupling
    denoiser: Denoiser
    shape: tuple[int, int, int]


def trained_cells(names: Sequence[str], options: Any, train: TrainData) -> Iterator[Trained]:
    """Those of the named cells whose training is over, seed by seed; says which are not.

    Args:
        names: of the cells.
        options: of the command line that trained them: data_set, work, seeds, device, threads.
        train: the data that they were trained on.
    """
    cells = {cell.name: cell for cell in cells_of(options.data_set.name)}
    for name in names:
        for seed in range(options.seeds):
            folder = options.work / options.data_set.name / name / str(seed)
            found = list_checkpoints(folder / "checkpoints")
            settings = options_of(cells[name], options.data_set, seed, folder, options.device, options.threads)
            if not found or found[-1][0] < settings.max_train_steps:
                print(f"{name} seed {seed} is not trained: left out")
                continue
            network = build_network(default_network(train.shape, settings.channels, settings.layers_per_block))
            average = load_checkpoint(found[-1][1]).tensors["ema"]
            network.load_state_dict(
                {key.removeprefix("module."): value for key, value in average.items() if key.startswith("module.")}
            )
            process = process_of(cells[name], settings)
            yield Trained(
                cells[name],
                seed,
                settings,
                process,
                coupling_of(cells[name], settings, train),
                denoiser_of(network.to(options.device).eval(), process),
                train.shape,
            )


class Kept:
    """Rows of a JSON file, written whenever some are added, so that what is measured is not measured again.

    Several processes may share it.

    Args:
        path: the file. Rows that it has from another machine or judge are dropped.
        head: what the file tells beside its rows: ``benchmarks.harness.environment`` and "recipe".
        keys: the fields by which rows are known.
        locks: a folder for what the processes tell each other.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], keys: Sequence[str], locks: Path) -> None:
        self._path, self._head, self._keys = path, json.loads(json.dumps(head)), keys
        self._locks = locks / path.stem

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What the file has now."""
        found = read_json(self._path) if self._path.exists() else {}
        same = all(found.get(name) == self._head[name] for name in ("device", "recipe"))
        return list(found["rows"]) if same else []

    @contextmanager
    def turn(self, *values: Any) -> Iterator[bool]:
        """Whether rows with these values of the keys are still to be measured, and by this process."""
        with claim(self._locks / f"{'-'.join(map(str, values))}.lock") as mine:
            yield mine and all(tuple(row[key] for key in self._keys) != values for row in self.rows)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Writes further rows."""
        with claim(self._locks / "rows.lock", wait=True):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {**self._head, "rows": [*self.rows, *rows]})


@dataclass(frozen=True)
class Session:
    """What measuring trained networks needs, from the options of a command line."""

    options: Any
    train: TrainData
    test: TrainData
    judge: Judge
    kept: Kept
    deadline: float

    @classmethod
    def of(cls, options: Any, deadline: float, file: str, keys: Sequence[str], **head: Any) -> Session:
        """A judge of the data, and the rows of a file; head is what the file tells beside them."""
        os.nice(options.nice)
        torch.set_num_threads(options.threads)
        train, test = options.data_set.load(options.data)
        device = torch.device(options.device)
        judge = shared_judge(options, train, test)
        told = {**environment(device), "recipe": judge.recipe(), **head}
        folder = options.data_set.name
        kept = Kept(options.results / folder / file, told, keys, options.work / folder)
        return cls(options, train, test, judge, kept, deadline)

    def networks(self, names: Sequence[str]) -> Iterator[Trained]:
        """Those of the named cells that the data set has and --only lets through, until the time is over."""
        known = {cell.name for cell in cells_of(self.options.data_set.name)}
        chosen = [name for name in names if name in known and re.search(self.options.only, name)]
        for one in trained_cells(chosen, self.options, self.train):
            if self.is_over:
                return
            yield one

    @property
    def is_over(self) -> bool:
        """Whether the time is."""
        return time.monotonic() > self.deadline
