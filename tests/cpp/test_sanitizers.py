"""Builds the gtests with a sanitizer and runs them: the CUDA block's algorithms on host threads without a data race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cpp.test_gtests import BINARY

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("preset", ["tsan", "asan"])
def test_gtests_under_a_sanitizer(preset: str) -> None:
    if not BINARY.exists():
        pytest.skip("the build left the gtests out (GTest not found)")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    assert cmake is not None
    for command in ([cmake, "--preset", preset], [cmake, "--build", "--preset", preset]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PATH": path})
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run([ROOT / "build" / preset / "diffaccel_tests"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[  PASSED  ]" in done.stdout
