"""Image datasets of the Hugging Face `datasets` package: saved to disk, as parquet files, or by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from pydiffaccel.trainer.data.decode import BadImage, DataError, shown
from pydiffaccel.trainer.data.files import ImageFiles, Labels, few, read_bounded

__all__ = ["PREFIX", "open_hf", "split_spec"]

PREFIX = "hf:"
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target", "y")


class _Rows(Sequence[str]):
    """Names of rows, made when they are asked for: a set may have millions."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [f"row {i}" for i in range(*index.indices(self._n))]
        return f"row {range(self._n)[index]}"


def split_spec(spec: str) -> tuple[str, str | None]:
    """("a/b", "train") of "hf:a/b:train"; ("a/b", None) of "hf:a/b"."""
    rest = spec.removeprefix(PREFIX)
    path, colon, split = rest.rpartition(":")
    return (path, split) if colon and path and not Path(rest).exists() else (rest, None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _open(spec: str) -> Any:
    """The one split that is meant, as a `datasets.Dataset`."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{spec} needs the package datasets ({_first_line(error)}): pip install 'pydiffaccel[data]'"
        ) from error
    path, split = split_spec(spec)
    local = Path(path)
    if not path:
        raise DataError("--data hf: names no dataset; it is written hf:PATH or hf:PATH:SPLIT")
    if not local.exists() and (local.is_absolute() or path.startswith(".")):
        raise DataError(f"{path} does not exist")
    try:
        if local.is_file():
            found = datasets.load_dataset("parquet", data_files=str(local))
        elif local.is_dir() and any((local / name).exists() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(str(local))
        elif local.is_dir():
            found = datasets.load_dataset("parquet", data_dir=str(local))
        else:
            found = datasets.load_dataset(path)
    except Exception as error:  # of many kinds, by the package and what it builds on
        raise DataError(f"{spec} cannot be read as a dataset: {_first_line(error)}") from error
    if not isinstance(found, Mapping):
        if split is not None:
            raise DataError(f"{path} is a single split; leave ':{split}' out of --data {spec}")
        return found
    splits = ", ".join(map(str, found))
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        raise DataError(
            f"{path} has the splits {splits}; " + (f"'{split}' is none" if split else f"give one as hf:{path}:SPLIT")
        )
    return found[split]


def _is_image(feature: Any) -> bool:
    if type(feature).__name__ == "Image":
        return True
    if isinstance(feature, Mapping):
        return "bytes" in feature
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _column(spec: str, features: Mapping[str, Any], key: str | None) -> str:
    images = [name for name, feature in features.items() if _is_image(feature)]
    if key is not None and key not in features:
        raise DataError(f"{spec} has no column '{key}'; it has {', '.join(map(shown, features))}")
    if key is not None and key not in images:
        raise DataError(f"the column '{key}' of {spec} holds no images; columns of images: {few(images) or 'none'}")
    if key is None and len(images) != 1:
        columns = f"several columns of images, {few(images)}"
        what = columns if images else f"no column of images among {few([*features])}"
        raise DataError(f"{spec} has {what}; say with --data_key which is meant")
    return key or images[0]


def _labels(spec: str, dataset: Any, features: Mapping[str, Any], key: str | None) -> tuple[Labels | None, list[str]]:
    """The labels and notes about them."""
    if key is not None and key not in features:
        raise DataError(f"{spec} has no column '{key}'; it has {', '.join(map(shown, features))}")
    if key is None:
        named = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
        usual = [name for name in LABEL_COLUMNS if name in features and hasattr(features[name], "dtype")]
        key = named[0] if len(named) == 1 else usual[0] if usual and not named else None
        if key is None:
            return None, [f"several columns hold classes, {few(named)}; --label_key names one"] if named else []
    values = list(dataset.with_format(None)[key][:])
    names = getattr(features[key], "names", None)
    missing = sum(value is None or (names is not None and value < 0) for value in values)
    if missing == len(values):
        return None, [f"the column '{key}' holds no labels"]
    if missing:
        raise DataError(f"{missing} of {len(values)} images in {spec} have no label in column '{key}'")
    if not all(isinstance(value, (int, str)) for value in values):
        raise DataError(f"the column '{key}' of {spec} holds no classes: the first entry is {values[0]!r:.60}")
    if names is None:
        return Labels.of(values), []
    import numpy as np

    numbers = np.array(values, np.int64)
    if numbers.max() >= len(names):
        raise DataError(f"the column '{key}' of {spec} holds class {numbers.max()}, but there are {len(names)} classes")
    return Labels(numbers, tuple(map(str, names))), []


def open_hf(spec: str, *, key: str | None = None, label_key: str | None = None) -> ImageFiles:
    """The images of a dataset: ``hf:PATH`` or ``hf:PATH:SPLIT``.

    Args:
        spec: a folder of ``save_to_disk``, a folder of parquet files or one of them, or a name that the package knows.
        key: the column of images; by default the only one.
        label_key: the column of classes; by default the only one of type ClassLabel, or one of a usual name.

    Raises:
        DataError: the package or the dataset is missing, or columns are not what they should be.
    """
    dataset = _open(spec)
    features = dataset.features
    column = _column(spec, features, key)
    labels, notes = _labels(spec, dataset, features, label_key)
    if len(dataset) == 0:
        raise DataError(f"{spec} is empty")
    images = dataset.select_columns([column])
    if type(features[column]).__name__ == "Image":
        images = images.cast_column(column, type(features[column])(decode=False))

    def read(index: int) -> bytes:
        cell: Any = images[index][column]
        if isinstance(cell, Mapping):
            path = cell.get("path")
            cell = cell.get("bytes")
            if cell is None and path is not None:
                with open(path, "rb") as stream:
                    return read_bounded(stream, Path(path).stat().st_size)
        if not isinstance(cell, bytes):
            raise BadImage("the row has no image")
        return cell

    def stamp() -> Iterator[object]:
        yield spec, column, len(images)
        yield dataset._fingerprint  # the package's own hash of the data and of what was done to it
        for file in dataset.cache_files:
            status = Path(file["filename"]).stat()
            yield str(Path(file["filename"]).resolve()), status.st_size, status.st_mtime_ns

    return ImageFiles(spec, _Rows(len(images)), read, stamp, labels, tuple(notes))
