"""Compiled networks, channels-last layout and several averages: the numbers of the plain run, up to rounding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pydiffaccel import VPProcess
from pydiffaccel._cli import CommandError
from pydiffaccel.coupling import Independent
from pydiffaccel.sampler import load_run
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import load_digits
from pydiffaccel.trainer.ema import make_emas
from pydiffaccel.trainer.loop import Trainer

from .conftest import TINY, losses

Train = Callable[..., Path]


class Network(torch.nn.Module):
    """Small enough to be compiled in seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.outer = torch.nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.tanh(self.inner(x) + time[:, None, None, None] / 1000))
        return out


def test_a_compiled_network_has_the_same_losses_and_names() -> None:
    def trained(*, compiled: bool) -> Trainer:
        options = TrainOptions(train_batch_size=8, max_train_steps=3, compile=compiled)
        network = Network()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
        trainer = Trainer(network, VPProcess(), Independent(), optimizer, load_digits(), options)
        found[compiled] = [float(trainer.train_step()[0]) for _ in range(3)]
        return trainer

    found: dict[bool, list[float]] = {}
    plain, fast = trained(compiled=False), trained(compiled=True)
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    assert list(fast.state().tensors["model"]) == list(plain.state().tensors["model"])


def test_a_network_that_cannot_be_compiled_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydiffaccel.train import main

    def broken(*_: object) -> Callable[..., object]:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    assert main(["--output_dir", str(tmp_path / "run"), "--compile", *TINY]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "--compile: the network cannot be compiled (" in said
    assert "no compiler here" in said


def test_the_layout_changes_rounding_alone(train: Train) -> None:
    plain, other = train("plain"), train("other", "--channels_last")
    assert losses(other) == pytest.approx(losses(plain), rel=1e-5)
    assert list(load_file(other / "model.safetensors")) == list(load_file(plain / "model.safetensors"))


def test_each_average_is_saved_and_can_be_sampled(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    from pydiffaccel.sample import main as sample

    folder = train("run", "--ema_halflife_images", "20", "1000", "--lr_warmup_steps", "1", steps=30)
    short, long = (load_file(folder / f"model_ema_{images}.safetensors") for images in (20, 1000))
    first = load_file(folder / "model.safetensors")
    assert all(torch.equal(first[name], short[name]) for name in short)
    assert any(not torch.equal(short[name], long[name]) for name in short)
    state = load_run(folder, ema=1000).network.state_dict()
    assert all(torch.equal(state[name], long[name]) for name in long)
    assert sample([str(folder), "--ema", "1000", "--seeds", "0", "--steps", "2"]) == 0
    assert sample([str(folder), "--ema", "7", "--seeds", "0"]) == 1
    assert "has no average of half-life 7 images; it has 20, 1000" in capsys.readouterr().err
    assert sample(["no.such:model", "--ema", "7"]) == 1
    assert "is no run, and only runs have averages of a half-life in images, got 7" in capsys.readouterr().err


def test_averages_of_an_unfinished_run(train: Train) -> None:
    folder = train("run", "--ema_halflife_images", "20", "1000", "--lr_warmup_steps", "1", steps=30)
    final = {images: load_run(folder, ema=images).network.state_dict() for images in (None, 20, 1000)}
    (folder / "summary.json").unlink()
    for images, state in final.items():
        found = load_run(folder, ema=images)
        assert not found.finished
        assert all(torch.equal(found.network.state_dict()[name], state[name]) for name in state)
    with pytest.raises(CommandError, match="has no average of half-life 5 images; it has none"):
        load_run(train("plain", steps=1), ema=5)


def test_a_half_life_is_one() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    options = TrainOptions(train_batch_size=8, gradient_accumulation_steps=2, ema_halflife_images=(32, 64))
    torch.nn.init.zeros_(layer.weight)
    emas = make_emas(layer, options)
    for ema in emas.values():
        for _ in range(100):  # past the first steps, in which the decay is lower
            ema.update_parameters(layer)
    torch.nn.init.ones_(layer.weight)
    for _ in range(2):  # of 16 images
        for ema in emas.values():
            ema.update_parameters(layer)
    found = {name: float(ema.module.weight.detach()) for name, ema in emas.items()}
    assert found == pytest.approx({"ema_32": 0.5, "ema_64": 1 - 0.5**0.5})
