from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pydiffaccel.trainer.data import BatchOrder, DataError, load_data, load_digits
from pydiffaccel.trainer.data.decode import decode
from pydiffaccel.trainer.data.images import LazyImages

from .conftest import write_images

ROOT = Path(__file__).resolve().parents[2]


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for item in sorted(folder.rglob("*")):
            if item.is_file():
                archive.write(item, item.relative_to(folder).as_posix())
    return target


# --- the packaged digits


def test_digits_are_what_the_readme_says() -> None:
    data = load_digits()
    assert (len(data), data.shape, data.classes) == (1797, (1, 8, 8), tuple("0123456789"))
    x = data.batch(np.arange(1797))
    assert x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_carry_source_and_licence() -> None:
    with np.load(ROOT / "pydiffaccel" / "data" / "digits.npz", allow_pickle=False) as npz:
        assert "UCI" in str(npz["source"])
        assert "CC BY 4.0" in str(npz["licence"])
        assert "Alpaydin" in str(npz["licence"])


def test_the_script_rebuilds_the_digits_byte_for_byte() -> None:
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "build_digits.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- the order of batches


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 100), st.integers(0, 5))
def test_order_does_not_depend_on_how_it_is_cut(num_images: int, first: int, n: int, seed: int) -> None:
    whole = BatchOrder(num_images, seed).indices(first, n)
    order = BatchOrder(num_images, seed)
    backwards = [order.indices(first + j, 1)[0] for j in reversed(range(n))]
    assert whole.tolist() == backwards[::-1]


def test_each_epoch_has_every_image_once_in_its_own_order() -> None:
    order = BatchOrder(10, seed=3)
    first, second = order.indices(0, 10), order.indices(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    assert first.tolist() != BatchOrder(10, seed=4).indices(0, 10).tolist()


# --- folders and zips


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    data = load_data(tmp_path)
    assert (len(data), data.shape, data.labels, data.classes) == (3, (3, 8, 8), None, ())
    first = np.asarray(Image.open(paths[0])).transpose(2, 0, 1)
    assert torch.equal(data.batch(np.array([0]))[0], torch.from_numpy(first.copy()).float() * (2.0 / 255) - 1)


def test_white_is_1_and_black_is_minus_1(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png")
    assert load_data(tmp_path).batch(np.array([0])).flatten().tolist() == [-1, 1]


def test_class_folders_give_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "dog", 2)
    write_images(tmp_path / "train" / "cat", 3)
    data = load_data(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1]


def test_zip_equals_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "a", 2)
    write_images(tmp_path / "set" / "b", 2)
    (tmp_path / "set" / "__MACOSX").mkdir()
    (tmp_path / "set" / "__MACOSX" / "00.png").write_bytes(b"no image")
    (tmp_path / "set" / ".hidden.png").write_bytes(b"no image")
    folder, archive = load_data(tmp_path / "set"), load_data(zipped(tmp_path / "set", tmp_path / "set.zip"))
    assert np.array_equal(np.asarray(folder.values), np.asarray(archive.values))
    assert folder.labels is not None
    assert archive.labels is not None
    assert folder.labels.tolist() == archive.labels.tolist()


def test_sets_that_do_not_fit_in_memory_are_decoded_on_demand(tmp_path: Path) -> None:
    write_images(tmp_path, 5, size=(9, 8))
    kept, lazy = load_data(tmp_path), load_data(tmp_path, memory_limit=100)
    assert isinstance(lazy.values, LazyImages)
    rows = np.array([4, 0, 0, 3])
    assert torch.equal(kept.batch(rows), lazy.batch(rows))
    assert any("not fit in memory" in note for note in lazy.notes)


def test_on_demand_images_are_resized_like_kept_ones(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2, size=(9, 12))
    write_images(tmp_path / "b", 2, size=(16, 10))
    kept = load_data(tmp_path, resolution=8)
    lazy = load_data(tmp_path, resolution=8, memory_limit=100)
    assert kept.shape == lazy.shape == (3, 8, 8)
    assert torch.equal(kept.batch(np.arange(4)), lazy.batch(np.arange(4)))


def test_gray_images_have_one_channel(tmp_path: Path) -> None:
    write_images(tmp_path, 2, mode="L")
    assert load_data(tmp_path).shape == (1, 8, 8)


