from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    list_checkpoints,
    load_checkpoint,
    load_optimizer,
    newest_whole,
    optimizer_state,
    prune_checkpoints,
    read_json,
    save_checkpoint,
    write_file,
)
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.ema import make_ema


def a_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"model": {"w": torch.arange(3.0) + step}}, {"note": "hello", "value": 0.1})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, a_checkpoint(7))
    assert path.name == "step_00000007"
    loaded = load_checkpoint(path)
    assert (loaded.step, dict(loaded.state)) == (7, {"note": "hello", "value": 0.1})
    assert torch.equal(loaded.tensors["model"]["w"], torch.arange(3.0) + 7)


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    w = torch.arange(6.0).view(2, 3)
    path = save_checkpoint(tmp_path, Checkpoint(1, {"model": {"a": w, "b": w, "c": w.T}}, {}))
    assert torch.equal(load_checkpoint(path).tensors["model"]["c"], w.T)


def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, a_checkpoint(1))

    class Killed(BaseException):
        pass

    def dies(path: Path, value: object) -> None:
        raise Killed

    monkeypatch.setattr("pydiffaccel.trainer.checkpoint.folder.write_json", dies)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, a_checkpoint(2))
    monkeypatch.undo()
    assert (tmp_path / ".step_00000002.tmp").exists()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]
    save_checkpoint(tmp_path, a_checkpoint(2))
    prune_checkpoints(tmp_path, 0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000002"]


def test_an_interrupted_file_keeps_its_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", b"old")

    def fails(handle: int) -> None:
        raise OSError(errno.EIO, "power cut")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match=r"power cut.*/a"):
        write_file(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100_000_000):
        save_checkpoint(tmp_path, a_checkpoint(step))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [9, 10, 100_000_000]
    prune_checkpoints(tmp_path, 2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10, 100_000_000]


def test_steps_to_keep_for_good(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 9, 10):
        save_checkpoint(tmp_path, a_checkpoint(step))
    prune_checkpoints(tmp_path, 1, every=4)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [4, 8, 10]


def damage(path: Path, how: str) -> str:
    """Damages a checkpoint; returns what is said about it."""
    model, state, sums = (path / name for name in ("model.safetensors", "state.json", "checksums.json"))
    if how == "cut":
        model.write_bytes(model.read_bytes()[:-5])
        return r"model.safetensors has \d+ bytes instead of \d+"
    if how == "bit":  # in the numbers: the file alone does not tell
        content = bytearray(model.read_bytes())
        content[-3] ^= 1
        model.write_bytes(content)
        return "the checksum of model.safetensors is wrong"
    if how == "missing":
        model.unlink()
        return "model.safetensors cannot be read: No such file"
    if how == "pickle":
        torch.save({"w": torch.zeros(3)}, model)
        return "model.safetensors is a pickle"
    if how == "state":
        state.write_text(state.read_text().replace("hello", "jello"))
        return "the checksum of state.json is wrong"
    if how == "no state":
        state.write_bytes(b"{}")
        return "its format is None, version None"
    if how == "version":
        state.write_text(json.dumps({"format": "pydiffaccel.checkpoint", "version": 99}))
        return "version 99"
    if how == "sums":
        sums.write_text(sums.read_text()[:40])
        return "checksums.json is no JSON file"
    if how == "sums gone":
        sums.unlink()
        return "checksums.json cannot be read: No such file"
    assert how == "sums short"
    sums.write_text(json.dumps({"files": {}}))
    return "checksums.json does not name model.safetensors"


DAMAGES = ["cut", "bit", "missing", "pickle", "state", "no state", "version", "sums", "sums gone", "sums short"]


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_one_sentence(tmp_path: Path, how: str) -> None:
    path = save_checkpoint(tmp_path, a_checkpoint(1))
    reason = damage(path, how)
    with pytest.raises(CommandError, match=rf"step_00000001 cannot be used: .*{reason}") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", DAMAGES)
def test_the_one_before_a_damaged_one_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, a_checkpoint(step))
    for step in (2, 3):
        damage(tmp_path / f"step_{step:08d}", how)
    assert newest_whole(tmp_path) == tmp_path / "step_00000001"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].endswith("it is kept as step_00000003.damaged, and step_00000001 is used")
    names = ["step_00000001", "step_00000002.damaged", "step_00000003.damaged"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert newest_whole(tmp_path) == tmp_path / "step_00000001"
    assert capsys.readouterr().err == ""


def test_where_all_are_damaged_nothing_begins_anew(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) is None
    for step in (1, 2):
        damage(save_checkpoint(tmp_path, a_checkpoint(step)), "bit")
    for _ in range(2):
        with pytest.raises(CommandError, match=r"step_00000002 cannot be used: .*; no other one is left: remove "):
            newest_whole(tmp_path)
    assert len(list_checkpoints(tmp_path)) == 2
    save_checkpoint(tmp_path, a_checkpoint(0))
    newest_whole(tmp_path)
    shutil.rmtree(tmp_path / "step_00000000")
    with pytest.raises(CommandError, match="holds only damaged checkpoints"):
        newest_whole(tmp_path)


def first_format(path: Path) -> None:
    """Makes a checkpoint what the first version wrote."""
    (path / "checksums.json").unlink()
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "version": 1}))


def test_first_format_is_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, a_checkpoint(7))
    first_format(path)
    assert torch.equal(load_checkpoint(path).tensors["model"]["w"], torch.arange(3.0) + 7)
    damage(path, "cut")
    with pytest.raises(CommandError, match="step_00000007 cannot be used"):
        load_checkpoint(path)


