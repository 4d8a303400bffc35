"""What a training step spends its time on, and what the loop adds to a bare step.

A bare step is the network's forward and backward and the optimizer on inputs that are ready; the trainer's step is the
same network with everything around it: images, coupling, noise, loss, clipping, averaged weights, logging. Both are
timed alternately. The overhead is what is left of the trainer's step beside forward, backward and the optimizer, in %
of the step. Images are CIFAR-10 where --data finds them, else random ones of its size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness import environment, wall_clock
from torch import nn

from pydiffaccel.networks import build_network, default_network
from pydiffaccel.trainer.build import make_coupling, make_process, make_schedulers
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import TrainData, load_data
from pydiffaccel.trainer.ema import make_emas
from pydiffaccel.trainer.loader import Loader
from pydiffaccel.trainer.loop import Trainer

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg" / "train.zip"
NETWORK = ("forward", "backward", "optimizer")


def images(path: Path) -> TrainData:
    if path.exists():
        return load_data(path)
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 3, 32, 32), dtype=np.uint8)
    return TrainData("random images", pixels)


def make_trainer(data: TrainData, device: torch.device, **flags: Any) -> Trainer:
    options = TrainOptions(max_train_steps=10**6, **flags)
    network = build_network(default_network(data.shape)).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    return Trainer(
        network=network,
        process=make_process(options),
        coupling=make_coupling(options),
        optimizer=optimizer,
        data=data,
        options=options,
        schedulers=make_schedulers(options, optimizer),
        emas=make_emas(network, options),
    )


class BareStep:
    """Forward, backward and the optimizer, on inputs that are there."""

    def __init__(self, data: TrainData, batch: int, device: torch.device) -> None:
        self.network = build_network(default_network(data.shape)).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.x = torch.randn(batch, *data.shape, device=device)
        self.t = torch.randint(0, 1000, (batch,), device=device)

    def __call__(self) -> None:
        loss = nn.functional.mse_loss(self.network(self.x, self.t).sample, self.x)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@contextmanager
def phases(trainer: Trainer, spent: dict[str, float]) -> Iterator[None]:
    """Inside, the seconds of each part of a step are added to spent."""
    device = trainer.device

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            before = wall_clock(device)
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += wall_clock(device) - before

        return run

    with ExitStack() as patches:
        for owner, attribute, name in (
            (Loader, "batch", "images"),
            (trainer.coupling.__class__, "__call__", "coupling"),
            (trainer.network, "forward", "forward"),
            (torch.autograd, "backward", "backward"),
            (nn.utils, "clip_grad_norm_", "clipping"),
            (trainer.optimizer, "step", "optimizer"),
            (trainer.emas["ema"], "update_parameters", "averaged weights"),
        ):
            patches.enter_context(mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def measure(data: TrainData, device: torch.device, steps: int, **flags: Any) -> dict[str, Any]:
    trainer = make_trainer(data, device, **flags)
    bare = BareStep(data, trainer.options.train_batch_size, device)
    trainer.network.train()
    for _ in range(2):
        trainer.train_step()
        bare()
    whole, base = [], []
    for _ in range(steps):
        begin = wall_clock(device)
        trainer.train_step()
        middle = wall_clock(device)
        bare()
        base.append(wall_clock(device) - middle)
        whole.append(middle - begin)
    spent: dict[str, float] = defaultdict(float)
    begin = wall_clock(device)
    with phases(trainer, spent):
        for _ in range(steps):
            trainer.train_step()
    total = wall_clock(device) - begin
    trainer.feed.forget_ahead()
    milliseconds = {name: 1e3 * seconds / steps for name, seconds in spent.items()}
    rest = total - sum(spent.values())
    ours = total - sum(spent[name] for name in NETWORK)
    with tempfile.TemporaryDirectory() as folder:
        saving = checkpoint_seconds(trainer, Path(folder))
    return {
        "flags": flags,
        "step_ms": 1e3 * statistics.median(whole),
        "bare_step_ms": 1e3 * statistics.median(base),
        "parts_ms": {**milliseconds, "rest": 1e3 * rest / steps},
        "overhead_percent": 100 * ours / total,
        "checkpoint_ms": 1e3 * saving,
    }


def checkpoint_seconds(trainer: Trainer, folder: Path) -> float:
    """Seconds that a checkpoint takes."""
    from pydiffaccel.trainer.checkpoint import save_checkpoint

    before = wall_clock(trainer.device)
    save_checkpoint(folder, trainer.state())
    return wall_clock(trainer.device) - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT, help=f"images (default {DEFAULT})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--quick", action="store_true", help="a batch of 16, two steps each")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device, data = torch.device(chosen.device), images(chosen.data)
    batch, steps = (16, 2) if chosen.quick else (128, 10)
    print(f"{data.describe()}; batch {batch}, {chosen.threads} thread(s)")
    rows = []
    for name, flags in (
        ("plain", {}),
        ("hungarian", {"coupling": "hungarian"}),
        ("hungarian, ahead", {"coupling": "hungarian", "coupling_ahead": True}),
        ("knn", {"coupling": "knn"}),
        ("flow, hungarian", {"forward": "flow", "coupling": "hungarian"}),
    ):
        row = {"case": name, **measure(data, device, steps, train_batch_size=batch, **flags)}
        rows.append(row)
        print(
            f"{name:18} step {row['step_ms']:9.2f} ms, bare {row['bare_step_ms']:9.2f} ms, "
            f"overhead {row['overhead_percent']:.2f} %; "
            + ", ".join(f"{part} {ms:.2f}" for part, ms in row["parts_ms"].items())
        )
        sys.stdout.flush()
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"benchmark": "training", **environment(device), "data": data.name, "batch": batch, "rows": rows}
        chosen.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