@pytest.mark.parametrize("limit", [2**30, 100])
def test_gray_among_colour_becomes_colour_and_is_noted(tmp_path: Path, limit: int) -> None:
    write_images(tmp_path / "x", 2)
    write_images(tmp_path / "y", 1, mode="L")
    data = load_data(tmp_path, memory_limit=limit)
    assert data.shape == (3, 8, 8)
    assert any("1 of 3 images are gray" in note for note in data.notes)
    gray = data.batch(np.array([2]))[0]
    assert torch.equal(gray[0], gray[1])


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),  # nothing but the white below
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("LA", (7, 255), [7]),
        ("1", 1, [255]),
        ("I;16", 257 * 9, [9]),
        ("CMYK", (0, 0, 0, 0), [255, 255, 255]),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: object, expected: list[int]) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (2, 2), colour).save(path)  # type: ignore[arg-type]
    assert decode(path.read_bytes())[0, 0].tolist() == expected


def test_orientation_tag_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_data(tmp_path).shape == (3, 6, 4)
    assert load_data(tmp_path, memory_limit=1).batch(np.array([0])).shape == (1, 3, 6, 4)


def test_resolution_resizes_the_shorter_side_and_cuts_the_centre() -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 255
    import io

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    assert (decode(out.getvalue(), 4) == 255).all()


# --- what cannot be used says so


def refused(path: Path, match: str, **options: object) -> None:
    with pytest.raises(DataError, match=match):
        load_data(path, **options)  # type: ignore[arg-type]


def test_missing_data(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere does not exist")


def test_empty_folder_and_empty_zip(tmp_path: Path) -> None:
    refused(tmp_path, "holds no images: it is empty")
    zipfile.ZipFile(tmp_path / "a.zip", "w").close()
    refused(tmp_path / "a.zip", "holds no images: it is empty")


def test_folder_without_images_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path, "its 1 files are no images, as 'notes.txt'")


def test_other_files_beside_images_are_noted(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    (tmp_path / "labels.csv").write_text("a,b")
    assert "1 files that are no images were ignored, as 'labels.csv'" in load_data(tmp_path).notes


@pytest.mark.parametrize("limit", [2**30, 10])
def test_unreadable_images_are_named_and_counted(tmp_path: Path, limit: int) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "bad1.png").write_bytes(b"this is text")
    (tmp_path / "bad2.png").write_bytes(b"")
    refused(
        tmp_path,
        r"2 of 5 images .* cannot be read: 'bad1.png' \(.*\), 'bad2.png'.*--skip_bad_images",
        memory_limit=limit,
    )
    data = load_data(tmp_path, skip_bad_images=True, memory_limit=limit)
    assert len(data) == 3
    assert any("2 unreadable images were left out: 'bad1.png'" in note for note in data.notes)


def test_cut_off_image_is_found(tmp_path: Path) -> None:
    write_images(tmp_path, 2, size=(32, 32))
    whole = (tmp_path / "01.png").read_bytes()
    (tmp_path / "01.png").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "1 of 2 images .* '01.png'")


def test_cut_off_image_found_late_names_itself_or_is_stood_in_for(tmp_path: Path) -> None:
    write_images(tmp_path, 3, size=(32, 32))
    whole = (tmp_path / "01.png").read_bytes()
    (tmp_path / "01.png").write_bytes(whole[: len(whole) // 2])
    data = load_data(tmp_path, memory_limit=1)
    with pytest.raises(DataError, match=r"'01.png' in .* cannot be read .*--skip_bad_images"):
        data.batch(np.arange(3))
    said: list[str] = []
    data = load_data(tmp_path, memory_limit=1, skip_bad_images=True, report=said.append)
    x = data.batch(np.arange(3))
    assert torch.equal(x[1], x[2])
    assert "'01.png'" in said[0]
    data.batch(np.arange(3))
    assert len(said) == 1


def test_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"text")
    refused(tmp_path, "none of the 1 images .* can be read", skip_bad_images=True)


@pytest.mark.parametrize("limit", [2**30, 10])
def test_mixed_sizes_name_both_and_the_way_out(tmp_path: Path, limit: int) -> None:
    write_images(tmp_path / "a", 1, size=(8, 8))
    write_images(tmp_path / "b", 1, size=(10, 8))
    refused(tmp_path, "'a/00.png' is 8 x 8, 'b/00.png' is 10 x 8; give --resolution", memory_limit=limit)
    assert load_data(tmp_path, resolution=8, memory_limit=limit).shape == (3, 8, 8)


def test_images_beside_and_inside_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    write_images(tmp_path / "cat", 1)
    refused(tmp_path, "both beside and inside class folders")


def test_other_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "neither a folder of images nor a .zip, .tar, .npz, .npy or .safetensors file")