@pytest.mark.parametrize("writes", ["file", "zip", "folder", "text", "nothing"])
def test_foreign_checkpoints_are_refused(tmp_path: Path, writes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    path = tmp_path / "model.ckpt"
    if writes == "file":
        path.write_bytes(pickle.dumps({"w": 1}))
    elif writes == "zip":
        torch.save({"w": torch.zeros(2)}, path)
    elif writes == "folder":
        path.mkdir()
        torch.save({"w": torch.zeros(2)}, path / "optimizer.bin")
    elif writes == "text":
        path.write_text("weights")
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    expected = {
        **dict.fromkeys(("file", "zip"), "is a pickle, which could run code when it is read; a checkpoint is a folder"),
        "folder": r"holds no state.json, so it is no checkpoint of this package \('optimizer.bin' is a pickle",
        "text": "is a file; a checkpoint is a folder",
        "nothing": "does not exist",
    }
    with pytest.raises(CommandError, match=expected[writes]):
        load_checkpoint(path)


# --- written by a thread


@pytest.mark.parametrize("ahead", [False, True])
def test_the_writer_keeps_what_it_was_given(tmp_path: Path, ahead: bool) -> None:
    """Training goes on in the tensors that are being written."""
    w, notes = torch.zeros(1000), ["a"]
    begin = threading.Event()
    with CheckpointWriter(tmp_path, 2, 4, ahead=ahead, before=lambda: ahead and begin.wait()) as writer:
        for step in (4, 5, 6, 7):
            begin.clear()
            writer.save(Checkpoint(step, {"model": {"w": w}}, {"notes": notes}))
            w += 1
            notes.append("b")
            begin.set()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [4, 6, 7]
    for step, path in list_checkpoints(tmp_path):
        loaded = load_checkpoint(path)
        assert torch.equal(loaded.tensors["model"]["w"], torch.full((1000,), float(step - 4)))
        assert loaded.state["notes"] == ["a"] + ["b"] * (step - 4)


def test_one_is_written_at_a_time(tmp_path: Path) -> None:
    busy, begin = threading.Lock(), threading.Event()

    def before() -> None:
        assert busy.acquire(blocking=False)
        begin.wait(0.05)
        busy.release()

    with CheckpointWriter(tmp_path, before=before) as writer:
        for step in range(4):
            writer.save(a_checkpoint(step))
    assert len(list_checkpoints(tmp_path)) == 4


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("call", ["wait", "check", "save", "exit"])
def test_what_the_writer_comes_upon_is_raised(tmp_path: Path, ahead: bool, call: str) -> None:
    folder = tmp_path / "run"
    save_checkpoint(folder, a_checkpoint(3))

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write() -> None:
        with CheckpointWriter(folder, ahead=ahead, before=full) as writer:
            writer.save(a_checkpoint(4))
            if call == "check":
                writer._join()
            if call in ("wait", "check"):
                getattr(writer, call)()
            if call == "save":
                writer.save(a_checkpoint(5))

    sentence = r"step 4 could not be written to .* \(No space left on device\); the same command continues from step 3"
    with pytest.raises(CommandError, match=sentence):
        write()
    assert [step for step, _ in list_checkpoints(folder)] == [3]


def test_defects_of_the_writer_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"), CheckpointWriter(tmp_path) as writer:
        writer.save(Checkpoint(1, {}, {"value": float("nan")}))


@pytest.mark.parametrize("content", ["[1]", "{", "\ud800"])
def test_json_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(CommandError, match=r"a\.json (is no JSON file|must hold a JSON object)"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("fused", [False, True])
def test_optimizer_continues_bit_for_bit(tmp_path: Path, fused: bool) -> None:
    def make() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.8, 0.99), fused=fused)

    def step(layer: nn.Linear, optimizer: torch.optim.AdamW, x: float) -> None:
        optimizer.zero_grad()
        layer(torch.full((4, 3), x)).square().sum().backward()
        optimizer.step()

    a, optimizer_a = make()
    for x in (1.0, 2.0, 3.0):
        step(a, optimizer_a, x)
    tensors, rest = optimizer_state(optimizer_a)
    path = save_checkpoint(tmp_path, Checkpoint(3, {"model": a.state_dict(), "optimizer": tensors}, {"o": rest}))
    loaded = load_checkpoint(path)
    b, optimizer_b = make()
    b.load_state_dict(dict(loaded.tensors["model"]))
    load_optimizer(optimizer_b, loaded.tensors["optimizer"], loaded.state["o"])
    assert optimizer_b.param_groups[0]["betas"] == (0.8, 0.99)
    for x in (4.0, 5.0):
        step(a, optimizer_a, x)
        step(b, optimizer_b, x)
    assert torch.equal(a.weight, b.weight)


def test_average_follows_its_formula() -> None:
    layer = nn.Linear(1, 1, bias=False)
    ema = make_ema(layer, 0.5)
    values = [3.0, 5.0, -1.0, 2.0, 8.0, 1.0, 7.0]
    expected = 0.0
    for n, value in enumerate(values):
        nn.init.constant_(layer.weight, value)
        ema.update_parameters(layer)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if n == 0 else decay * expected + (1 - decay) * value
        assert float(ema.module.weight.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_average_refuses_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        make_ema(nn.Linear(1, 1), decay)


def test_options_of_older_runs_get_the_defaults() -> None:
    values = TrainOptions().to_dict()
    for name in ("checkpoints_keep_every", "checkpoint_async", "resume_from_checkpoint", "max_skipped_steps"):
        del values[name]
    assert TrainOptions.from_dict(values) == TrainOptions()
