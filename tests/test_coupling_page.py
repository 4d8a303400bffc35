"""docs/coupling.md shows what the benchmarks recorded."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_measured_parts_are_those_of_the_recorded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = runpy.run_path(str(ROOT / "benchmarks" / "report_coupling.py"))
    page = (ROOT / "docs" / "coupling.md").read_text(encoding="utf-8")
    assert report["with_parts"](page, report["parts"]()) == page
