"""Small parts: networks, metrics, pictures, progress, CPU limits."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pydiffaccel._cli import cpu_quota, cpu_threads
from pydiffaccel.networks import NetworkConfig, build_network, default_network
from pydiffaccel.trainer.metrics import MetricsLog, Progress, Stopwatch, read_metrics
from pydiffaccel.trainer.pictures import image_grid, to_uint8


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 33, 33), (3, 16, 24), (1, 5, 5)])
def test_default_network_fits_the_images(shape: tuple[int, int, int]) -> None:
    network = build_network(default_network(shape))
    x = torch.randn(2, *shape)
    assert network(x, torch.tensor([0.0, 999.0])).sample.shape == x.shape


def test_network_for_digits_is_small() -> None:
    assert sum(p.numel() for p in build_network(default_network((1, 8, 8))).parameters()) == 207_209


def test_network_is_a_function_of_the_seed() -> None:
    config = NetworkConfig((1, 8, 8), (8,))
    state = torch.get_rng_state()
    a, b, c = (build_network(config, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_network_config_survives_json() -> None:
    config = default_network((3, 32, 32), (16, 24), 2)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="unknown network 'Mystery'"):
        NetworkConfig.from_dict({**config.to_dict(), "name": "Mystery"})


@pytest.mark.parametrize(
    ("shape", "channels", "match"),
    [
        ((1, 8, 8), (), "at least one"),
        ((1, 8, 8), (12,), "multiples of 8"),
        ((1, 6, 6), (8, 8, 8), "at most 2 levels, got 3"),
        ((1, 8), (8,), r"\(C, H, W\)"),
    ],
)
def test_network_refuses(shape: tuple[int, int, int], channels: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        NetworkConfig(shape, channels)


def test_metrics_drop_what_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write([{"step": step, "loss": 0.1 * step} for step in (1, 2, 3)])
    log.close()
    with path.open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    log = MetricsLog(path, 2)
    log.write([{"step": 3, "loss": 7.0}])
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 0.1), (2, 0.2), (3, 7.0)]


def test_progress_off_a_terminal_is_a_line_now_and_then() -> None:
    stream = io.StringIO()
    progress = Progress(10, 0, "step", stream=stream, interval=3600)
    for done in range(1, 11):
        progress.advance(done, {"loss": f"{done / 10}"})
    progress.close()
    assert stream.getvalue() == "step 10/10  loss 1.0  ETA 0:00\n"


def test_progress_on_a_terminal_is_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(4, 1, "step", stream=stream)
    progress.advance(4, {"loss": "0.5", "images/s": "100"})
    progress.close()
    assert "4/4" in stream.getvalue()
    assert "loss=0.5" in stream.getvalue()
    assert "images/s=100" in stream.getvalue()


def test_stopwatch_adds_up() -> None:
    watch = Stopwatch(torch.device("cpu"))
    assert watch.seconds() == 0
    for _ in range(2):
        with watch.measure():
            torch.randn(10)
    once = watch.seconds()
    assert once > 0
    assert watch.seconds() == once


def test_pictures_have_gaps_and_whole_pixels() -> None:
    images = np.array([0, 50, 100, 150, 200], np.uint8).reshape(5, 1, 1, 1).repeat(2, 2).repeat(2, 3)
    grid = np.asarray(image_grid(images, columns=3, cell=6, pad=1))
    assert grid.shape == (2 * 7 + 1, 3 * 7 + 1)
    assert (grid[1:7, 1:7] == 0).all()
    assert (grid[1:7, 8:14] == 50).all()
    assert (grid[8:14, 8:14] == 200).all()
    assert (grid[8:14, 15:21] == 128).all()  # no sixth image
    assert (grid[:, [0, 7, 14, 21]] == 128).all()


def test_colour_pictures() -> None:
    images = np.zeros((1, 3, 4, 4), np.uint8)
    images[:, 1] = 255
    assert image_grid(images, cell=4).getpixel((3, 3)) == (0, 255, 0)


def test_uint8_is_clipped_and_rounded() -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).view(5, 1, 1, 1)
    assert to_uint8(x).flatten().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_limit_of_a_container(tmp_path: Path, files: dict[str, str], expected: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cpu_quota(tmp_path) == expected


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
