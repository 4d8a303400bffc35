"""Class-conditional runs: what the network is told in training, and what samples ask of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pydiffaccel import FlowProcess
from pydiffaccel.conditioning import ClassCondition, Wanted
from pydiffaccel.distill import main as distill
from pydiffaccel.evaluate import main as evaluate
from pydiffaccel.networks import NetworkConfig, build_network
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.sample import main as sample
from pydiffaccel.sampler import denoiser_of, draw, load_run
from pydiffaccel.solvers import load_plan, make_plan
from pydiffaccel.train import main
from pydiffaccel.trainer.build import make_coupling, make_process
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import load_digits
from pydiffaccel.trainer.feed import Feed
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.parallel import Ranks
from pydiffaccel.trainer.pictures import to_uint8
from pydiffaccel.trainer.run import RunDescription

from .conftest import TINY, losses, same_run

Train = Callable[..., Path]
CONDITIONAL = ("--class_conditional",)
SINGLE = Ranks()


def feed_of(ranks: Ranks = SINGLE, **options: Any) -> Feed:
    """The batches of a run on the digits."""
    o = TrainOptions(class_conditional=True, **options)
    process, coupling = make_process(o), make_coupling(o)
    objective = Objective(process, coupling, None, None, o.kl_objective, o.path_times, None)
    return Feed(load_digits(), coupling, objective, o, torch.device("cpu"), ranks)


def digits_as_bytes() -> Any:
    """The digits, uint8 ``[N, 8, 8]``."""
    digits = load_digits()
    return to_uint8(digits.batch(np.arange(len(digits))))[:, 0]


def told(feed: Feed, step: int, part: int = 0) -> tuple[Tensor, Tensor]:
    """What the network is told, and the true classes."""
    batch = feed.batch(step, part)
    assert batch.labels is not None
    labels = load_digits().labels
    assert labels is not None
    return batch.labels, torch.from_numpy(labels[batch.indices])


def test_labels_are_those_of_the_images_but_for_the_dropped_ones() -> None:
    feed = feed_of(train_batch_size=500, conditioning_dropout_prob=0.2)
    pairs = [told(feed, step) for step in range(8)]
    given, true = (torch.cat(column) for column in zip(*pairs, strict=True))
    dropped = given == 10
    assert torch.equal(given[~dropped], true[~dropped])
    # 4,000 draws have a standard deviation of 0.0063, of which this is five.
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.032)
    assert not torch.equal(dropped[:500], dropped[500:1000])


def test_dropout_is_a_function_of_seed_step_and_sample() -> None:
    whole, _ = told(feed_of(train_batch_size=64, conditioning_dropout_prob=0.5), 3)
    parts = feed_of(train_batch_size=32, gradient_accumulation_steps=2, conditioning_dropout_prob=0.5)
    assert torch.equal(torch.cat([told(parts, 3, 0)[0], told(parts, 3, 1)[0]]), whole)
    other, true = told(feed_of(train_batch_size=64, conditioning_dropout_prob=0.5, seed=1), 3)
    assert not torch.equal(other == 10, whole == 10)
    # More dropout drops more, never others.
    more, _ = told(feed_of(train_batch_size=64, conditioning_dropout_prob=0.7), 3)
    assert bool((more[whole == 10] == 10).all())
    assert len(true) == 64


@pytest.mark.parametrize("coupling", ["none", "queue"])
def test_ranks_are_told_what_a_single_process_is(coupling: str) -> None:
    """A queue pairs the whole batch on each rank, and each rank keeps its rows."""
    options: dict[str, Any] = {"train_batch_size": 20, "conditioning_dropout_prob": 0.5, "coupling": coupling}
    whole = feed_of(**options)
    parts = [feed_of(Ranks(rank, 3), **options) for rank in range(3)]
    for step in range(2):
        one, many = whole.batch(step, 0), [part.batch(step, 0) for part in parts]
        assert one.labels is not None
        assert torch.equal(torch.cat([part.labels for part in many if part.labels is not None]), one.labels)
        assert one.noise is not None
        assert torch.equal(torch.cat([part.noise for part in many if part.noise is not None]), one.noise)


def test_without_dropout_every_class_is_told() -> None:
    given, true = told(feed_of(train_batch_size=200, conditioning_dropout_prob=0.0), 0)
    assert torch.equal(given, true)


def test_unconditional_batches_hold_no_labels() -> None:
    o = TrainOptions()
    objective = Objective(make_process(o), make_coupling(o), None, None, o.kl_objective, 1, None)
    batch = Feed(load_digits(), make_coupling(o), objective, o, torch.device("cpu"), SINGLE).batch(0, 0)
    assert batch.labels is None
    assert batch.condition == {}


def rows_of_classes(noise: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """The noises of each class, sorted by their first element."""
    rows = {int(label): noise[labels == label].flatten(1) for label in labels.unique()}
    return {label: mine[mine[:, 0].argsort()] for label, mine in rows.items()}


@pytest.mark.parametrize("ahead", [False, True])
def test_hungarian_pairs_inside_classes_or_across(ahead: bool) -> None:
    for labels in ("within", "across"):
        feed = feed_of(coupling="hungarian", hungarian_labels=labels, train_batch_size=60, coupling_ahead=ahead)
        if ahead:
            feed.batch(1, 0)
        batch = feed.batch(2, 0)
        _, true = told(feed_of(train_batch_size=60), 2)
        assert batch.noise is not None
        plain = gaussian_noise(batch.x, **batch.place)
        assert not torch.equal(batch.noise, plain)
        mine, theirs = rows_of_classes(batch.noise, true), rows_of_classes(plain, true)
        alike = all(torch.equal(mine[label], theirs[label]) for label in theirs)
        assert alike == (labels == "within")
        feed.forget_ahead()


@pytest.mark.parametrize(
    "flags",
    [
        ("--coupling", "hungarian", "--coupling_ahead"),
        ("--forward", "kl", "--kl_terms", "2", "--kl_microbatch", "6"),
        ("--forward", "flow", "--coupling", "hungarian", "--hungarian_labels", "across"),
    ],
    ids=" ".join,
)
def test_conditional_run_trains_and_continues(train: Train, flags: tuple[str, ...]) -> None:
    whole = train("whole", *CONDITIONAL, *flags, steps=4)
    cut = train("cut", *CONDITIONAL, *flags, steps=2)
    train("cut", *CONDITIONAL, *flags, steps=4)
    same_run(whole, cut)
    description = json.loads((whole / "process.json").read_text())
    assert description["conditioning"] == {"name": "class_labels", "dropout_prob": 0.1}
    assert description["network"]["num_classes"] == 10
    # A row of eight for each class: 8 x 8 pixels six times as large, two between.
    assert Image.open(whole / "samples.png").size == (8 * 50 + 2, 10 * 50 + 2)


def test_classes_reach_the_network_in_training(train: Train, tmp_path: Path) -> None:
    """The same images in the same order, told other classes, give other losses from the first step on."""
    digits = load_digits()
    assert digits.labels is not None
    for name, labels in (("true", digits.labels), ("false", (digits.labels + 1) % 10)):
        np.savez(tmp_path / f"{name}.npz", images=digits_as_bytes(), labels=labels)
    flags = (*CONDITIONAL, "--conditioning_dropout_prob", "0")
    a = train("a", *flags, "--data", str(tmp_path / "true.npz"), steps=1)
    b = train("b", *flags, "--data", str(tmp_path / "false.npz"), steps=1)
    assert losses(a) != losses(b)


def test_network_takes_classes_and_none() -> None:
    config = NetworkConfig((1, 8, 8), (8,), num_classes=3)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert "num_classes" not in NetworkConfig((1, 8, 8), (8,)).to_dict()
    network = build_network(config).eval()
    x, t = torch.ones(1, 1, 8, 8), torch.zeros(1)
    with torch.no_grad():
        answers = [network(x, t, class_labels=torch.tensor([label])).sample for label in range(4)]
    assert all(not torch.equal(answers[0], other) for other in answers[1:])
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        NetworkConfig((1, 8, 8), (8,), num_classes=0)


def test_descriptions_and_options_from_before_are_unconditional(train: Train) -> None:
    folder = train("run", steps=1)
    description = json.loads((folder / "process.json").read_text())
    assert "conditioning" not in description
    assert "num_classes" not in description["network"]
    assert RunDescription.from_dict(description).network.num_classes is None
    options = json.loads((folder / "options.json").read_text())
    for name in ("class_conditional", "conditioning_dropout_prob", "hungarian_labels"):
        options.pop(name)
    assert not TrainOptions.from_dict(options).class_conditional
    (folder / "options.json").write_text(json.dumps(options))
    assert train("run", steps=2) == folder
    assert load_run(folder).classes is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--conditioning_dropout_prob", "0.2"), "--conditioning_dropout_prob needs --class_conditional"),
        ((*CONDITIONAL, "--conditioning_dropout_prob", "1"), "must be in [0, 1), got 1.0"),
        ((*CONDITIONAL, "--conditioning_dropout_prob", "nan"), "must be in [0, 1), got nan"),
        (
            ("--coupling", "hungarian", "--hungarian_labels", "across"),
            "--hungarian_labels across needs --coupling hungarian and --class_conditional",
        ),
    ],
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str) -> None:
    assert main([*flags, "--dry_run"]) == 2
    assert message in capsys.readouterr().err


def test_data_without_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "images.npy", np.zeros((20, 8, 8), np.uint8))
    argv = ["--data", str(tmp_path / "images.npy"), "--output_dir", str(tmp_path / "run"), *CONDITIONAL, *TINY]
    assert main(argv) == 1
    assert "--class_conditional needs images with classes, and images.npy has none; give" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def archive(folder: Path, name: str = "dpm_solver++-2") -> dict[str, Any]:
    with np.load(folder / "samples" / f"{name}.npz") as npz:
        return dict(npz)


def test_samples_of_classes(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *CONDITIONAL, "--learning_rate", "0.01", "--lr_warmup_steps", "1", steps=6)
    base = [str(folder), "--seeds", "0-5", "--steps", "2", "--num_threads", "1"]

    def samples(*flags: str) -> dict[str, Any]:
        assert sample([*base, *flags]) == 0, capsys.readouterr().err
        return archive(folder)

    default = samples()
    assert default["classes"].tolist() == ["0", "1", "2", "3", "4", "5"]
    some = samples("--classes", "5,3")
    assert some["classes"].tolist() == ["5", "3"] * 3
    assert not np.array_equal(some["samples"], default["samples"])
    # One class at a time is what a batch of several gives, and the size of the batch changes nothing.
    fives = samples("--classes", "5")
    np.testing.assert_allclose(fives["samples"][::2], some["samples"][::2], atol=1e-5, rtol=1e-4)
    small = samples("--classes", "5,3", "--batch_size", "4")
    np.testing.assert_allclose(small["samples"], some["samples"], atol=1e-5, rtol=1e-4)
    # Without guidance the bits are those without the flag; with it they are not.
    assert np.array_equal(samples("--classes", "5,3", "--guidance_scale", "1")["samples"], some["samples"])
    assert not np.array_equal(samples("--classes", "5,3", "--guidance_scale", "3")["samples"], some["samples"])
    capsys.readouterr()
    assert sample([*base, "--classes", "5,x"]) == 2
    assert "the model knows no class 'x'; it knows 0, 1, 2" in capsys.readouterr().err
    assert sample([*base, "--guidance_scale", "inf"]) == 2
    assert "--guidance_scale must be a finite number, got inf" in capsys.readouterr().err
    assert sample([*base, "--compare", "ddim", "--classes", "2", "--fine_steps", "4"]) == 0


def test_guidance_needs_dropout(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", *CONDITIONAL, "--conditioning_dropout_prob", "0", steps=1)
    assert sample([str(folder), "--seeds", "0", "--steps", "1", "--guidance_scale", "2"]) == 1
    assert "train them with --conditioning_dropout_prob above 0" in capsys.readouterr().err
    assert sample([str(folder), "--seeds", "0", "--steps", "1"]) == 0


def test_unconditional_runs_refuse_classes(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", steps=1)
    for flags, name in (
        (("--classes", "3"), "--classes"),
        (("--guidance_scale", "2"), "--guidance_scale"),
    ):
        assert sample([str(folder), "--seeds", "0", "--steps", "1", *flags]) == 2
        assert f"{name} is for conditional models" in capsys.readouterr().err


def test_perfect_network_gives_each_sample_its_class() -> None:
    """The network knows one point of each class, so sampling must end there, guided or not."""
    points, process = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]), FlowProcess()
    middle = points.mean(0, keepdim=True)

    def network(x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        known = torch.cat([points, middle])[class_labels]
        t = time[:, None] / process.time_scale
        return torch.where(t < 1, (known - x) / (1 - t), 0.0)

    classes = ClassCondition(("a", "b", "c"), 3)
    labels = classes.spread(7, classes.parse("c, a"))
    assert labels == [2, 0, 2, 0, 2, 0, 2]
    plan = make_plan("euler", process, 6)
    for scale in (1.0, 3.0):
        wanted = Wanted("c, a", guidance_scale=scale)
        denoiser, told = classes.conditioned(denoiser_of(network, process), wanted, len(labels))
        assert told == ("c", "a", "c", "a", "c", "a", "c")
        found = draw(plan, denoiser, (2,), range(7), batch_size=3)
        torch.testing.assert_close(found, middle + scale * (points[labels] - middle), atol=1e-4, rtol=0)


def test_evaluation_has_the_classes_of_the_data(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pydiffaccel.evaluation.samples as samples

    folder = train("run", *CONDITIONAL, steps=1)
    asked: list[Tensor] = []
    plain = samples.draw

    def spy(plan: Any, denoiser: Any, *args: Any, **named: Any) -> Any:
        asked.append(denoiser.condition["class_labels"])
        return plain(plan, denoiser, *args, **named)

    monkeypatch.setattr(samples, "draw", spy)
    flags = ["--features", "pixels", "--steps", "1", "--num_threads", "1"]
    assert evaluate([str(folder), "--num_samples", "1797", *flags]) == 0
    told = torch.cat(asked).numpy()
    labels = load_digits().labels
    assert labels is not None
    assert np.array_equal(np.bincount(told), np.bincount(labels))
    assert not np.array_equal(told, labels)
    # Other data has other classes.
    few = folder / "few.npz"
    np.savez(few, images=digits_as_bytes(), labels=labels % 9)
    capsys.readouterr()
    assert evaluate([str(folder), "--data", str(few), "--num_samples", "100", "--steps", "1"]) == 1
    assert "has other classes than the run was trained on" in capsys.readouterr().err


def test_distillation_with_classes_and_guidance(train: Train) -> None:
    folder = train("run", *CONDITIONAL, steps=1)
    seeds = ["--fit_seeds", "0-5", "--held_out_seeds", "10-13", "--teacher_multiplier", "2", "--batch_size", "4"]
    flags = ["--steps", "2", "--classes", "3,5", "--guidance_scale", "2", "--force", *seeds]
    assert distill([str(folder), *flags]) == 0
    plan = load_plan(folder / "plans" / "ddim-2.json")
    assert plan.metadata["distillation"]["condition"] == {"told": ["3", "5"], "guidance_scale": 2.0}


def test_many_classes_are_shown_at_equal_distances(tmp_path: Path) -> None:
    labels = np.arange(100, dtype=np.int64) % 20
    archive = tmp_path / "data.npz"
    np.savez(archive, images=np.zeros((100, 8, 8), np.uint8), labels=labels)
    run = tmp_path / "run"
    argv = ["--data", str(archive), "--output_dir", str(run), "--max_train_steps", "1", *CONDITIONAL, *TINY]
    assert main(argv) == 0
    assert Image.open(run / "samples.png").size == (8 * 50 + 2, 16 * 50 + 2)
