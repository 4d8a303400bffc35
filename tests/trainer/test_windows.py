"""``--coupling_window``: the images of several batches are paired as one large batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import Hungarian, PendingNoise
from pydiffaccel.forward import FlowProcess
from pydiffaccel.losses import diffusion_loss
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.trainer import windows
from pydiffaccel.trainer.build import make_coupling, make_process
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import load_digits
from pydiffaccel.trainer.describe import describe_coupling
from pydiffaccel.trainer.feed import Batch, Feed
from pydiffaccel.trainer.loader import Loader
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.parallel import Ranks
from pydiffaccel.trainer.windows import interleaved

from .conftest import continues_exactly, refused, same_run

Train = Callable[..., Path]
PARTS, SIZE = 2, 3
SINGLE = Ranks()


def feed_of(
    ranks: Ranks = SINGLE, *, size: int = SIZE, parts: int = PARTS, max_train_steps: int = 6, **settings: Any
) -> Feed:
    """The batches of a run on the digits whose window does not divide the parts of a step."""
    settings = {"train_batch_size": 8, "coupling": "hungarian"} | settings
    o = TrainOptions(
        coupling_window=size, gradient_accumulation_steps=parts, max_train_steps=max_train_steps, **settings
    )
    process, coupling = make_process(o), make_coupling(o)
    objective = Objective(process, coupling, None, None, o.kl_objective, o.path_times, None)
    return Feed(load_digits(), coupling, objective, o, torch.device("cpu"), ranks)


def fed(feed: Feed, steps: int = 6, first: int = 0, parts: int = PARTS) -> list[Batch]:
    """The batches of steps first .. steps - 1."""
    found = [feed.batch(step, part) for step in range(first, steps) for part in range(parts)]
    feed.forget_ahead()
    return found


def noises(batches: list[Batch]) -> Tensor:
    """Noises ``[parts, B, *]``."""
    return torch.stack([batch.noise for batch in batches if batch.noise is not None])


def sorted_rows(rows: Tensor) -> Tensor:
    """Rows ``[N, *]`` as ``[N, D]`` in the order of their first elements."""
    rows = rows.flatten(1)
    return rows[rows[:, 0].argsort()]


def place(step: int, first_sample: int) -> dict[str, int]:
    return {"seed": 0, "step": step, "first_sample": first_sample}


SETTINGS: dict[str, dict[str, Any]] = {
    "hungarian": {},
    "pool": {"hungarian_pool": 30},
    "project": {"hungarian_project": 16},
    "flipped": {"random_flip": True, "data_scale": 2.0},
    "within": {"class_conditional": True},
    "across": {"class_conditional": True, "hungarian_labels": "across"},
    "sinkhorn": {"coupling": "sinkhorn", "class_conditional": True},
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_window_is_paired_as_one_batch(name: str, ahead: bool) -> None:
    feed = feed_of(coupling_ahead=ahead, **SETTINGS[name])
    batches = fed(feed)
    single = fed(feed_of(size=1, **SETTINGS[name]))
    options = TrainOptions(**{"coupling": "hungarian", "train_batch_size": 8} | SETTINGS[name])
    coupling, classes = make_coupling(options), load_digits().labels
    assert classes is not None
    for first in range(0, len(batches), SIZE):
        window = batches[first : first + SIZE]
        x = interleaved([batch.x for batch in window])
        indices = np.stack([batch.indices for batch in window], 1).reshape(-1)
        labels = torch.from_numpy(classes[indices]) if options.class_conditional else None
        step, part = divmod(first, PARTS)
        expected = coupling(x, **place(step, 8 * part), labels=labels)
        assert torch.equal(interleaved(list(noises(window))), expected)
        for batch, alone in zip(window, single[first:], strict=False):
            # Only the noise is another one.
            assert torch.equal(batch.x, alone.x)
            assert batch.indices.tolist() == alone.indices.tolist()
            assert batch.place == alone.place
            assert batch.noise is not None
            assert batch.noise.is_contiguous()


def test_rows_of_ranks_are_the_rows_of_a_single_process() -> None:
    parts = [torch.randn(8, 2, 3) for _ in range(SIZE)]
    ranks = [interleaved([part[rows] for part in parts]) for rows in (slice(0, 3), slice(3, 6), slice(6, 8))]
    whole = interleaved(parts)
    assert torch.equal(torch.cat(ranks), whole)
    assert all(torch.equal(whole[number::SIZE], part) for number, part in enumerate(parts))
    assert interleaved(parts[:1]) is parts[0]


@pytest.mark.parametrize("size", [1, SIZE, 5])
@pytest.mark.parametrize("settings", [{}, {"coupling_start_step": 2}, {"forward": "kl", "kl_terms": 2}], ids=repr)
def test_a_window_keeps_its_noises_and_no_noise_is_used_twice(size: int, settings: dict[str, Any]) -> None:
    """The law of the noises is that of plain ones: they are a permutation of plain noises."""
    batches = fed(feed_of(size=size, **settings))
    rows = noises(batches).flatten(0, 1)
    rows = rows.flatten(0, 1) if "forward" in settings else rows
    assert len(rows.flatten(1).unique(dim=0)) == len(rows)
    if "forward" in settings:
        return
    start = PARTS * settings.get("coupling_start_step", 0)
    first = 0
    while first < len(batches):
        end = min(first + 1 if first < start else first - first % size + size, len(batches))
        if first < start or end % size == 0 or size == 1:  # a whole window
            step, part = divmod(first, PARTS)
            window = noises(batches[first:end]).flatten(0, 1)
            assert torch.equal(sorted_rows(window), sorted_rows(gaussian_noise(window, **place(step, 8 * part))))
        first = end


@pytest.mark.parametrize(("size", "parts"), [(2, 5), (5, 2), (3, 7)])
def test_windows_that_begin_in_one_step_share_no_noise(size: int, parts: int) -> None:
    rows = noises(fed(feed_of(size=size, parts=parts, coupling_start_step=1), parts=parts)).flatten(0, 1)
    assert len(rows) == 6 * parts * 8
    assert len(rows.flatten(1).unique(dim=0)) == len(rows)


@pytest.mark.parametrize("settings", [{}, {"class_conditional": True}, {"coupling": "sinkhorn"}], ids=repr)
def test_a_window_brings_noise_nearer(settings: dict[str, Any]) -> None:
    def distance(size: int) -> float:
        batches = fed(feed_of(size=size, max_train_steps=16, **settings), 16)
        return sum((batch.x * batch.noise).mean().item() for batch in batches if batch.noise is not None)

    one, four, sixteen = (distance(size) for size in (1, 4, 16))
    assert sixteen > 1.1 * four > 1.1 * 1.1 * one > 0


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_warm_up_may_end_inside_a_window(start: int, ahead: bool) -> None:
    """Steps before are the baseline's; those parts of the window that come after are paired together."""
    size = 4
    batches = fed(feed_of(size=size, coupling_start_step=start, coupling_ahead=ahead))
    plain = fed(feed_of(size=1, coupling="none"))
    first = PARTS * start
    assert torch.equal(noises(batches)[:first], noises(plain)[:first])
    assert [batch.diagnostics is None for batch in batches] == [position < first for position in range(12)]
    window = batches[first : first - first % size + size]
    x = interleaved([batch.x for batch in window])
    assert torch.equal(interleaved(list(noises(window))), Hungarian()(x, **place(start, 0)))


