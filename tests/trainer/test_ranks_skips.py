"""A loss that is not finite on one rank: all ranks skip the step, and stop together where there are too many."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pydiffaccel.trainer.loop import Trainer
from tests.ranks import run_ranks

from .conftest import TINY
from .test_ranks import as_torchrun, free_ports

# Which steps (counted from 1) fail on the second rank, and what is asked for.
RUNS: dict[str, tuple[set[int], list[str]]] = {
    "ddp": ({2, 3}, []),
    "fsdp": ({2, 3}, ["--parallel", "fsdp"]),
    "too many": ({2, 3, 4}, ["--max_skipped_steps", "3", "--log_every", "2"]),
}


def one_rank(rank: int, count: int, folder: str) -> None:
    from pydiffaccel.train import main

    torch.set_num_threads(1)
    ports = json.loads(Path(folder, "ports").read_text())
    original, codes = Trainer.losses, {}
    for name, (steps, flags) in RUNS.items():

        def losses(self: Trainer, part: int, steps: set[int] = steps) -> Iterator[Tensor]:
            for loss in original(self, part):
                yield loss * math.nan if rank == 1 and self.step + 1 in steps else loss

        Trainer.losses = losses  # type: ignore[method-assign]
        as_torchrun(rank, count, ports.pop())
        codes[name] = main(["--output_dir", f"{folder}/{name}", "--max_train_steps", "6", *TINY, *flags])
    torch.save(codes, f"{folder}/{rank}.pt")


def test_ranks_skip_together(tmp_path: Path) -> None:
    (tmp_path / "ports").write_text(json.dumps(free_ports(len(RUNS))))
    assert run_ranks(one_rank, 2, tmp_path) == [{"ddp": 0, "fsdp": 0, "too many": 1}] * 2
    for name in RUNS:
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        failed, _ = RUNS[name]
        assert [row["step"] for row in rows if row.get("skipped")] == sorted(failed)
        assert len(rows) == (4 if name == "too many" else 6)
    named = json.loads((tmp_path / "too many" / "nonfinite.json").read_text())["steps"]
    assert [(entry["step"], len(set(entry["indices"]))) for entry in named] == [(2, 8), (3, 8), (4, 8)]
