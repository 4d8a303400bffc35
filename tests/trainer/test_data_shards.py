"""WebDataset shards: tar files read in place."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from pydiffaccel.trainer.data import DataError, load_data
from pydiffaccel.trainer.data.images import LazyImages
from pydiffaccel.trainer.data.shards import find_shards

from .conftest import write_images


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def pngs(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in write_images(tmp_path / "plain", 6)]


@pytest.fixture
def shards(tmp_path: Path, pngs: list[bytes]) -> Path:
    """Two shards of three images with classes 7, 3, 7, 3, 7, 3."""
    for shard in range(2):
        members = {}
        for i in range(3 * shard, 3 * shard + 3):
            members |= {f"{i:04d}.png": pngs[i], f"{i:04d}.cls": str((7, 3)[i % 2]).encode(), f"{i:04d}.txt": b"text"}
        write_tar(tmp_path / "set" / f"{shard:03d}.tar", members)
    return tmp_path / "set"


@pytest.mark.parametrize("spec", ["", "{000..001}.tar", "*.tar", "00[01].tar"])
@pytest.mark.parametrize("limit", [2**30, 1])
def test_shards_equal_a_folder(shards: Path, spec: str, limit: int) -> None:
    data = load_data(shards / spec, memory_limit=limit)
    plain = load_data(shards.parent / "plain")
    rows = np.array([5, 0, 3, 3])
    assert torch.equal(data.batch(rows), plain.batch(rows))
    assert isinstance(data.values, LazyImages) == (limit == 1)
    assert data.classes == ("3", "7")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1, 0, 1, 0]


def test_one_shard(shards: Path) -> None:
    assert len(load_data(shards / "001.tar")) == 3


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path: Path, pngs: list[bytes], form: int) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{'d' * 90}/{'n' * 90}{i}.png": png for i, png in enumerate(pngs)}, form)
    assert torch.equal(load_data(path).batch(np.arange(6)), load_data(tmp_path / "plain").batch(np.arange(6)))


def test_ranges_have_leading_zeros_and_may_be_several(tmp_path: Path) -> None:
    names = [f"{a}-{b:02d}.tar" for a in (1, 2) for b in (8, 9, 10)]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_shards(str(tmp_path / "{1..2}-{08..10}.tar"))] == names


def test_labels_of_json(tmp_path: Path, pngs: list[bytes]) -> None:
    def described(**fields: object) -> bytes:
        return json.dumps(fields).encode()

    members = {"a.png": pngs[0], "a.json": described(label="cat", breed=4), "b.png": pngs[1]}
    path = write_tar(tmp_path / "a.tar", members | {"b.json": described(label="ant", breed=2)})
    assert load_data(path).classes == ("ant", "cat")
    assert load_data(path, label_key="breed").classes == ("2", "4")
    with pytest.raises(DataError, match=r"2 of 2 images .* have no label 'colour', as 'a.tar:a.png'"):
        load_data(path, label_key="colour")
    path = write_tar(tmp_path / "b.tar", members)
    with pytest.raises(DataError, match=r"1 of 2 images .* have no label, as 'b.tar:b.png'"):
        load_data(path)
    path = write_tar(tmp_path / "c.tar", members | {"b.json": b"{"})
    with pytest.raises(DataError, match=r"the label of 'c.tar:b.png' .* cannot be read"):
        load_data(path)


def test_several_images_of_a_sample(tmp_path: Path, pngs: list[bytes]) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": pngs[0], "a.jpg": pngs[1], "a.seg.png": pngs[2]})
    with pytest.raises(DataError, match="endings, 'png' and 'jpg'; say with --data_key"):
        load_data(path)
    for row, key in enumerate(("png", "jpg", "seg.png")):
        batch = load_data(path, key=key).batch(np.array([0]))
        assert torch.equal(batch, load_data(tmp_path / "plain").batch(np.array([row])))
    with pytest.raises(DataError, match=r"no images that end in webp: the endings are 'jpg', 'png', 'seg.png'"):
        load_data(path, key="webp")


def test_bad_images_are_named_with_their_shard(tmp_path: Path, pngs: list[bytes]) -> None:
    members = {"a.png": pngs[0], "a.cls": b"9", "b.png": b"text", "b.cls": b"4", "c.txt": b"no image"}
    path = write_tar(tmp_path / "a.tar", members | {"d.png": pngs[1], "d.cls": b"5"})
    with pytest.raises(DataError, match=r"1 of 3 images .*'a.tar:b.png'"):
        load_data(path)
    data = load_data(path, skip_bad_images=True)
    assert data.classes == ("4", "5", "9")
    assert data.labels is not None
    assert data.labels.tolist() == [2, 1]
    assert "1 classes have no images: '4'" in data.notes
    assert any("1 samples without an image" in note for note in data.notes)


def test_hostile_members_are_harmless(tmp_path: Path, pngs: list[bytes]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "x.png"), (tarfile.CHRTYPE, "")):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, target
            archive.addfile(info)
        for name in ("../../up.png", "/abs.png"):
            info = tarfile.TarInfo(name)
            info.size = len(pngs[0])
            archive.addfile(info, io.BytesIO(pngs[0]))
    before = sorted(tmp_path.parent.rglob("*"))
    assert len(load_data(tmp_path / "a.tar")) == 2
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_damaged_shards(shards: Path, tmp_path: Path) -> None:
    path = shards / "001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(DataError, match=r"001.tar cannot be read as a tar file"):
        load_data(shards)
    damaged = bytearray(whole)
    second = whole.index(b"0003.cls")
    damaged[second : second + 100] = b"\xff" * 100
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"the header at byte {second:,} is damaged"):
        load_data(shards)
    path.write_bytes(b"\x1f\x8b" + whole[2:])
    with pytest.raises(DataError, match="compressed ones must be unpacked"):
        load_data(shards)
    path.unlink()
    with pytest.raises(DataError, match=r"001.tar does not exist"):
        load_data(shards / "{000..001}.tar")
    with pytest.raises(DataError, match="a range of shards runs upwards"):
        load_data(shards / "{5..1}.tar")
    with pytest.raises(DataError, match=r"a-\*.tar does not exist"):
        load_data(tmp_path / "a-*.tar")
