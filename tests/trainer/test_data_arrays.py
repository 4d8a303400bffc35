"""Arrays that are more than images: latents, safetensors, trajectories."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pydiffaccel._cli import UsageError
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import DataError, TrainData, load_data

Train = Callable[..., Path]


@pytest.fixture
def latents() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 5, (6, 4, 8, 8)).astype(np.float32)


def save(path: Path, array: np.ndarray, labels: np.ndarray | None = None) -> Path:
    extra = {} if labels is None else {"labels": labels}
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, latents=array, **extra)
    else:
        named = {"latents": array, **extra}
        save_file({name: torch.from_numpy(value) for name, value in named.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_latents_are_scaled_and_otherwise_as_they_are(
    tmp_path: Path, latents: np.ndarray, suffix: str, dtype: type
) -> None:
    stored = latents.astype(dtype)
    path = save(tmp_path / f"a{suffix}", stored)
    rows = np.array([4, 0, 4])
    expected = torch.from_numpy(stored[rows].astype(np.float32))
    assert torch.equal(load_data(path, kind="latents").batch(rows), expected)
    data = load_data(path, kind="latents", latent_scale=0.18215)
    assert torch.equal(data.batch(rows), expected * 0.18215)
    assert (data.shape, data.kind, data.is_pictures) == ((4, 8, 8), "latents", False)
    assert isinstance(data.values, np.memmap) == (suffix == ".npy")
    assert data.describe() == f"a{suffix}: 6 latents of 4 x 8 x 8, scaled by 0.18215"


def test_bfloat16_latents(tmp_path: Path, latents: np.ndarray) -> None:
    save_file({"latents": torch.from_numpy(latents).bfloat16()}, tmp_path / "a.safetensors")
    batch = load_data(tmp_path / "a.safetensors", kind="latents").batch(np.arange(6))
    assert torch.equal(batch, torch.from_numpy(latents).bfloat16().float())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_labels_of_latents(tmp_path: Path, latents: np.ndarray, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", latents, np.array([5, 5, 2, 2, 5, 2]))
    for key in (None, "labels"):
        data = load_data(path, kind="latents", label_key=key)
        assert data.classes == ("2", "5")
        assert data.labels is not None
        assert data.labels.tolist() == [1, 1, 0, 0, 1, 0]
    with pytest.raises(DataError, match=r"integers \[6\] as labels 'latents'; it has an array of shape \[6, 4, 8, 8\]"):
        load_data(path, kind="latents", label_key="latents")
    with pytest.raises(DataError, match=r"as labels 'kind'; it has no such array"):
        load_data(path, kind="latents", label_key="kind")


def test_images_in_safetensors(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    save_file({"images": torch.from_numpy(pixels)}, tmp_path / "a.safetensors")
    rows = np.arange(5)
    assert torch.equal(load_data(tmp_path / "a.safetensors").batch(rows), load_data(tmp_path / "a.npy").batch(rows))


def test_mapped_floats_of_any_byte_order(tmp_path: Path) -> None:
    unit = np.linspace(0, 1, 128).reshape(2, 8, 8)
    np.save(tmp_path / "native.npy", unit)
    np.save(tmp_path / "swapped.npy", unit.astype(">f8"))
    a, b = (load_data(tmp_path / name).batch(np.arange(2)) for name in ("native.npy", "swapped.npy"))
    assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["first", "last", "gray", "fortran"])
def test_rows_of_mapped_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """The bytes that the disk is told of are those of the rows, in every layout in which rows are blocks."""
    shape = {"first": (9, 3, 8, 4), "last": (9, 8, 4, 3), "gray": (9, 8, 4), "fortran": (9, 3, 8, 4)}[layout]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels) if layout == "fortran" else pixels)
    told: list[bytes] = []

    def advised(handle: int, offset: int, size: int, advice: int) -> None:
        told.append(os.pread(handle, size, offset))

    monkeypatch.setattr(os, "posix_fadvise", advised)
    rows = np.array([8, 0, 8, 5])
    data = load_data(tmp_path / "a.npy")
    expected = pixels[:, None] if layout == "gray" else np.moveaxis(pixels, -1, 1) if layout == "last" else pixels
    assert np.array_equal(data.stored(rows).numpy(), expected[rows])
    assert told == ([] if layout == "fortran" else [pixels[row].tobytes() for row in rows])
    (tmp_path / "a.npy").unlink()
    assert np.array_equal(data.stored(rows).numpy(), expected[rows])


def test_trajectories_are_samples_of_another_shape(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(7, 16, 2)).astype(np.float32)
    data = TrainData("plans", values)
    assert (data.shape, data.is_pictures, len(data)) == ((16, 2), False, 7)
    assert torch.equal(data.batch(np.array([3])), torch.from_numpy(values[3:4]))
    np.save(tmp_path / "a.npy", values)
    assert load_data(tmp_path / "a.npy", kind="latents").shape == (16, 2)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((4, 2, 8, 8), np.uint8), "dtype uint8; latents must be floating point"),
        (np.zeros(4, np.float32), r"shape \[4\]; latents must be"),
        (np.zeros((0, 4, 8, 8), np.float32), "is empty"),
        (np.full((1500, 1), np.inf), "NaN or infinite values, first in samples 0 to 1023"),
        (np.zeros((4, 8), np.complex64), "dtype complex64"),
    ],
)
def test_arrays_that_are_no_latents(tmp_path: Path, array: np.ndarray, match: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match=match):
        load_data(tmp_path / "a.npy", kind="latents")


def test_latents_that_are_not_declared_are_refused(tmp_path: Path, latents: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", latents[:, :3])
    with pytest.raises(DataError, match=r"floats from .*; what is no image is declared by --data_kind latents"):
        load_data(tmp_path / "a.npy")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"latents are read from .npy, .npz, .safetensors files"):
        load_data(tmp_path / "folder", kind="latents")
    (tmp_path / "b.safetensors").write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot be read as a safetensors file"):
        load_data(tmp_path / "b.safetensors", kind="latents")


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"latent_scale": 0.5}, "--latent_scale 0.5 needs --data_kind latents"),
        ({"latent_scale": -1.0, "data_kind": "latents"}, "--latent_scale must be a positive number, got -1"),
        ({"resolution": 8, "data_kind": "latents"}, "--resolution is for images"),
        ({"random_flip": True, "data_kind": "latents"}, "--random_flip is for images"),
        ({"cache_dir": Path("a"), "cache_images": False}, "--cache_dir a names a cache, but --no_cache_images asks"),
        ({"dataloader_num_workers": -1}, "--dataloader_num_workers must be at least 0, got -1"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        TrainOptions(**flags)  # type: ignore[arg-type]


def test_a_run_on_latents(
    train: Train, tmp_path: Path, latents: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    from pydiffaccel.sample import main as sample

    np.save(tmp_path / "a.npy", latents)
    flags = ["--data", str(tmp_path / "a.npy"), "--data_kind", "latents", "--latent_scale", "0.2"]
    folder = train("run", *flags, steps=2)
    described = json.loads((folder / "process.json").read_text())["data"]
    assert (described["shape"], described["latent_scale"]) == ([4, 8, 8], 0.2)
    assert "range" not in described
    assert not (folder / "samples.png").exists()
    assert sample([str(folder), "--seeds", "0-1", "--steps", "2"]) == 1
    assert "makes latents of shape 4 x 8 x 8, and only images can be drawn" in capsys.readouterr().err


def test_the_command_takes_samples_with_two_sides(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 16, 2), np.float32))
    train("run", "--data", str(tmp_path / "a.npy"), "--data_kind", "latents", code=2)
    assert "the command's network is for samples [C, H, W], these are [16, 2]" in capsys.readouterr().err


def test_options_of_older_runs() -> None:
    new = {"label_key", "data_kind", "latent_scale", "random_flip", "cache_images", "cache_dir"}
    old = {key: value for key, value in TrainOptions().to_dict().items() if key not in new | {"dataloader_num_workers"}}
    assert TrainOptions.from_dict(old) == TrainOptions()
    assert TrainOptions(cache_dir=Path("a"), dataloader_num_workers=0).differences(TrainOptions()) == []
    assert TrainOptions(cache_images=False).differences(TrainOptions()) == []
    assert TrainOptions(random_flip=True).differences(TrainOptions()) == ["--random_flip True (the run: False)"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (None, "digits"),
        ("a/cats.zip", "cats"),
        ("shards/{000..012}.tar", "000..012"),
        ("shards/cats-{000..012}.tar", "cats-000..012"),
        ("hf:user/cats:train", "cats-train"),
        ("hf:cats", "cats"),
        ("*.tar", "data"),
        ("..", "data"),
    ],
)
def test_folders_are_named_after_the_data(data: str | None, name: str) -> None:
    options = TrainOptions(data=None if data is None else Path(data))
    assert options.folder == Path("runs") / name
    assert TrainOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
