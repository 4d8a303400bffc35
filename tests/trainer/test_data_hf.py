"""Datasets of the package datasets: saved to disk, and as parquet files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pydiffaccel.trainer.data import DataError, load_data
from pydiffaccel.trainer.data.hf import split_spec
from pydiffaccel.trainer.data.images import LazyImages

from .conftest import write_images


def test_without_the_package_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:.* needs the package datasets .*pip install 'pydiffaccel\[data\]'"):
        load_data(f"hf:{tmp_path}")


def test_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_spec("hf:user/cats") == ("user/cats", None)
    assert split_spec("hf:user/cats:train") == ("user/cats", "train")
    (tmp_path / "a:b").mkdir()
    assert split_spec(f"hf:{tmp_path}/a:b") == (f"{tmp_path}/a:b", None)


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, with its cache in a folder of the test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def dataset(hf: Any, tmp_path: Path) -> Any:
    """Six images with the classes 0, 2, 0, 2, ... of three."""
    paths = write_images(tmp_path / "plain", 6)
    columns = {"picture": [{"bytes": path.read_bytes(), "path": None} for path in paths], "kind": [0, 2] * 3}
    features = hf.Features({"picture": hf.Image(), "kind": hf.ClassLabel(names=["cat", "dog", "emu"])})
    return hf.Dataset.from_dict(columns, features=features)


def same_as_plain(spec: str, tmp_path: Path, **options: Any) -> Any:
    data = load_data(spec, **options)
    rows = np.array([5, 0, 3])
    assert torch.equal(data.batch(rows), load_data(tmp_path / "plain").batch(rows))
    return data


@pytest.mark.parametrize("limit", [2**30, 1])
def test_a_saved_dataset(dataset: Any, tmp_path: Path, limit: int) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"))
    data = same_as_plain(f"hf:{tmp_path}/saved", tmp_path, memory_limit=limit)
    assert isinstance(data.values, LazyImages) == (limit == 1)
    assert data.classes == ("cat", "dog", "emu")
    assert data.labels.tolist() == [0, 2] * 3
    assert "1 classes have no images: 'dog'" in data.notes


def test_the_cache_of_a_saved_dataset(dataset: Any, tmp_path: Path) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"))
    for _ in range(2):
        data = same_as_plain(f"hf:{tmp_path}/saved", tmp_path, memory_limit=1, cache_dir=tmp_path / "cache")
        assert isinstance(data.values, np.memmap)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_splits(hf: Any, dataset: Any, tmp_path: Path) -> None:
    both = hf.DatasetDict({"train": dataset, "test": dataset.select([3, 1])})
    both.save_to_disk(str(tmp_path / "saved"))
    same_as_plain(f"hf:{tmp_path}/saved:train", tmp_path)
    test = load_data(f"hf:{tmp_path}/saved:test")
    assert torch.equal(test.batch(np.arange(2)), load_data(tmp_path / "plain").batch(np.array([3, 1])))
    with pytest.raises(DataError, match=r"has the splits train, test; give one as hf:"):
        load_data(f"hf:{tmp_path}/saved")
    with pytest.raises(DataError, match=r"'up' is none"):
        load_data(f"hf:{tmp_path}/saved:up")


def test_parquet_files(dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    dataset.to_parquet(str(tmp_path / "set" / "train-0.parquet"))
    dataset.select([1]).to_parquet(str(tmp_path / "set" / "test-0.parquet"))
    same_as_plain(f"hf:{tmp_path}/set:train", tmp_path)
    assert len(load_data(f"hf:{tmp_path}/set:test")) == 1
    data = same_as_plain(f"hf:{tmp_path}/set/train-0.parquet", tmp_path)
    assert data.classes == ("cat", "dog", "emu")


def test_columns(hf: Any, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "plain", 6)
    raw = [path.read_bytes() for path in paths]
    other = [Image.open(path).transpose(Image.Transpose.ROTATE_90) for path in paths]
    columns = {"a": raw, "b": other, "label": [7, 3] * 3, "text": ["x", "y"] * 3}
    hf.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "saved"))
    spec = f"hf:{tmp_path}/saved"
    with pytest.raises(DataError, match="several columns of images, 'a', 'b'; say with --data_key"):
        load_data(spec)
    data = same_as_plain(spec, tmp_path, key="a")
    assert data.classes == ("3", "7")
    assert load_data(spec, key="b", label_key="text").classes == ("x", "y")
    with pytest.raises(DataError, match="has no column 'c'; it has 'a', 'b'"):
        load_data(spec, key="c")
    with pytest.raises(DataError, match=r"the column 'text' of .* holds no images"):
        load_data(spec, key="text")
    with pytest.raises(DataError, match="has no column 'c'; it has 'a', 'b'"):
        load_data(spec, key="a", label_key="c")
    with pytest.raises(DataError, match=r"the column 'b' of .* holds no classes"):
        load_data(spec, key="a", label_key="b")


def test_bad_rows_are_named(hf: Any, tmp_path: Path) -> None:
    (png,) = write_images(tmp_path / "plain", 1)
    rows = [png.read_bytes(), b"text", None]
    features = hf.Features({"image": hf.Value("binary")})
    hf.Dataset.from_dict({"image": rows}, features=features).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"2 of 3 images .* 'row 1' \(.*\), 'row 2' \(the row has no image\)"):
        load_data(f"hf:{tmp_path}/saved")
    assert len(load_data(f"hf:{tmp_path}/saved", skip_bad_images=True)) == 1


def test_unlabelled_rows(hf: Any, tmp_path: Path) -> None:
    (png,) = write_images(tmp_path / "plain", 1)
    features = hf.Features({"image": hf.Value("binary"), "label": hf.ClassLabel(names=["a"])})
    for labels, match in (([-1, -1], None), ([0, -1], "1 of 2 images .* have no label in column 'label'")):
        rows = {"image": [png.read_bytes()] * 2, "label": labels}
        hf.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / f"{sum(labels)}"))
        if match:
            with pytest.raises(DataError, match=match):
                load_data(f"hf:{tmp_path}/{sum(labels)}")
        else:
            assert load_data(f"hf:{tmp_path}/{sum(labels)}").labels is None


def test_folders_that_are_no_datasets(hf: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hf:.* cannot be read as a dataset"):
        load_data(f"hf:{tmp_path}")
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_data(f"hf:{tmp_path}/nowhere")
    with pytest.raises(DataError, match="names no dataset"):
        load_data("hf:")