@pytest.mark.parametrize("suffix", ["zip", "npz", "npy"])
def test_damaged_archives(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"garbage")
    refused(tmp_path / f"a.{suffix}", "cannot be read as an? ")


def test_damage_inside_a_zip_is_one_image(tmp_path: Path) -> None:
    write_images(tmp_path / "set", 3, size=(32, 32))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "set").iterdir()):
            archive.write(path, path.name)
        offset = archive.getinfo("01.png").header_offset
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[offset + 60 : offset + 90] = b"\xff" * 30
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "1 of 3 images .* '01.png'")
    assert len(load_data(tmp_path / "a.zip", skip_bad_images=True)) == 2


def test_npy_and_npz_are_not_taken_for_each_other(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8), np.uint8))
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 8, 8), np.uint8))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    refused(tmp_path / "a.npz", "it holds a single array")
    refused(tmp_path / "b.npy", "it holds several arrays")


# --- arrays


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1), (5, 1, 8, 8)])
def test_layouts_of_gray_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels.reshape(shape))
    x = load_data(tmp_path / "a.npy").batch(np.array([3, 1]))
    assert torch.equal(x[:, 0], torch.from_numpy(pixels[[3, 1]]).float() * (2.0 / 255) - 1)


def test_layouts_of_colour_arrays(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "last.npy", pixels)
    np.save(tmp_path / "first.npy", np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    rows = np.arange(5)
    assert torch.equal(load_data(tmp_path / "last.npy").batch(rows), load_data(tmp_path / "first.npy").batch(rows))


def test_floats_in_either_range(tmp_path: Path) -> None:
    unit = np.linspace(0, 1, 128).reshape(2, 8, 8)
    np.save(tmp_path / "unit.npy", unit)
    np.save(tmp_path / "both.npy", unit * 2 - 1)
    rows = np.arange(2)
    a, b = load_data(tmp_path / "unit.npy").batch(rows), load_data(tmp_path / "both.npy").batch(rows)
    torch.testing.assert_close(a, b)
    assert (float(a.min()), float(a.max())) == (-1, 1)


def test_arrays_are_resized(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 12, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "f.npy", pixels.astype(np.float32) / 255)
    a, f = (load_data(tmp_path / name, resolution=8).batch(np.arange(2)) for name in ("a.npy", "f.npy"))
    assert a.shape == f.shape == (2, 3, 8, 8)
    torch.testing.assert_close(a, f, atol=0.06, rtol=0)  # 8 bits are rounded and clipped on the way


def test_npz_keys(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "one.npz", anything=images)
    assert len(load_data(tmp_path / "one.npz")) == 4
    np.savez(tmp_path / "known.npz", images=images, masks=images[:2], labels=np.array([3, 5, 3, 9]))
    data = load_data(tmp_path / "known.npz")
    assert (len(data), data.classes) == (4, ("3", "5", "9"))
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 0, 2]
    assert len(load_data(tmp_path / "known.npz", key="masks")) == 2
    np.savez(tmp_path / "two.npz", left=images, right=images)
    refused(tmp_path / "two.npz", r"holds 'left' \[4, 8, 8\], 'right' \[4, 8, 8\]; say with --data_key")
    refused(tmp_path / "two.npz", "has no array 'up'", key="up")
    refused(tmp_path, "--data_key and --label_key name arrays of an npz", key="up")


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((4, 8), np.uint8), r"shape \[4, 8\]; images must be"),
        (np.zeros((4, 8, 8, 5), np.uint8), r"shape \[4, 8, 8, 5\]"),
        (np.zeros((0, 8, 8), np.uint8), "is empty"),
        (np.zeros((4, 8, 8), np.int32), "dtype int32"),
        (np.full((4, 8, 8), 200.0), "floats from 200 to 200"),
        (np.full((4, 8, 8), np.nan), "NaN or infinite"),
        (np.array([[[None]]], object), "cannot be read"),
    ],
)
def test_arrays_that_are_no_images(tmp_path: Path, array: np.ndarray, match: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    refused(tmp_path / "a.npy", match)


def test_resized_digits() -> None:
    assert load_data(None, resolution=16).batch(np.arange(3)).shape == (3, 1, 16, 16)
