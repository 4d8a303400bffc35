"""Processes that share an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from pydiffaccel._cli import CommandError
from pydiffaccel.evaluation.ranks import gather_rows, once
from pydiffaccel.trainer.parallel import Ranks
from tests.ranks import as_torchrun, free_ports, run_ranks


def test_one_process_exchanges_nothing() -> None:
    assert once(Ranks(), lambda: 3) == 3
    assert gather_rows(Ranks(), lambda: [np.ones((2, 1)), np.zeros((1, 1))]).tolist() == [[1], [1], [0]]


def _share(rank: int, count: int, folder: str) -> None:
    ranks = as_torchrun(rank, count, *json.loads(Path(folder, "ports").read_text()))
    ranks.join("cpu")
    first, size = ranks.split(4)
    found: list[object] = []
    found.append(gather_rows(ranks, lambda: [np.full((1, 2), first + row) for row in range(size)]).tolist())
    found.append(once(ranks, lambda: f"said by {rank}"))
    for failing in range(count):

        def fail(failing: int = failing) -> list[np.ndarray]:
            if rank == failing:
                raise CommandError(f"rank {rank} cannot")
            return [np.zeros((1, 2))]

        for share in (gather_rows, once):
            try:
                share(ranks, fail)
                found.append("went well")
            except CommandError as error:
                found.append(str(error))
    ranks.leave()
    torch.save(found, f"{folder}/{rank}.pt")


def test_ranks_have_the_same_answers_and_errors(tmp_path: Path) -> None:
    (tmp_path / "ports").write_text(json.dumps(free_ports(1)))
    answers = run_ranks(_share, 3, tmp_path)
    for rank, (rows, said, *failures) in enumerate(answers):
        assert rows == [[i, i] for i in range(4)]
        assert said == "said by 0"
        assert [failure == "went well" for failure in failures] == [False, False, False, True, False, True]
        assert [f"rank {rank} cannot" == failure for failure in failures[::2]] == [i == rank for i in range(3)]
