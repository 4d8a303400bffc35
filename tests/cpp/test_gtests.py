"""Shows every gtest of csrc/core as a pytest item."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = Path(
    os.environ.get("DIFFACCEL_BUILD_DIR", ROOT / "build" / f"cp{sys.version_info.major}{sys.version_info.minor}")
)
BINARY = BUILD / "diffaccel_tests"


def _names() -> list[str]:
    if not BINARY.exists():
        return []
    listing = subprocess.run([BINARY, "--gtest_list_tests"], capture_output=True, text=True, check=True).stdout
    names, suite = [], ""
    for line in listing.splitlines():
        if not line.startswith(" "):
            suite = line.split("#")[0].strip() if "." in line else ""
        elif suite:
            names.append(suite + line.split("#")[0].strip())
    return names


@pytest.mark.parametrize("name", _names() or [None])
def test_gtest(name: str | None) -> None:
    if name is None:
        pytest.skip(f"no gtest binary at {BINARY}: the build left the gtests out (GTest not found)")
    run = subprocess.run([BINARY, f"--gtest_filter={name}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "[  PASSED  ] 1 test" in run.stdout
