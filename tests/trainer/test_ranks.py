"""Two and three ranks on the CPU train as one process does: the same batches, couplings and losses."""

from __future__ import annotations

import contextlib
import io
import json
import resource
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from pydiffaccel._cli import CommandError
from pydiffaccel.sampler import load_run
from pydiffaccel.trainer.build import make_coupling, make_curriculum, make_process
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.couplings import over_ranks
from pydiffaccel.trainer.data import load_digits
from pydiffaccel.trainer.feed import Feed
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.parallel import Ranks
from tests.ranks import as_torchrun, free_ports, run_ranks

from .conftest import TINY, losses, same_run

# A batch of 8 is shared as 4 4 and as 3 3 2.
RUNS: dict[str, list[str]] = {
    "plain": ["--gradient_accumulation_steps", "2"],
    "hungarian": ["--coupling", "hungarian", "--coupling_ahead", "--curriculum", "--curriculum_importance"],
    "knn": ["--coupling", "knn", "--forward", "flow", "--momentum_decay"],
    "kl": ["--forward", "kl", "--kl_terms", "2", "--kl_microbatch", "4", "--coupling", "hungarian"],
    "classes": ["--coupling", "hungarian", "--class_conditional"],
    "bf16": ["--mixed_precision", "bf16"],
    "fsdp": [
        *("--parallel", "fsdp", "--class_conditional", "--gradient_accumulation_steps", "2"),
        *("--ema_halflife_images", "40", "400"),
    ],
}
STEPS = 4
# Runs that are continued after half of the steps, by the same ranks or from a single process' checkpoint.
AGAIN = {"plain again": "plain", "fsdp again": "fsdp", "fsdp after one": "fsdp"}
LIKE = {**AGAIN, "fsdp then one": "fsdp", "no room": "fsdp"}
COUPLINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "hungarian": {"coupling": "hungarian"},
    "ahead": {"coupling": "hungarian", "coupling_ahead": True, "data_scale": 2.0},
    "classes": {"coupling": "hungarian", "class_conditional": True},
    "pool": {"coupling": "hungarian", "hungarian_pool": 20},
    "project": {"coupling": "hungarian", "hungarian_project": 16},
    "warmup": {"coupling": "hungarian", "coupling_start_step": 2},
    "knn": {"coupling": "knn"},
    "queue": {"coupling": "queue"},
    "sinkhorn": {"coupling": "sinkhorn"},
    "kl": {"coupling": "hungarian", "forward": "kl", "kl_terms": 2},
    "window": {"coupling": "hungarian", "coupling_window": 3, "coupling_ahead": True, "class_conditional": True},
    "window of all rows": {"coupling": "sinkhorn", "coupling_window": 3, "coupling_ahead": True},
    "across": {"coupling": "hungarian", "class_conditional": True, "hungarian_labels": "across", "random_flip": True},
}


def batches(settings: dict[str, Any], ranks: Ranks) -> dict[str, Tensor]:
    """What a rank is fed in three steps of two parts."""
    options = TrainOptions(train_batch_size=8, gradient_accumulation_steps=2, max_train_steps=STEPS, **settings)
    process = make_process(options)
    coupling = over_ranks(make_coupling(options), ranks)
    curriculum = make_curriculum(options, process)
    objective = Objective(process, coupling, curriculum, None, options.kl_objective, options.path_times, None)
    feed = Feed(load_digits(), coupling, objective, options, torch.device("cpu"), ranks)
    parts = [feed.batch(step, part) for step in range(3) for part in range(2)]
    feed.forget_ahead()
    labels = [torch.zeros(len(part.x)) if part.labels is None else part.labels for part in parts]
    noises = [part.noise for part in parts if part.noise is not None]
    return {
        "x": torch.stack([part.x for part in parts]),
        "noise": torch.stack(noises),
        "labels": torch.stack(labels),
        "indices": torch.stack([torch.from_numpy(part.indices) for part in parts]),
        "times": torch.stack([objective.times(len(part.x), part.place, part.x.device) for part in parts]),
    }


