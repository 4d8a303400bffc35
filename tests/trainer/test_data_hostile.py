"""Files made to do harm: bombs, paths that lead out, names that are no text."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pydiffaccel.trainer.data.files as files
from pydiffaccel.trainer.data import DataError, load_data

from .conftest import write_images


def png_of_zeros(width: int, height: int) -> bytes:
    """A gray PNG of any size in a few bytes; its pixels are cut off."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("limit", [2**30, 1])
@pytest.mark.parametrize("packed", [False, True])
def test_images_of_billions_of_pixels_are_named_with_their_size(tmp_path: Path, limit: int, packed: bool) -> None:
    write_images(tmp_path / "set", 2)
    (tmp_path / "set" / "bomb.png").write_bytes(png_of_zeros(50_000, 50_000))
    path = tmp_path / "set"
    if packed:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for item in sorted((tmp_path / "set").iterdir()):
                archive.write(item, item.name)
    with pytest.raises(DataError, match=r"1 of 3 images .* 'bomb.png' \(Image size \(2500000000 pixels\) exceeds"):
        load_data(path, memory_limit=limit)
    assert len(load_data(path, memory_limit=limit, skip_bad_images=True)) == 2


def test_a_thin_strip_is_not_blown_up(tmp_path: Path) -> None:
    write_images(tmp_path, 2, size=(300, 300))
    Image.new("L", (2_000_000, 1)).save(tmp_path / "strip.png")
    with pytest.raises(DataError, match=r"'strip.png' \(2000000 x 1 pixels are too elongated for a resolution of 256"):
        load_data(tmp_path, resolution=256)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_that_inflate_are_read_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int
) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    (png,) = write_images(tmp_path / "set", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.write(png, "good.png")
        archive.writestr("huge.png", b"\0" * 5_000_000)
    with pytest.raises(DataError, match=r"'huge.png' \(its 5,000,000 bytes are too many; image files have at most"):
        load_data(tmp_path / "a.zip")
    # The same archive with a directory that says that the member has 100 bytes.
    content = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<I", 5_000_000), struct.pack("<I", 100))
    (tmp_path / "b.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 2 images .* 'huge.png'"):
        load_data(tmp_path / "b.zip")
    assert len(load_data(tmp_path / "b.zip", skip_bad_images=True)) == 1


def test_large_files_of_a_folder_are_not_read(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    with open(tmp_path / "hole.png", "wb") as stream:
        stream.truncate(2**40)  # takes no room on the disk
    with pytest.raises(DataError, match=r"'hole.png' \(its 1,099,511,627,776 bytes are too many"):
        load_data(tmp_path)


def test_members_that_lead_out_of_a_zip_are_ignored(tmp_path: Path) -> None:
    (png,) = write_images(tmp_path / "set", 1)
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for name in ("../../up.png", "cat/../../up.png", "/abs.png", "..\\back.png", "cat/1.png", "dog/1.png"):
            archive.writestr(zipfile.ZipInfo(name), png.read_bytes())  # as it stands: write() would tidy it up
    before = sorted(tmp_path.rglob("*"))
    data = load_data(folder / "a.zip")
    assert (len(data), data.classes) == (2, ("cat", "dog"))
    assert any("4 members whose paths lead out of the archive" in note for note in data.notes)
    assert sorted(tmp_path.rglob("*")) == before


def test_names_in_messages_are_one_line_of_text(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("\x1b[31mred\n.png", b"text")
        archive.writestr("n" * 5000 + ".png", b"text")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path / "a.zip")
    assert "'?[31mred?.png'" in str(caught.value) or "..." in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_names_that_begin_with_a_point_and_a_slash(tmp_path: Path) -> None:
    (png,) = write_images(tmp_path / "set", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("./", "./cat/", "./cat/1.png", "./dog/1.png", "./dog/.hidden.png"):
            archive.writestr(zipfile.ZipInfo(name), png.read_bytes() if name.endswith("png") else b"")
    data = load_data(tmp_path / "a.zip")
    assert (len(data), data.classes, data.notes) == (2, ("cat", "dog"), ())


def test_a_member_twice(tmp_path: Path) -> None:
    (png,) = write_images(tmp_path / "set", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(png, "a.png")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(png, "a.png")
    assert len(load_data(tmp_path / "a.zip")) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_empty_class_folders_are_named(tmp_path: Path, packed: bool) -> None:
    write_images(tmp_path / "set" / "cat", 2)
    write_images(tmp_path / "set" / "dog", 1)
    (tmp_path / "set" / "emu" / "young").mkdir(parents=True)
    (tmp_path / "set" / "fox").mkdir()
    (tmp_path / "set" / "fox" / "list.txt").write_text("none")
    path = tmp_path / "set"
    if packed:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for item in sorted((tmp_path / "set").rglob("*")):
                archive.write(item, item.relative_to(tmp_path / "set").as_posix())
    data = load_data(path)
    assert data.classes == ("cat", "dog")
    assert "2 folders hold no images and are no classes: 'emu', 'fox'" in data.notes


def test_npz_that_says_to_be_larger_than_memory(tmp_path: Path) -> None:
    header = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 8, 8)}
    np.lib.format.write_array_header_1_0(header, description)  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(DataError, match=r"a.npz (does not fit in memory|cannot be read)"):
        load_data(tmp_path / "a.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """An object array is refused by the reader of each format, before anything of it is run."""

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harmed",)  # type: ignore[return-value]

    array = np.array([Harm()], object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=array)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError):
            load_data(tmp_path / name)
        with pytest.raises(DataError):
            load_data(tmp_path / name, kind="latents")
    assert not (tmp_path / "harmed").exists()
