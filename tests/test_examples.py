"""The examples run as they stand."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def main_of(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"diffusers_pipeline", "k_diffusion_style", "own_loop"}


def test_diffusers_pipeline() -> None:
    pytest.importorskip("diffusers")
    images = main_of("diffusers_pipeline")
    assert images.shape == (4, 3, 16, 16)
    assert bool(((images >= 0) & (images <= 1)).all())


def test_own_loop() -> None:
    samples, guided, random = main_of("own_loop")
    assert samples.shape == (6, 8)
    assert samples.isfinite().all()
    assert not torch.equal(samples, guided)
    assert not torch.equal(samples, random)


def test_k_diffusion_style() -> None:
    for samples in main_of("k_diffusion_style").values():
        assert samples.std().item() == pytest.approx(0.5, rel=0.05)
