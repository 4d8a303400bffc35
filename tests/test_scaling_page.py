"""docs/scaling.md shows what benchmarks/communication.py computes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_the_table_is_the_computed_one() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "communication.py"))
    assert PAGE.partition(script["BEGIN"])[2].partition(script["END"])[0].strip() == script["table"]()


@pytest.mark.parametrize("ranks", [2, 8])
def test_bytes_are_those_of_their_definitions(ranks: int) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "communication.py"))
    # Rank by rank: what a rank has not is what it receives.
    others = ranks - 1
    assert script["assignment"](16, ranks) == pytest.approx(others * (16 // ranks) * 16 * 4 + others * 8 * 8)
    assert script["assignment"](15, ranks) == pytest.approx(others * -(-15 // ranks) * 15 * 4 + others * 8 * 8)
    assert script["ddp"](1000 * ranks, ranks) == 2 * others * 4000
    assert script["fsdp"](1000 * ranks, ranks) == 3 * others * 4000
