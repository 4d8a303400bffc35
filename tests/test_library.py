"""Loading the native part, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydiffaccel as da

PACKAGE = Path(da.__file__).parent


def _import_in(folder: Path) -> subprocess.CompletedProcess[str]:
    """Imports the copy in folder, without the finder of an editable install (it would supply the real ``_C``)."""
    script = (
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(getattr(f, '__module__', f)).lower()]\n"
        "import pydiffaccel\n"
    )
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, env=environment)


def test_build_info() -> None:
    info = da.build_info()
    assert info["version"] == (PACKAGE.parent / "VERSION").read_text().strip() == da.__version__
    assert info["torch_target"] == "2.10"
    assert info["simd"] in ("portable", "avx2", "avx512")
    assert info["cuda_kernels"] == (info["cuda_note"] == "")


def test_unbuilt_package_says_how_to_build(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "pydiffaccel", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    done = _import_in(tmp_path)
    assert done.returncode == 1
    assert "cannot load its native module" in done.stderr
    assert "Native files in" in done.stderr
    assert "1. the native part was not built: run `pip install --no-build-isolation -e .`" in done.stderr


def test_missing_operator_library_is_named(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "pydiffaccel", ignore=shutil.ignore_patterns("libdiffaccel*", "__pycache__"))
    done = _import_in(tmp_path)
    assert done.returncode == 1
    assert "libdiffaccel_ops.so" in done.stderr
    assert "1. it was built for another Python version or another machine" in done.stderr