class Watched:
    """Which batches are read and when windows are paired, in order: events of ``watch``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[Any] = []
        batch, start = Loader.batch, windows.start_drawing

        def reading(loader: Loader, step: int, part: int, *rows: int) -> Any:
            self.events.append(PARTS * step + part)
            return batch(loader, step, part, *rows)

        def starting(draw: Callable[[], Tensor], inputs: list[Tensor]) -> PendingNoise:
            self.events.append(f"pair {len(inputs)}")
            return start(draw, inputs)

        monkeypatch.setattr(Loader, "batch", reading)
        monkeypatch.setattr(windows, "start_drawing", starting)

    def during(self, feed: Feed, first: int, steps: int) -> list[list[Any]]:
        """What happened at each part."""
        found = []
        for position in range(PARTS * first, PARTS * steps):
            self.events.clear()
            feed.batch(*divmod(position, PARTS))
            found.append(list(self.events))
        feed.forget_ahead()
        return found


def test_reading_is_spread_over_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is read once, in order; no window begins behind the end."""
    seen = Watched(monkeypatch)
    assert seen.during(feed_of(max_train_steps=5), 0, 5) == [[0, 1, 2], [3], [4], [5], [6], [7], [8], [9], [10], [11]]
    assert seen.during(feed_of(max_train_steps=5, coupling_ahead=True), 0, 5) == [
        *([0, 1, 2, 3], [4], [5, "pair 3"]),
        *([6], [7], [8, "pair 3"]),
        *([9], [10], [11, "pair 3"]),
        [],  # the last window reaches beyond the end
    ]
    # Continued inside a window.
    assert seen.during(feed_of(), 2, 5) == [[3, 4, 5, 6], [7], [8], [9], [10], [11]]
    assert seen.during(feed_of(coupling_ahead=True), 1, 3) == [[0, 1, 2, 3, 4, 5, "pair 3"], [6], [7], [8, "pair 3"]]
    # Plain noise is not paired, and read when it is its turn.
    late = {"coupling_start_step": 2, "size": 3}
    assert seen.during(feed_of(**late), 0, 4) == [[0], [1], [2], [3, 4], [5, 6], [7], [8], [9]]
    ahead = seen.during(feed_of(**late, coupling_ahead=True), 0, 4)
    assert ahead == [[0], [1], [2], [3, 4, 5, "pair 2"], [6], [7, 8, "pair 3"], [9], [10]]


