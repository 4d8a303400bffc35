"""The command lines need the extra [train]; without it their tests are left out, visibly."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

NEEDED = ("diffusers", "safetensors", "tyro", "tqdm", "matplotlib", "PIL")


def missing_packages() -> list[str]:
    """Packages of the extra that are not installed."""
    return [name for name in NEEDED if not _found(name)]


def _found(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return find_spec(name) is not None


def test_extra_train_is_installed() -> None:
    missing = missing_packages()
    if missing:
        pytest.skip(f"tests/trainer is left out: {', '.join(missing)} not installed (pip install 'pydiffaccel[train]')")
    import pydiffaccel.train

    assert callable(pydiffaccel.train.main)
