"""Batches: read ahead or not, flipped or not, they are functions of (seed, step, sample)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pydiffaccel.trainer.data import BatchOrder, DataError, TrainData, load_data
from pydiffaccel.trainer.loader import Loader

from .conftest import same_run, write_images

Train = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> TrainData:
    """Eleven images, decoded on demand."""
    write_images(tmp_path, 11)
    return load_data(tmp_path, memory_limit=1)


def make(data: TrainData, *, random_flip: bool = False, ahead: bool = True) -> Loader:
    return Loader(data, seed=5, batch_size=4, parts=2, device=CPU, random_flip=random_flip, ahead=ahead)


def test_what_is_read_ahead_is_what_would_be_read(data: TrainData) -> None:
    """In order, again, backwards, and by ranks that read other rows."""
    loader, plain, order = make(data), make(data, ahead=False), BatchOrder(11, 5)
    places = [(0, 0), (0, 1), (1, 0), (1, 0), (7, 1), (0, 1), (1, 0)]
    for step, part in places:
        for rows in ((0, 4), (0, 1), (1, 3)):
            x, indices = loader.batch(step, part, *rows)
            expected, same_indices = plain.batch(step, part, *rows)
            assert torch.equal(x, expected)
            assert indices.tolist() == same_indices.tolist()
            assert indices.tolist() == order.indices((2 * step + part) * 4 + rows[0], rows[1]).tolist()
            assert torch.equal(x, data.batch(indices))


def test_only_what_is_slow_is_read_ahead(data: TrainData, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    readers: list[str] = []
    stored = TrainData.stored

    def watched(self: TrainData, indices: np.ndarray) -> torch.Tensor:
        readers.append(threading.current_thread().name)
        return stored(self, indices)

    monkeypatch.setattr(TrainData, "stored", watched)
    memory = make(TrainData("memory", np.zeros((11, 1, 8, 8), np.uint8)))
    for step in range(3):
        memory.batch(step, 0)
    assert readers == ["MainThread"] * 3
    readers.clear()
    loader = make(data)
    for step in range(3):
        loader.batch(step, 0)
        loader.batch(step, 1)
    assert readers.count("MainThread") == 1  # the very first batch
    assert len(readers) >= 6


def test_an_unreadable_image_is_told_at_its_step(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 8, size=(32, 32))
    bad = int(BatchOrder(8, 5).indices(4, 1)[0])  # in the second part
    whole = paths[bad].read_bytes()
    paths[bad].write_bytes(whole[: len(whole) // 2])
    loader = make(load_data(tmp_path, memory_limit=1))
    loader.batch(0, 0)
    with pytest.raises(DataError, match=rf"'{paths[bad].name}' in .* cannot be read"):
        loader.batch(0, 1)


def test_flips_mirror_half_of_the_samples_by_their_place(data: TrainData) -> None:
    flipping, plain = make(data, random_flip=True), make(data)
    flipped = []
    for step in range(40):
        for part in range(2):
            x, indices = flipping.batch(step, part)
            raw, same_indices = plain.batch(step, part)
            assert indices.tolist() == same_indices.tolist()
            mirrored = (x != raw).flatten(1).any(1)
            assert torch.equal(x[mirrored], raw[mirrored].flip(-1))
            flipped.append(mirrored)
            # A rank's rows are those of the whole part, whoever reads them and in whatever order.
            assert torch.equal(make(data, random_flip=True).batch(step, part, 1, 2)[0], x[1:3])
    share = torch.cat(flipped).double().mean()
    assert abs(share - 0.5) < 4 * 0.5 / 320**0.5
    assert any(not torch.equal(a, b) for a, b in zip(flipped[::2], flipped[1::2], strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("memory", [False, True])
def test_batches_on_a_gpu_are_those_of_the_cpu(data: TrainData, tmp_path: Path, memory: bool) -> None:
    data = load_data(tmp_path) if memory else data
    gpu, cpu = (
        Loader(data, seed=5, batch_size=4, parts=2, device=torch.device(name), random_flip=True)
        for name in ("cuda", "cpu")
    )
    for step in range(20):
        assert torch.equal(gpu.batch(step, 1)[0].cpu(), cpu.batch(step, 1)[0])


@pytest.mark.parametrize("flags", [["--dataloader_num_workers", "0"], ["--dataloader_num_workers", "3"]])
def test_runs_do_not_depend_on_the_readers(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    import pydiffaccel.trainer.data as module

    monkeypatch.setattr(module.load_data, "__kwdefaults__", {**module.load_data.__kwdefaults__, "memory_limit": 1})
    write_images(tmp_path / "images", 5)
    base = ["--data", str(tmp_path / "images"), "--random_flip", "--no_cache_images"]
    same_run(train("a", *base, steps=3), train("b", *base, *flags, steps=3))


def test_flipped_runs_continue_bit_for_bit(train: Train, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5)
    base = ["--data", str(tmp_path / "images"), "--random_flip"]
    whole = train("a", *base, steps=4)
    train("b", *base, steps=2)
    same_run(whole, train("b", *base, steps=4))
    assert (train("c", "--data", str(tmp_path / "images"), steps=4) / "model.safetensors").read_bytes() != (
        whole / "model.safetensors"
    ).read_bytes()
