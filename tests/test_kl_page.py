"""docs/kl.md shows what the package computes."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "kl.md").read_text(encoding="utf-8")


def test_the_table_is_the_one_that_the_package_computes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = runpy.run_path(str(ROOT / "benchmarks" / "report_kl.py"))
    shown = PAGE.partition(report["BEGIN"])[2].partition(report["END"])[0].strip()
    assert shown == report["table"]()
    for plot in ("plot_basis", "plot_sigma"):
        report[plot](tmp_path / f"{plot}.png")
        assert (tmp_path / f"{plot}.png").stat().st_size > 10_000


def test_the_files_that_the_page_names_exist() -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file()
