"""The training command: what it leaves, what it repeats, what it continues, what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pydiffaccel.trainer.checkpoint import list_checkpoints
from pydiffaccel.trainer.config import TrainOptions

from .conftest import continues_exactly, losses, refused, same_run, write_images

Train = Callable[..., Path]
CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg" / "train.zip"


def test_a_run_leaves_everything_behind(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run", "--checkpointing_steps", "4")
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(f"{folder} holds samples.png, loss.png, metrics.jsonl and model.saf")
    assert f"Next: python -m pydiffaccel.sample {folder} --seeds 0-63 --steps 10" in said.out
    assert "step 6/6" in said.err
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    parts = ("checksums.json", "state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors")
    assert names == {
        *("options.json", "process.json", "metrics.jsonl", "loss.png", "samples.png", "model.safetensors"),
        *("summary.json", ".lock"),
        *(f"checkpoints/step_{step:08d}/{part}" for step in (4, 6) for part in parts),
    }
    assert len(losses(folder)) == 6
    assert all(np.isfinite(losses(folder)))
    options = json.loads((folder / "options.json").read_text())
    assert (options["train_batch_size"], options["channels"], options["coupling"]) == (8, [8], "none")
    process = json.loads((folder / "process.json").read_text())
    assert process["process"]["name"] == "vp"
    assert process["data"]["shape"] == [1, 8, 8]
    assert process["coupling"]["factor"] == 1.0
    grid = Image.open(folder / "samples.png")
    assert grid.size == (8 * (48 + 2) + 2,) * 2
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert weights.metadata() == {"pydiffaccel": "step 6, average weights"}
    assert json.loads((folder / "summary.json").read_text())["step"] == 6


def test_the_loss_falls(train: Train) -> None:
    values = losses(train("run", "--lr_warmup_steps", "1", "--learning_rate", "5e-3", steps=60))
    assert np.mean(values[-10:]) < 0.6 * np.mean(values[:5])


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--forward", "flow", "--coupling", "hungarian"),
        ("--forward", "kl", "--kl_terms", "2", "--coupling", "knn", "--curriculum", "--momentum_decay"),
    ],
)
def test_same_seed_same_run(train: Train, flags: tuple[str, ...]) -> None:
    a, b = train("a", *flags), train("b", *flags)
    same_run(a, b)
    assert (a / "samples.png").read_bytes() == (b / "samples.png").read_bytes()


def test_another_seed_is_another_run(train: Train) -> None:
    a, b = losses(train("a")), losses(train("b", "--seed", "1"))
    assert all(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("flags", "plain"),
    [
        (("--coupling", "knn", "--knn_k", "1"), ()),
        (("--data_scale", "1"), ()),
        (("--curriculum", "--curriculum_weight", "0"), ()),
        (("--momentum_decay", "--momentum_decay_strength", "0"), ()),
        (("--forward", "kl", "--kl_terms", "1"), ("--forward", "vp")),
        (("--forward", "kl", "--kl_terms", "1", "--coupling", "hungarian"), ("--coupling", "hungarian")),
        (("--forward", "kl", "--coupling", "knn", "--knn_k", "1"), ("--forward", "kl")),
        (("--forward", "flow", "--coupling", "knn", "--knn_k", "1"), ("--forward", "flow")),
        (("--train_batch_size", "1", "--coupling", "hungarian"), ("--train_batch_size", "1")),
        (("--ema_decay", "0"), ("--no_use_ema",)),
        (("--ema_halflife_images", "8"), ("--ema_decay", "0.5")),
        (("--ema_halflife_images", "1", "100"), ("--ema_decay", str(0.5**8))),
        (("--coupling", "hungarian", "--hungarian_pool", "8"), ("--coupling", "hungarian")),
        (("--coupling", "hungarian", "--hungarian_project", "64"), ("--coupling", "hungarian")),
        (("--coupling", "sinkhorn", "--sinkhorn_iterations", "0"), ()),
        (("--coupling", "queue", "--queue_size", "0"), ("--coupling", "hungarian")),
        (("--coupling", "hungarian", "--coupling_start_step", "0"), ("--coupling", "hungarian")),
        (("--coupling", "hungarian", "--coupling_start_step", "6"), ()),
        (("--coupling", "knn", "--coupling_start_step", "6", "--forward", "kl"), ("--forward", "kl")),
    ],
)
def test_null_settings_are_the_baseline(train: Train, flags: tuple[str, ...], plain: tuple[str, ...]) -> None:
    a, b = train("a", *flags), train("b", *plain)
    assert losses(a) == losses(b)
    with safe_open(a / "model.safetensors", "pt") as x, safe_open(b / "model.safetensors", "pt") as y:
        assert list(x.keys()) == list(y.keys())
        assert all(torch.equal(x.get_tensor(key), y.get_tensor(key)) for key in x.keys())  # noqa: SIM118


@pytest.mark.parametrize(
    "flags",
    [
        ("--coupling", "hungarian"),
        ("--coupling", "knn"),
        ("--coupling", "queue"),
        ("--coupling", "hungarian", "--hungarian_pool", "20"),
        ("--coupling", "hungarian", "--hungarian_project", "16"),
        ("--coupling", "hungarian", "--hungarian_project", "16", "--hungarian_projection", "random"),
        ("--coupling", "sinkhorn"),
        ("--coupling", "sinkhorn", "--sinkhorn_epsilon", "0.1", "--sinkhorn_output", "sampled"),
        ("--coupling", "sinkhorn", "--sinkhorn_project", "16"),
        ("--coupling", "knn", "--knn_metric", "dot"),
        ("--data_scale", "2"),
        ("--curriculum",),
        ("--momentum_decay",),
        ("--forward", "kl"),
        ("--forward", "flow"),
        ("--prediction_type", "v_prediction"),
        ("--prediction_type", "sample"),
        ("--max_grad_norm", "0"),
        ("--gradient_accumulation_steps", "2"),
    ],
)
def test_every_flag_does_something(train: Train, flags: tuple[str, ...]) -> None:
    short = ("--lr_warmup_steps", "1")
    assert losses(train("a", *short, *flags)) != losses(train("b", *short))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(train: Train, precision: str) -> None:
    half, single = losses(train("a", "--mixed_precision", precision)), losses(train("b"))
    assert half != single
    assert half[0] == pytest.approx(single[0], rel=0.02)
    same_run(train("c", "--mixed_precision", precision), train("d", "--mixed_precision", precision))


def test_accumulated_parts_are_the_whole_batch(train: Train) -> None:
    """Two parts of four see the images, noises and times of one batch of eight."""
    whole = losses(train("a", "--train_batch_size", "8", steps=3))
    parts = losses(train("b", "--train_batch_size", "4", "--gradient_accumulation_steps", "2", steps=3))
    assert whole == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        ("--coupling", "hungarian"),
        ("--coupling", "queue", "--gradient_accumulation_steps", "2"),
        ("--coupling", "knn", "--forward", "kl", "--kl_terms", "2", "--coupling_start_step", "3"),
        ("--coupling", "none"),
    ],
)
def test_pairing_ahead_changes_no_number(train: Train, flags: tuple[str, ...]) -> None:
    threads = {thread.name for thread in threading.enumerate()}
    same_run(train("a", *flags, "--coupling_ahead"), train("b", *flags))
    assert {thread.name for thread in threading.enumerate()} <= threads | {"pydiffaccel-pairing"}


def test_what_was_paired_ahead_of_the_end_is_forgotten(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    continues_exactly(train, monkeypatch, ("--coupling", "queue", "--coupling_ahead"), steps=6, cut_at=3)


def test_each_step_says_what_its_coupling_did(train: Train) -> None:
    def figures(folder: Path, name: str) -> list[float | None]:
        return [json.loads(line).get(name) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    flags = ("--coupling", "hungarian", "--gradient_accumulation_steps", "2", "--coupling_start_step", "2")
    for name, ahead in (("a", ()), ("b", ("--coupling_ahead",))):
        folder = train(name, *flags, *ahead)
        reductions = figures(folder, "cost_reduction")
        assert reductions[:2] == [None, None]
        assert all(5 < value < 60 for value in reductions[2:])
        assert all(0.8 < value < 1.2 for value in figures(folder, "noise_mean_square")[2:])
        assert all(value > 0 for value in figures(folder, "coupling_ms")[2:])
    assert figures(train("kl", "--coupling", "knn", "--forward", "kl"), "cost_reduction")[0] > 0
    assert figures(train("plain"), "cost_reduction") == [None] * 6


# --- continuing


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--no_use_ema",),
        ("--mixed_precision", "fp16"),
        ("--momentum_decay", "--curriculum", "--coupling", "hungarian"),
        ("--forward", "kl", "--kl_terms", "2", "--gradient_accumulation_steps", "2"),
        ("--coupling", "queue", "--queue_size", "12"),
        ("--coupling", "queue", "--coupling_ahead", "--coupling_start_step", "1"),
        ("--forward", "kl", "--kl_terms", "2", "--coupling", "queue", "--gradient_accumulation_steps", "2"),
    ],
)
def test_continued_equals_uninterrupted(
    train: Train, tmp_path: Path, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydiffaccel.trainer.loop import Trainer

    whole = train("whole", *flags)

    class Killed(BaseException):
        pass

    original = Trainer.train_step

    def dies(self: Trainer) -> object:
        if self.step == 5:
            raise Killed
        return original(self)

    # Dies at step 5 with metrics of steps 4 and 5 on disk and a checkpoint of step 3.
    monkeypatch.setattr(Trainer, "train_step", dies)
    with pytest.raises(Killed):
        train("cut", "--checkpointing_steps", "3", "--log_every", "1", *flags)
    monkeypatch.undo()
    assert [step for step, _ in list_checkpoints(tmp_path / "cut" / "checkpoints")] == [3]
    assert len(losses(tmp_path / "cut")) == 5
    same_run(whole, train("cut", "--checkpointing_steps", "3", "--log_every", "1", *flags))


def test_a_finished_run_says_so(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()
    train("run")
    assert f"the run in {folder} is finished: 6 steps. Next: " in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_more_steps_continue_a_finished_run(train: Train) -> None:
    train("a", steps=4)
    same_run(train("a", steps=6), train("b", steps=6))


def test_run_that_lost_its_last_pictures_makes_them_again(train: Train) -> None:
    folder = train("run")
    picture = (folder / "samples.png").read_bytes()
    for name in ("summary.json", "samples.png", "model.safetensors"):
        (folder / name).unlink()
    train("run")
    assert (folder / "samples.png").read_bytes() == picture
    assert (folder / "model.safetensors").exists()


def test_old_checkpoints_are_removed(train: Train) -> None:
    folder = train("run", "--checkpointing_steps", "1", "--checkpoints_total_limit", "2")
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [5, 6]
    folder = train("all", "--checkpointing_steps", "2", "--checkpoints_total_limit", "0")
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [2, 4, 6]


def test_nothing_is_unpickled(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    folder = train("run", steps=3)
    assert {path.suffix for path in folder.rglob("*") if path.is_file() and path.name != ".lock"} == {
        *(".json", ".jsonl", ".png", ".safetensors")
    }

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert len(losses(train("run", steps=6))) == 6


# --- data of one's own


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_folder_of_images(train: Train, tmp_path: Path, mode: str) -> None:
    write_images(tmp_path / "images", 5, mode=mode)
    folder = train("run", "--data", str(tmp_path / "images"), steps=3)
    assert Image.open(folder / "samples.png").mode == mode


def test_sets_on_demand_train_like_kept_ones(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pydiffaccel.trainer.data as data

    write_images(tmp_path / "images", 5)
    kept = train("a", "--data", str(tmp_path / "images"))
    monkeypatch.setattr(data.load_data, "__kwdefaults__", {**data.load_data.__kwdefaults__, "memory_limit": 1})
    same_run(kept, train("b", "--data", str(tmp_path / "images")))


def test_bad_images_are_left_out_only_on_request(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 5)
    (tmp_path / "images" / "bad.png").write_bytes(b"text")
    said = refused(capsys, tmp_path / "run", "--data", str(tmp_path / "images"))
    assert "1 of 6 images" in said
    assert "'bad.png'" in said
    folder = train("run", "--data", str(tmp_path / "images"), "--skip_bad_images")
    assert "1 unreadable images were left out: 'bad.png'" in capsys.readouterr().err
    assert json.loads((folder / "process.json").read_text())["data"]["num_images"] == 5


def test_shared_cifar_trains_and_samples(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    import pydiffaccel.trainer.data as data

    if not CIFAR.exists():
        pytest.skip(f"{CIFAR.name} of the shared data is not there")
    # On demand: decoding all 50,000 images is not what is tested here.
    monkeypatch.setattr(data.load_data, "__kwdefaults__", {**data.load_data.__kwdefaults__, "memory_limit": 1})
    from pydiffaccel.sample import main as sample

    folder = train("cifar", "--data", str(CIFAR), "--no_cache_images", "--coupling", "hungarian", steps=2)
    assert Image.open(folder / "samples.png").mode == "RGB"
    data_seen = json.loads((folder / "process.json").read_text())["data"]
    assert (data_seen["num_images"], data_seen["shape"], len(data_seen["classes"])) == (50_000, [3, 32, 32], 10)
    assert sample([str(folder), "--seeds", "0-2", "--steps", "2"]) == 0
    with np.load(folder / "samples" / "dpm_solver++-2.npz") as npz:
        assert npz["images"].shape == npz["samples"].shape == (3, 3, 32, 32)
        assert npz["images"].dtype == np.uint8
        assert np.isfinite(npz["samples"]).all()


def test_pooling_keeps_most_of_the_gain_on_natural_images() -> None:
    """docs/coupling.md: 85 % at 192 of 3072 dimensions; a random projection of that size keeps a quarter."""
    from pydiffaccel.coupling import Hungarian
    from pydiffaccel.trainer.data import load_data

    if not CIFAR.exists():
        pytest.skip(f"{CIFAR.name} of the shared data is not there")
    data = load_data(CIFAR, memory_limit=1)
    x = data.batch(np.random.default_rng(0).permutation(len(data))[:512])

    def reduction(coupling: Hungarian) -> float:
        return coupling.measured(x, seed=1)[1].to_dict()["cost_reduction"]

    exact = reduction(Hungarian())
    assert exact > 3
    assert 0.8 * exact < reduction(Hungarian(project=192)) < exact
    assert reduction(Hungarian(project=192, projection="random")) < 0.5 * exact


# --- options as data


def test_options_survive_json() -> None:
    options = TrainOptions(data=Path("a/b.zip"), channels=(8, 16), coupling="knn", curriculum=True)
    assert TrainOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown options \\['speed'\\]"):
        TrainOptions.from_dict({"speed": 3})
