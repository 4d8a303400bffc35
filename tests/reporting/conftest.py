"""Run folders made of their files, without any training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_extras import missing_packages

# Without the extra [train] this folder is left out; tests/test_extras.py then shows a skipped item that says so.
if missing_packages():
    collect_ignore_glob = ["test_*.py"]

MakeRun = Callable[..., Path]


def rows(steps: int, *, coupling: str = "none", log_every: int = 10, scale: float = 1.0) -> list[dict[str, Any]]:
    """Lines as the trainer writes them: a falling loss, 0.05 s per step, noted every log_every steps."""
    rng = np.random.default_rng(steps)
    made = []
    for step in range(1, steps + 1):
        written = min(steps, -(-step // log_every) * log_every)
        row: dict[str, Any] = {
            "step": step,
            "loss": scale * (0.1 + math.exp(-step / 40) + 0.02 * rng.random()),
            "grad_norm": 0.3 + 0.1 * rng.random(),
            "learning_rate": 2e-3 * min(1.0, step / 50),
            "images": step * 128,
            "evaluations": step * 256,
            "seconds": round(0.05 * written, 3),
        }
        if coupling != "none":
            row |= {"cost_reduction": 17.0 + rng.random(), "noise_mean_square": 0.9, "coupling_ms": 1.5}
        made.append(row)
    return made


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run("name", steps=..., lines=..., grids=(50, 100), **options) -> the folder of a made run."""
    from PIL import Image

    from pydiffaccel.trainer.config import TrainOptions

    def make(
        name: str,
        *,
        steps: int = 200,
        lines: Sequence[Any] | None = None,
        grids: Sequence[int] = (50, 100),
        finished: bool = True,
        evaluation: Any = None,
        **options: Any,
    ) -> Path:
        folder = tmp_path / name
        (folder / "samples").mkdir(parents=True)
        options = {"max_train_steps": steps, **options}
        (folder / "options.json").write_text(json.dumps({**TrainOptions().to_dict(), **options}))
        (folder / "process.json").write_text(json.dumps({"data": {"name": "made digits"}}))
        found = rows(steps, coupling=options.get("coupling", "none")) if lines is None else lines
        texts = [line if isinstance(line, str) else json.dumps(line) for line in found]
        (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts))
        rng = np.random.default_rng(0)
        for step in grids:
            pixels = rng.integers(0, 256, (66, 66, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "samples" / f"step_{step:08d}.png")
        if finished:
            Image.fromarray(np.zeros((66, 66), np.uint8)).save(folder / "samples.png")
            summary = {"step": steps, "seconds": 0.05 * steps, "coupling_seconds": 0.002 * steps, "device": "cpu"}
            (folder / "summary.json").write_text(json.dumps(summary))
        if evaluation is not None:
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        return folder

    return make