def test_a_window_of_one_reads_and_pairs_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Watched(monkeypatch)
    assert seen.during(feed_of(size=1), 0, 2) == [[0], [1], [2], [3]]
    assert seen.during(feed_of(size=1, max_train_steps=2, coupling_ahead=True), 0, 2) == [
        *([0, 1, "pair 1"], [2, "pair 1"], [3, "pair 1"], []),
    ]
    for batch in fed(feed_of(size=1, class_conditional=True)):
        labels = load_digits().labels
        assert labels is not None
        expected = Hungarian()(batch.x, **batch.place, labels=torch.from_numpy(labels[batch.indices]))
        assert batch.noise is not None
        assert torch.equal(batch.noise, expected)


def test_batches_do_not_depend_on_where_one_begins() -> None:
    for ahead in (False, True):
        whole = fed(feed_of(coupling_ahead=ahead), 6)
        for first in range(1, 6):
            later = fed(feed_of(coupling_ahead=ahead), 6, first)
            assert torch.equal(noises(later), noises(whole)[PARTS * first :])
        # Out of order, and again.
        feed = feed_of(coupling_ahead=ahead)
        for position in (4, 4, 5, 0, 2, 1, 11, 10, 3):
            batch = feed.batch(*divmod(position, PARTS))
            assert batch.noise is not None
            assert torch.equal(batch.noise, noises(whole)[position])
            assert torch.equal(batch.x, whole[position].x)
        feed.forget_ahead()
    # A longer run continues a shorter one, though its last window is cut.
    assert torch.equal(noises(fed(feed_of(max_train_steps=2), 2)), noises(whole)[:4])


@pytest.mark.parametrize("coupling", ["sinkhorn", "hungarian"])
def test_ranks_that_pair_all_rows_keep_their_own(coupling: str) -> None:
    """Ranks without an exchange: each finds the pairs of all rows."""
    settings: dict[str, Any] = {"coupling": coupling, "random_flip": True, "coupling_start_step": 1}
    if coupling == "hungarian":
        settings["hungarian_project"] = 16
    whole = fed(feed_of(**settings))
    ranks = [fed(feed_of(Ranks(rank, 3), **settings)) for rank in range(3)]
    assert torch.equal(torch.cat([noises(rank) for rank in ranks], 1), noises(whole))
    for part, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[part].x for rank in ranks]), batch.x)
        assert np.concatenate([rank[part].indices for rank in ranks]).tolist() == batch.indices.tolist()


def loss_of_perfect_network(x0: Tensor, noise: Tensor, told: Tensor) -> float:
    """The loss of a network that knows the data by heart, and one noise of each image, told in the target."""
    process, t = FlowProcess(), torch.linspace(0.1, 0.9, len(x0), dtype=x0.dtype)
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in process.levels(t))

    def network(x_t: Tensor, time: Tensor) -> Tensor:
        return process.target(x0, (x_t - alpha * x0) / sigma + told - noise, t)

    return diffusion_loss(network, x0, t, process=process, noise=noise).item()


def test_a_perfect_network_reaches_zero_loss() -> None:
    batches = fed(feed_of(class_conditional=True))
    for x0, noise in zip([batch.x.double() for batch in batches], noises(batches).double(), strict=True):
        assert loss_of_perfect_network(x0, noise, noise) < 1e-20
        assert loss_of_perfect_network(x0, noise, noise.roll(1, 0)) > 0.1


