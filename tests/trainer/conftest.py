"""A network and a run small enough to be trained many times."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_extras import missing_packages

# Without the extra [train] this folder is left out; tests/test_extras.py then shows a skipped item that says so.
if missing_packages():
    collect_ignore_glob = ["test_*.py"]

TINY = ["--channels", "8", "--train_batch_size", "8", "--num_threads", "1"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes below the user's ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """train("name", "--flag", ...) -> the folder of a tiny run that ended well."""
    from pydiffaccel.train import main

    def run(name: str, *flags: str, steps: int = 6, code: int = 0) -> Path:
        folder = tmp_path / name
        argv = ["--output_dir", str(folder), "--max_train_steps", str(steps), *TINY, *flags]
        assert main(argv) == code, capsys.readouterr().err
        return folder

    return run


def losses(folder: Path) -> list[float]:
    """The loss of each step, in order; fails where a step is missing or twice there."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def same_run(a: Path, b: Path) -> None:
    """Both runs have the same losses and final weights, bit for bit."""
    assert losses(a) == losses(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def write_images(folder: Path, count: int = 6, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> list[Path]:
    """Random images 00.png, 01.png, ... in folder."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        path = folder / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def continues_exactly(
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    flags: Sequence[str],
    *,
    steps: int = 4,
    cut_at: int = 2,
) -> None:
    """A run that is stopped after cut_at steps and continued equals the whole one."""
    from pydiffaccel.trainer.loop import Trainer

    whole = train("whole", *flags, steps=steps)
    original = Trainer.fit
    monkeypatch.setattr(
        Trainer, "fit", lambda self, folder, **given: original(self, folder, stop=lambda: self.step == cut_at)
    )
    train("cut", *flags, steps=steps, code=130)
    monkeypatch.undo()
    same_run(whole, train("cut", *flags, steps=steps))


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *flags: str, code: int = 1) -> str:
    """The one sentence on stderr."""
    from pydiffaccel.train import main

    capsys.readouterr()
    assert main(["--output_dir", str(folder), "--max_train_steps", "6", *TINY, *flags]) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said
