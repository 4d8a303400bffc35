"""Processes that share an evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pydiffaccel._cli import CommandError
from pydiffaccel.evaluation.ranks import Ranks, joined
from tests.ranks import join_group, leave_group, run_ranks


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 5, 12])
def test_shares_make_the_whole(n: int, count: int) -> None:
    shares = [Ranks(rank, count).share(n) for rank in range(count)]
    assert [index for share in shares for index in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks == Ranks()
        assert ranks.device("auto") == "auto"
        assert ranks.once(lambda: 3) == 3
        assert ranks.gather(lambda: [np.ones((2, 1)), np.zeros((1, 1))]).tolist() == [[1], [1], [0]]


def _share(rank: int, count: int, folder: str) -> None:
    join_group(rank, count, folder)
    found: list[object] = []
    with joined() as ranks:
        assert (ranks.rank, ranks.count) == (rank, count)
        mine = ranks.share(4)
        found.append(ranks.gather(lambda: [np.full((1, 2), index) for index in mine]).tolist())
        found.append(ranks.once(lambda: f"said by {rank}"))
        for failing in range(count):

            def fail(failing: int = failing) -> list[np.ndarray]:
                if rank == failing:
                    raise CommandError(f"rank {rank} cannot")
                return [np.zeros((1, 2))]

            for action in (ranks.gather, ranks.once):
                try:
                    action(fail)
                    found.append("went well")
                except CommandError as error:
                    found.append(str(error))
    leave_group(rank, folder, found)


def test_ranks_have_the_same_answers_and_errors(tmp_path: Path) -> None:
    expected = [[[float(i)] * 2 for i in range(4)], "said by 0", "rank 0 cannot", "rank 0 cannot"]
    expected += ["rank 1 cannot", "went well", "rank 2 cannot", "went well"]
    assert run_ranks(_share, 3, tmp_path) == [expected] * 3
