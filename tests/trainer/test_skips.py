"""Steps without a finite loss or gradient: they change nothing, are counted, and too many in a row end the run."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pydiffaccel.trainer.checkpoint import list_checkpoints
from pydiffaccel.trainer.ema import make_ema
from pydiffaccel.trainer.loop import Trainer
from pydiffaccel.trainer.update import Update

from .conftest import same_run

Train = Callable[..., Path]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])]


class Parts:
    """A layer with everything that an update changes."""

    def __init__(self, device: str = "cpu", *, fused: bool = True, fp16: bool = False) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3).to(device)
        self.optimizer = torch.optim.AdamW(self.layer.parameters(), lr=0.1, fused=fused)
        self.scheduler = LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self.ema = make_ema(self.layer, 0.9)
        self.scaler = torch.amp.GradScaler(device, enabled=fp16)
        self.update = Update(
            self.layer, self.optimizer, self.scaler, [self.scheduler], [self.ema], torch.device(device)
        )

    def gradient(self, x: float, spoilt_by: float = 0.0) -> tuple[Tensor, Tensor]:
        device = self.layer.weight.device
        loss = self.layer(torch.linspace(-x, x, 8, device=device).view(2, 4)).square().sum()
        self.scaler.scale(loss).backward()
        if spoilt_by:
            self.layer.weight.grad[1, 2] = spoilt_by  # type: ignore[index]
        self.scaler.unscale_(self.optimizer)
        return loss.detach(), nn.utils.clip_grad_norm_(self.layer.parameters(), 1.0)

    def state(self) -> list[Any]:
        self.update.settle()
        moments = [value for entry in self.optimizer.state.values() for value in entry.values()]
        tensors = [*self.layer.state_dict().values(), *self.ema.state_dict().values(), *moments]
        return [copy.deepcopy(self.scheduler.state_dict()), *(tensor.tolist() for tensor in tensors)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("where", ["loss", "nan", "inf"])
def test_a_skipped_step_changes_nothing(device: str, fused: bool, fp16: bool, where: str) -> None:
    skipping, plain = (Parts(device, fused=fused, fp16=fp16) for _ in range(2))
    for x in (1.0, 2.0, 3.0):
        before = skipping.state()
        loss, norm = skipping.gradient(1.5, 0.0 if where == "loss" else float(where))
        skipping.update(loss * math.inf if where == "loss" else loss, norm)
        assert skipping.state() == before
        rates = [parts.update(*parts.gradient(x)) for parts in (skipping, plain)]
        assert rates[0] == rates[1]
        assert skipping.state() == plain.state() != before


@pytest.mark.parametrize("device", DEVICES)
def test_without_skips_it_is_the_plain_loop(device: str) -> None:
    a, b = Parts(device), Parts(device)
    for x in (1.0, 2.0, 3.0):
        a.update(*a.gradient(x))
        b.gradient(x)
        b.optimizer.step()
        b.optimizer.zero_grad()
        b.scheduler.step()
        b.ema.update_parameters(b.layer)
        assert a.state() == b.state()


@pytest.mark.parametrize("finite", [False, True])
def test_the_optimizer_decides_on_the_device(finite: bool) -> None:
    """The step that is used on a GPU, on the CPU."""
    a, b = Parts(), Parts()
    for parts in (a, b):
        parts.update(*parts.gradient(1.0))
        parts.gradient(2.0)
    before = a.state()
    a.update._step_on_device(torch.tensor(finite))
    if finite:
        b.optimizer.step()
        assert a.state() == b.state()
    else:
        assert a.state() == before
    assert not hasattr(a.optimizer, "found_inf")


# --- in a run


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """The losses of these steps (counted from 1) are not finite."""
    original = Trainer.losses

    def losses(self: Trainer, part: int) -> Iterator[Tensor]:
        for loss in original(self, part):
            yield loss * math.nan if self.step + 1 in steps else loss

    monkeypatch.setattr(Trainer, "losses", losses)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_skipped_steps_are_counted(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, {2, 4, 5})
    folder = train("run", "--max_skipped_steps", "3", "--log_every", "4")
    assert [row.get("skipped") for row in rows(folder)] == [None, True, None, True, True, None]
    assert [row["loss"] is None for row in rows(folder)] == [False, True, False, True, True, False]
    # The learning rate rises with the steps that were made.
    assert [row["learning_rate"] / rows(folder)[0]["learning_rate"] for row in rows(folder)] == pytest.approx(
        [1, 2, 2, 3, 3, 3]
    )
    assert json.loads((folder / "summary.json").read_text())["skipped_steps"] == 3
    said = capsys.readouterr().err
    assert "note: step 2 is skipped: its loss is nan" in said
    assert "note: step 5" not in said
    assert not (folder / "nonfinite.json").exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_too_many_in_a_row_end_the_run(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], resumed: bool
) -> None:
    flags = ("--max_skipped_steps", "3", "--checkpointing_steps", "2", "--gradient_accumulation_steps", "2")
    spoil(monkeypatch, {4, 5, 6, 7})
    if resumed:  # in the middle of them
        train("run", *flags, steps=5)
    folder = train("run", *flags, steps=8, code=1)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "3 steps in a row, up to step 6, had no finite loss or gradient (loss nan, norm nan)" in said
    assert f"{folder / 'nonfinite.json'} names their images" in said
    found = json.loads((folder / "nonfinite.json").read_text())
    assert [entry["step"] for entry in found["steps"]] == [4, 5, 6]
    assert [len(entry["indices"]) for entry in found["steps"]] == [16] * 3
    assert found["steps"][-1]["loss"] == "nan"
    assert len({index for entry in found["steps"] for index in entry["indices"]}) == 48  # no image twice in one pass
    assert list_checkpoints(folder / "checkpoints")[-1][0] == (5 if resumed else 4)
    monkeypatch.undo()  # what was wrong is put right: the run goes on from its checkpoint
    skipped = [row.get("skipped", False) for row in rows(train("run", *flags, steps=8))]
    assert skipped == [False] * 3 + [True] * (2 if resumed else 1) + [False] * (3 if resumed else 4)


def test_the_images_that_are_named_are_those_of_the_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    from pydiffaccel.trainer.feed import Feed

    original = Feed.batch

    def batch(self: Feed, step: int, part: int) -> Any:
        found = original(self, step, part)
        seen.append(found.indices.tolist())
        assert part or self.indices(step)[: len(found.indices)].tolist() == seen[-1]
        return found

    monkeypatch.setattr(Feed, "batch", batch)
    spoil(monkeypatch, {1, 2})
    folder = train("run", "--max_skipped_steps", "2", "--gradient_accumulation_steps", "2", code=1)
    named = json.loads((folder / "nonfinite.json").read_text())["steps"]
    assert [entry["indices"] for entry in named] == [seen[0] + seen[1], seen[2] + seen[3]]


def test_skipped_steps_continue_bit_for_bit(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {2, 3, 5})
    flags = ("--coupling", "queue", "--coupling_ahead", "--momentum_decay")
    whole = train("whole", *flags)
    original = Trainer.train_step

    class Killed(BaseException):
        pass

    def dies(self: Trainer) -> object:
        if self.step == 4:
            raise Killed
        return original(self)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", dies)
        with pytest.raises(Killed):
            train("cut", *flags, "--checkpointing_steps", "3")
    same_run(whole, train("cut", *flags))


@pytest.mark.parametrize("broken", [False, True])
def test_overflows_of_fp16_count_once_the_scale_is_down(
    train: Train, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """A scale that is too high is found by trying; gradients that overflow at any scale are no matter of scale."""
    from pydiffaccel.trainer import update

    original = torch.amp.GradScaler.unscale_

    def unscale(self: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> None:
        if broken or self.get_scale() > 2**12:
            for group in optimizer.param_groups:
                group["params"][0].grad.fill_(math.inf)
        original(self, optimizer)

    monkeypatch.setattr(update.torch.amp.GradScaler, "unscale_", unscale)
    flags = ("--mixed_precision", "fp16", "--max_skipped_steps", "2", "--log_every", "1")
    folder = train("run", *flags, steps=20, code=1 if broken else 0)
    skipped = [row.get("skipped", False) for row in rows(folder)]
    if broken:
        assert (folder / "nonfinite.json").exists()
        assert skipped == [True] * 17  # 2**16 down to 1, and once more
    else:
        assert skipped == [True] * 4 + [False] * 16


def test_a_bad_learning_rate_ends_with_a_sentence(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", "--learning_rate", "1e30", "--lr_warmup_steps", "0", steps=100, code=1)
    assert "try a smaller --learning_rate" in capsys.readouterr().err
    assert json.loads((folder / "nonfinite.json").read_text())["steps"][-1]["step"] < 20