def test_null_windows_are_the_baseline(train: Train) -> None:
    """A coupling that pairs nothing in a window of any size."""
    window = ("--coupling_window", "3", "--gradient_accumulation_steps", "2")
    plain = train("plain", "--gradient_accumulation_steps", "2", steps=3)
    same_run(train("a", "--coupling", "sinkhorn", "--sinkhorn_iterations", "0", *window, steps=3), plain)
    same_run(train("b", "--coupling", "hungarian", "--coupling_start_step", "3", *window, steps=3), plain)
    assert (train("c", "--coupling", "hungarian", *window, steps=3) / "model.safetensors").read_bytes() != (
        plain / "model.safetensors"
    ).read_bytes()


FLAGS = ("--coupling", "hungarian", "--coupling_window", "3", "--gradient_accumulation_steps", "2")


@pytest.mark.parametrize("cut_at", [1, 3])  # inside a window, between two
def test_a_run_that_is_stopped_continues_exactly(train: Train, monkeypatch: pytest.MonkeyPatch, cut_at: int) -> None:
    flags = (*FLAGS, "--coupling_ahead", "--random_flip", "--ema_halflife_images", "20", "200")
    continues_exactly(train, monkeypatch, flags, steps=5, cut_at=cut_at)


def test_runs_continue_past_their_end_and_ahead_changes_nothing(train: Train) -> None:
    flags = (*FLAGS, "--forward", "kl", "--kl_terms", "2", "--class_conditional", "--coupling_start_step", "1")
    whole = train("whole", *flags, steps=4)
    train("longer", *flags, "--coupling_ahead", steps=2)  # inside a window
    same_run(whole, train("longer", *flags, steps=4))
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert "coupling_ms" not in rows[0]
    # Step 2 has the parts 2 and 3: the rest of the first window and the first of the second; step 3 has 4 and 5.
    assert [row["coupling_ms"] > 0 for row in rows[1:]] == [True, False, True]
    assert all(math.isfinite(row["cost_reduction"]) for row in rows[1:])
    assert json.loads((whole / "summary.json").read_text())["coupling_seconds"] > 0


def test_skipped_steps_change_no_noise(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Feed.batch
    seen: dict[tuple[int, int], Tensor] = {}

    def broken(feed: Feed, step: int, part: int) -> Batch:
        found = batch(feed, step, part)
        assert found.noise is not None
        seen[step, part] = found.noise.clone()
        if step == 1:
            found.x.fill_(math.nan)
        return found

    monkeypatch.setattr(Feed, "batch", broken)
    folder = train("run", *FLAGS, "--coupling_ahead", steps=4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("skipped", False) for row in rows] == [False, True, False, False]
    monkeypatch.undo()
    assert torch.equal(torch.stack(list(seen.values())), noises(fed(feed_of(), 4)))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--coupling_window", "0"), "--coupling_window must be at least 1, got 0"),
        *(
            (
                ("--coupling", name, "--coupling_window", "2"),
                f"--coupling_window needs --coupling hungarian or sinkhorn, got --coupling {name}",
            )
            for name in ("none", "queue", "knn")
        ),
        (
            ("--coupling", "hungarian", "--coupling_window", "3", "--hungarian_pool", "23"),
            "--hungarian_pool must be at least --train_batch_size 8 times --coupling_window 3, 24, got 23",
        ),
    ],
)
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(capsys, tmp_path / "run", *flags, code=2)
    assert not (tmp_path / "run").exists()


def test_another_window_is_another_run(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *FLAGS, steps=1)
    said = refused(capsys, folder, *FLAGS, "--coupling_window", "4", code=1)
    assert "--coupling_window 4 (the run: 3)" in said


def test_the_plan_names_the_window() -> None:
    options: dict[str, Any] = {"train_batch_size": 128, "coupling_window": 8}
    text = describe_coupling(TrainOptions(coupling="hungarian", **options))
    assert text == "hungarian, 8 batches of 128 images as one against 1024 noises"
    text = describe_coupling(TrainOptions(coupling="sinkhorn", **options))
    assert text.startswith("sinkhorn, 8 batches of 128 images as one, epsilon")
    # Options of a run before there were windows.
    values = TrainOptions(coupling="hungarian").to_dict()
    del values["coupling_window"]
    assert TrainOptions.from_dict(values) == TrainOptions(coupling="hungarian")
