"""Decoded images in a mapped file: the same numbers, one writer, and nothing lost when it cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pydiffaccel.trainer.data.cache as cache_module
from pydiffaccel.trainer.data import DataError, TrainData, load_data
from pydiffaccel.trainer.data.images import LazyImages

from .conftest import write_images
from .test_data import zipped

Train = Callable[..., Path]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images" / "a", 5, size=(12, 9))
    write_images(tmp_path / "images" / "b", 4, size=(9, 12))
    return tmp_path / "images"


def load(images: Path, **options: Any) -> TrainData:
    """Through the cache in the folder beside the images."""
    return load_data(images, resolution=8, memory_limit=1, cache_dir=images.parent / "cache", **options)


def entry(images: Path) -> Path:
    (found,) = (path for path in (images.parent / "cache").iterdir() if path.is_dir())
    return found


def same(a: TrainData, b: TrainData) -> None:
    rows = np.arange(len(a))[::-1]
    assert torch.equal(a.batch(rows), b.batch(rows))
    assert a.labels is not None
    assert b.labels is not None
    assert a.labels.tolist() == b.labels.tolist()


@pytest.mark.parametrize("block", [2**20, 100])
def test_the_cache_is_mapped_and_equals_memory(images: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(cache_module, "BLOCK", block)
    kept = load_data(images, resolution=8)
    first = load(images)
    assert isinstance(first.values, np.memmap)
    same(first, kept)
    monkeypatch.setattr("pydiffaccel.trainer.data.images.decode", None)  # nothing is decoded again
    again = load(images)
    same(again, kept)
    assert any(str(entry(images)) in note for note in again.notes)


def test_what_fits_in_memory_is_not_cached(images: Path) -> None:
    load_data(images, resolution=8, cache_dir=images.parent / "cache")
    assert not (images.parent / "cache").exists()


@pytest.mark.parametrize("change", ["time", "more", "resolution", "zip"])
def test_another_set_is_another_entry(images: Path, change: str) -> None:
    load(images)
    if change == "time":
        os.utime(images / "a" / "00.png", (1, 1))
    elif change == "more":
        (images / "a" / "09.png").write_bytes((images / "b" / "00.png").read_bytes())
    if change == "zip":
        load(zipped(images, images.parent / "images.zip"))
    elif change == "resolution":
        load_data(images, resolution=4, memory_limit=1, cache_dir=images.parent / "cache")
    else:
        same(load(images), load_data(images, resolution=8))
    assert len([path for path in (images.parent / "cache").iterdir() if path.is_dir()]) == 2


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "pixels.npy").unlink(),
        lambda folder: os.truncate(folder / "pixels.npy", 500),
        lambda folder: flip_bit(folder / "pixels.npy"),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[1]"),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_a_damaged_entry_is_written_again(images: Path, damage: Callable[[Path], object]) -> None:
    load(images)
    damage(entry(images))
    said: list[str] = []
    same(load(images, report=said.append), load_data(images, resolution=8))
    assert "is damaged" in said[0]
    said.clear()
    load(images, report=said.append)
    assert said == []


@pytest.mark.parametrize("limit", [500, 0])
def test_no_room_for_the_cache(images: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """A disk that fills while the cache is written (a limit on the size of files), and one that is full before."""
    code = (
        "import resource, sys, numpy as np, pydiffaccel.trainer.data.cache as cache\n"
        "from pydiffaccel.trainer.data import load_data\n"
        "from pathlib import Path\n"
        f"limit = {limit}\n"
        "if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "else: cache.SPARE = 2**62\n"
        "folder = Path(sys.argv[1])\n"
        "data = load_data(folder, resolution=8, memory_limit=1, cache_dir=folder.parent / 'cache')\n"
        "print(data.batch(np.arange(9)).double().sum().item(), type(data.values).__name__, data.notes[-1], sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(images)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, kind, note = done.stdout.splitlines()
    assert float(total) == load_data(images, resolution=8).batch(np.arange(9)).double().sum().item()
    assert kind == "LazyImages"
    assert ("is full" if limit else "has no room") in note
    assert "decoded when needed" in note
    assert not any(path.is_dir() for path in (images.parent / "cache").iterdir())


def test_a_cache_folder_that_cannot_be_made(images: Path) -> None:
    (images.parent / "cache").write_text("a file")
    data = load(images)
    assert isinstance(data.values, LazyImages)
    assert "cannot be written" in data.notes[-1]


def test_processes_write_it_once(images: Path) -> None:
    code = (
        "import sys, numpy as np, pydiffaccel.trainer.data.cache as cache\n"
        "from pydiffaccel.trainer.data import load_data\n"
        "from pathlib import Path\n"
        "write = cache._write_pixels\n"
        "def slow(*args):\n"
        "    import time; time.sleep(0.5); print('wrote'); return write(*args)\n"
        "cache._write_pixels = slow\n"
        "folder = Path(sys.argv[1])\n"
        "data = load_data(folder, resolution=8, memory_limit=1, cache_dir=folder.parent / 'cache')\n"
        "print(type(data.values).__name__, data.batch(np.arange(9)).double().sum().item())\n"
    )
    command = [sys.executable, "-c", code, str(images)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lines = [process.communicate()[0].splitlines() for process in running]
    expected = load_data(images, resolution=8).batch(np.arange(9)).double().sum().item()
    assert [line[-1] for line in lines] == [f"memmap {expected}"] * 3
    assert sum("wrote" in line for line in lines) == 1


def test_leftovers_of_a_killed_writer_are_removed(images: Path) -> None:
    load(images)
    done = entry(images)
    leftover = done.with_name(f".{done.name}.0123")
    done.rename(leftover)
    load(images)
    assert not leftover.exists()
    assert done.exists()


def test_bad_images_of_a_cached_set(images: Path) -> None:
    (images / "a" / "bad.png").write_bytes(b"text")
    whole = (images / "a" / "02.png").read_bytes()
    (images / "a" / "02.png").write_bytes(whole[: len(whole) // 2])  # its header is fine
    with pytest.raises(DataError, match=r"1 of 10 images .* 'a/bad.png'"):
        load(images)
    said: list[str] = []
    data = load(images, skip_bad_images=True, report=said.append)
    lazy = load_data(images, resolution=8, memory_limit=1, skip_bad_images=True)
    assert len(data) == 9
    same(data, lazy)
    assert "'a/02.png' cannot be read" in said[0]
    again = load(images, skip_bad_images=True)
    same(again, lazy)
    notes = " ".join(again.notes)
    assert "1 unreadable images were left out: 'a/bad.png'" in notes
    assert "for 1 unreadable images the next one stands in: 'a/02.png'" in notes
    with pytest.raises(DataError, match=r"1 of 10 images"):
        load(images)
    (images / "a" / "bad.png").unlink()
    with pytest.raises(DataError, match=r"1 of 9 images .* 'a/02.png'"):
        load(images)


def test_runs_with_and_without_the_cache_are_the_same(
    train: Train, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pydiffaccel.trainer.data as data

    monkeypatch.setattr(data.load_data, "__kwdefaults__", {**data.load_data.__kwdefaults__, "memory_limit": 1})
    flags = ["--data", str(images), "--resolution", "8"]
    folder = images.parent / "here"
    a = train("a", *flags, "--cache_dir", str(folder), steps=2)
    assert json.loads((next(folder.glob("*/manifest.json"))).read_text())["shape"] == [9, 3, 8, 8]
    b = train("b", *flags, "--no_cache_images", "--dataloader_num_workers", "0", steps=2)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