def train(folder: str, name: str, steps: int = STEPS) -> int:
    from pydiffaccel.train import main

    flags = [*TINY, *RUNS[LIKE.get(name, name)], "--checkpointing_steps", str(STEPS // 2)]
    return main(["--output_dir", f"{folder}/{name}", "--max_train_steps", str(steps), *flags])


def half(folder: Path, whole: str, name: str) -> None:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(folder / whole, folder / name)
    (folder / name / "summary.json").unlink()
    shutil.rmtree(folder / name / "checkpoints" / f"step_{STEPS:08d}")


def one_rank(rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    ports = json.loads(Path(folder, "ports").read_text())
    ranks = as_torchrun(rank, count, ports.pop())
    ranks.join("cpu")
    fed = {name: batches(settings, ranks) for name, settings in COUPLINGS.items()}
    received = received_bytes(lambda: batches(COUPLINGS["hungarian"], ranks))
    asked = [ranks.any_so_far(rank == 1 and step == 2) for step in range(5)]
    ranks.leave()
    codes: dict[str, Any] = {}
    for name in [*RUNS, *AGAIN]:
        as_torchrun(rank, count, ports.pop())
        if name.endswith("again") and rank == 0:
            half(Path(folder), AGAIN[name], name)
        codes[name] = train(folder, name)
    as_torchrun(rank, count, ports.pop())
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))  # of a full disk
    with contextlib.redirect_stderr(io.StringIO()) as said:
        codes["no room"] = train(folder, "no room")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    codes["said"] = said.getvalue()
    torch.save((fed, (asked, received), codes), f"{folder}/{rank}.pt")


def received_bytes(work: Callable[[], object]) -> int:
    """Bytes that gathering brings this rank from the others."""
    counted = []

    def counting(outputs: list[Tensor], own: Tensor, **options: Any) -> None:
        counted.append((len(outputs) - 1) * own.nbytes)
        gather(outputs, own, **options)

    gather, dist.all_gather = dist.all_gather, counting
    try:
        work()
    finally:
        dist.all_gather = gather
    return sum(counted)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a single process trained."""
    folder = tmp_path_factory.mktemp("alone")
    assert [train(str(folder), name) for name in RUNS] == [0] * len(RUNS)
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """The folder in which 2 or 3 ranks trained, and what each of them found."""
    count: int = request.param
    folder = tmp_path_factory.mktemp(f"ranks{count}")
    (folder / "ports").write_text(json.dumps(free_ports(2 + len(RUNS) + len(AGAIN))))
    assert train(str(folder), "fsdp after one", STEPS // 2) == 0
    return folder, run_ranks(one_rank, count, folder)


@pytest.mark.parametrize("name", COUPLINGS)
def test_ranks_are_fed_the_batch_of_one_process(together: tuple[Path, list[Any]], name: str) -> None:
    _, found = together
    expected = batches(COUPLINGS[name], Ranks())
    sizes = [len(fed[name]["x"][0]) for fed, _, _ in found]
    assert sizes == {2: [4, 4], 3: [3, 3, 2]}[len(found)]
    for key, whole in expected.items():
        # Bit for bit: here no two assignments are so nearly equal that the rounding of Hungarian alone would decide.
        assert torch.equal(torch.cat([fed[name][key] for fed, _, _ in found], 1), whole), key


@pytest.mark.parametrize("name", RUNS)
def test_ranks_lose_as_one_process(alone: Path, together: tuple[Path, list[Any]], name: str) -> None:
    folder, found = together
    assert [codes[name] for _, _, codes in found] == [0] * len(found)
    tolerance = 1e-2 if name == "bf16" else 2e-5
    assert losses(folder / name) == pytest.approx(losses(alone / name), rel=tolerance)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (alone / name / "metrics.jsonl").read_text().splitlines()]
    for key in ("grad_norm", "learning_rate", "images", "evaluations"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in whole], rel=10 * tolerance)
    files = sorted(path.name for path in (alone / name).iterdir())
    assert sorted(path.name for path in (folder / name).iterdir()) == files
    for file in files:
        if file.endswith(".safetensors") and name != "bf16":
            a, b = load_file(folder / name / file), load_file(alone / name / file)
            # Where a gradient is nearly 0, Adam makes its sign of the rounding.
            assert all(torch.allclose(a[key], b[key], atol=1e-3) for key in b), file


@pytest.mark.parametrize("name", ["plain", "fsdp"])
def test_continued_ranks_repeat_every_bit(together: tuple[Path, list[Any]], name: str) -> None:
    folder, found = together
    assert [codes[f"{name} again"] for _, _, codes in found] == [0] * len(found)
    same_run(folder / name, folder / f"{name} again")


def test_shards_and_whole_checkpoints_fit_each_other(together: tuple[Path, list[Any]], alone: Path) -> None:
    folder, found = together
    assert [codes["fsdp after one"] for _, _, codes in found] == [0] * len(found)
    expected = pytest.approx(losses(alone / "fsdp"), rel=2e-5)
    assert losses(folder / "fsdp after one") == expected
    shards = list((folder / "fsdp" / "checkpoints" / f"step_{STEPS:08d}").glob("shard-*.safetensors"))
    assert len(shards) == len(found)
    half(folder, "fsdp", "fsdp then one")
    unfinished = load_run(folder / "fsdp then one", ema=400)
    assert (unfinished.step, unfinished.finished) == (STEPS // 2, False)
    assert train(str(folder), "fsdp then one") == 0
    assert losses(folder / "fsdp then one") == expected


def test_shards_without_room_end_all_ranks_with_one_sentence(together: tuple[Path, list[Any]]) -> None:
    folder, found = together
    assert [codes["no room"] for _, _, codes in found] == [1] * len(found)
    (sentence,) = [line for _, _, codes in found for line in codes["said"].splitlines() if "step " not in line]
    assert "failed on rank" in sentence
    assert "File too large" in sentence
    assert list((folder / "no room" / "checkpoints").iterdir()) == []


def test_a_damaged_shard_is_found(together: tuple[Path, list[Any]]) -> None:
    folder, _ = together
    half(folder, "fsdp", "damaged")
    shard = next((folder / "damaged" / "checkpoints").glob("*/shard-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CommandError, match=rf"the checksum of {shard.name} is wrong"):
        load_run(folder / "damaged")


def test_a_wish_of_one_rank_reaches_all(together: tuple[Path, list[Any]]) -> None:
    for _, (asked, _), _ in together[1]:
        assert asked == [False, False, False, True, False]


def test_an_assignment_gathers_the_computed_bytes(together: tuple[Path, list[Any]]) -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "communication.py"))
    for _, (_, received), _ in together[1]:
        assert received == pytest.approx(6 * script["assignment"](8, len(together[1])))  # of three steps of two parts


@pytest.mark.parametrize(("n", "count"), [(8, 1), (8, 3), (7, 7), (5, 2)])
def test_a_split_is_contiguous_and_even(n: int, count: int) -> None:
    parts = [Ranks(rank, count).split(n) for rank in range(count)]
    assert [row for first, size in parts for row in range(first, first + size)] == list(range(n))
    assert max(size for _, size in parts) - min(size for _, size in parts) <= 1
