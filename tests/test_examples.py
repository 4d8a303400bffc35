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


def main_of(name: str, **options: Any) -> Any:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](**options)


def test_every_example_is_tested() -> None:
    names = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= names


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


def test_class_conditional() -> None:
    """Samples are of the class asked for, and more of them with guidance."""
    pytest.importorskip("diffusers")
    right = main_of("class_conditional", quick=True)
    assert right["real digits"] > 0.95
    assert right["samples, guidance 1"] > 0.4
    assert right["samples, guidance 2"] > max(0.6, right["samples, guidance 1"])


def test_latents() -> None:
    """Decoded samples are nearer to the digits than decoded noise, and cover them better."""
    pytest.importorskip("diffusers")
    found = main_of("latents", quick=True)
    assert found["autoencoder: error of restored digits"] < 0.06
    assert found["decoded samples to real digits"] < 0.5 * found["decoded plain noise to real digits"]
    assert found["real digits to decoded samples"] < 0.6 * found["real digits to decoded plain noise"]


def test_planning() -> None:
    """Paths go around the obstacle on both sides, where straight ones and noise do not."""
    rates = main_of("planning", quick=True)
    assert rates["demonstrations"] == 1
    assert rates["random paths"] < 0.01
    assert rates["planned, 10 evaluations"] > rates["straight lines"] + 0.1
    assert 0.2 < rates["of these, above the disk"] < 0.8
    assert rates["largest value at padding"] == 0


def test_inpainting() -> None:
    """Known pixels stay as they are, and the rest fits them better than a sample that looks at nothing."""
    pytest.importorskip("diffusers")
    found = main_of("inpainting", quick=True)
    assert found["largest change of a known pixel"] == 0
    assert found["error, inpainted"] < 0.9 * found["error, a sample that looks at nothing"]
    assert found["error, mean of 4 inpaintings"] < 0.8 * found["error, inpainted"]
