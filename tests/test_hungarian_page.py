"""docs/hungarian.md shows what the benchmark recorded."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu"


def test_the_figures_are_those_of_the_recorded_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    report = runpy.run_path(str(ROOT / "benchmarks" / "report_hungarian.py"))
    files = [RESULTS / name for name in ("hungarian_small.json", "hungarian.json")]
    page = (ROOT / "docs" / "hungarian.md").read_text(encoding="utf-8")
    record = report["joined"]([json.loads(path.read_text(encoding="utf-8")) for path in files])
    assert report["with_parts"](page, report["parts"](record)) == page
