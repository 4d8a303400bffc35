from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer import checkpoint as module
from pydiffaccel.trainer.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer,
    optimizer_state,
    prune_checkpoints,
    read_json,
    save_checkpoint,
    write_file,
)
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

    def fails(path: Path, value: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_json", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, a_checkpoint(2))
    monkeypatch.undo()
    assert [step for step, _ in list_checkpoints(tmp_path)] == [1]
    save_checkpoint(tmp_path, a_checkpoint(2))
    prune_checkpoints(tmp_path, 0)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step_00000001", "step_00000002"]


def test_an_interrupted_file_keeps_its_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", b"old")

    def fails(handle: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(module.os, "fsync", fails)
    with pytest.raises(OSError, match="power cut"):
        write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (9, 10, 100_000_000):
        save_checkpoint(tmp_path, a_checkpoint(step))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [9, 10, 100_000_000]
    prune_checkpoints(tmp_path, 2)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [10, 100_000_000]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"{}"),
        ("state.json", b'{"format": "pydiffaccel.checkpoint", "version": 99}'),
        ("model.safetensors", b"garbage"),
        ("model.safetensors", None),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = save_checkpoint(tmp_path, a_checkpoint(1))
    if content is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(content)
    with pytest.raises(CommandError, match=r"step_00000001 cannot be used .* remove that folder"):
        load_checkpoint(path)


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
