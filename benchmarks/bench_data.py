"""Images per second of the data alone: decoded on demand, mapped from the cache, in memory, against torch's DataLoader.

Every loader gives batches in a random order, as float32 [B, C, H, W] in [-1, 1] on --device. The baselines are
torch.utils.data.DataLoader with worker processes: on the same files, opened by Pillow, and on the same array.
Passes alternate between the loaders; a row has the median pass. Files come out of the system's memory, not from a disk.
The last rows are what a step waits for its batch, while a device computes for --step_ms and leaves the CPU alone.

Images are read from --data, by default ../shared/data/cifar10-jpeg/train.zip beside the repository's folder; without
them there is nothing to measure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from harness import environment, wall_clock
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pydiffaccel.trainer.data import TrainData, load_data
from pydiffaccel.trainer.loader import Loader

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-jpeg" / "train.zip"


class Files(Dataset[Tensor]):
    """The baseline's view of a folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        pixels = np.array(Image.open(self.paths[index]).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1).float() * (2 / 255) - 1


class Array(Dataset[Tensor]):
    """The baseline's view of an array."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index].float() * (2 / 255) - 1


def unpacked(source: Path, folder: Path, count: int) -> tuple[Path, Path]:
    """`count` images of a zip, evenly spread, as a folder and as a zip of their own."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(folder / "some.zip", "w") as out:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for number in np.unique(np.linspace(0, len(names) - 1, count).astype(int)).tolist():
            target = PurePosixPath(PurePosixPath(names[number]).parent.name) / f"{number}.jpg"
            content = archive.read(names[number])
            out.writestr(str(target), content)
            (folder / "some" / target).parent.mkdir(parents=True, exist_ok=True)
            (folder / "some" / target).write_bytes(content)
    return folder / "some", folder / "some.zip"


def one_pass(loader: Callable[[], Iterator[Tensor]], device: torch.device) -> float:
    """Images per second over all batches; the first one, which starts threads or workers, is not counted."""
    batches = loader()
    next(batches)
    before, images = wall_clock(device), 0
    for batch in batches:
        images += len(batch)
    return images / (wall_clock(device) - before)


def ours(data: TrainData, batch: int, device: torch.device) -> Callable[[], Iterator[Tensor]]:
    def batches() -> Iterator[Tensor]:
        loader = Loader(data, 0, batch, 1, device)
        for step in range(len(data) // batch):
            yield loader.batch(step, 0)[0]

    return batches


def torchs(dataset: Dataset[Tensor], batch: int, workers: int, device: torch.device) -> Callable[[], Iterator[Tensor]]:
    # Kept between passes: starting processes is no part of the rate.
    loader = DataLoader(
        dataset,
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return lambda: (x.to(device, non_blocking=True) for x in loader)


def waits(data: TrainData, batch: int, device: torch.device, ahead: bool, step_seconds: float, steps: int) -> float:
    """Median milliseconds until a step has its batch."""
    loader, spent = Loader(data, 0, batch, 1, device, ahead=ahead), []
    for step in range(steps):
        before = wall_clock(device)
        loader.batch(step, 0)
        spent.append(wall_clock(device) - before)
        time.sleep(step_seconds)
    return 1e3 * statistics.median(spent[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT, help=f"a zip of jpg images (default {DEFAULT})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda: where batches are wanted")
    parser.add_argument("--batch", type=int, default=256, help="images of a batch (default 256)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="of the DataLoader (default: cores)")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), help="that decode (default: cores)")
    parser.add_argument("--step_ms", type=float, default=200.0, help="of a pretended step (default 200)")
    parser.add_argument("--quick", action="store_true", help="fewer images and passes")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if not options.data.exists():
        print(f"no images at {options.data}: nothing is measured; give --data")
        return 0
    torch.set_num_threads(1)
    device = torch.device(options.device)
    count, passes = (2048, 2) if options.quick else (16384, 5)
    with tempfile.TemporaryDirectory() as name:
        folder, archive = unpacked(options.data, Path(name), count)
        memory = load_data(folder)
        on_demand = load_data(folder, memory_limit=1, threads=options.threads)
        zipped = load_data(archive, memory_limit=1, threads=options.threads)
        mapped = load_data(folder, memory_limit=1, threads=options.threads, cache_dir=Path(name) / "cache")
        files, array = Files(folder), Array(np.asarray(memory.values))
        decoding, processes = f"{options.threads} threads", f"{options.workers} workers"
        cases = {
            f"folder, decoded on demand, {decoding}": ours(on_demand, options.batch, device),
            f"zip, decoded on demand, {decoding}": ours(zipped, options.batch, device),
            "cache, mapped": ours(mapped, options.batch, device),
            "array in memory": ours(memory, options.batch, device),
            f"torch DataLoader, folder, {processes}": torchs(files, options.batch, options.workers, device),
            "torch DataLoader, array, 0 workers": torchs(array, options.batch, 0, device),
            f"torch DataLoader, array, {processes}": torchs(array, options.batch, options.workers, device),
        }
        print(f"{options.data.name}: {memory.describe()}, batches of {options.batch}")
        for loader in cases.values():
            one_pass(loader, device)
        rates: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(passes):
            for case, loader in cases.items():
                rates[case].append(one_pass(loader, device))
        rows: list[dict[str, Any]] = []
        for case, values in rates.items():
            rows.append({"case": case, "images_per_second": statistics.median(values), "passes": passes})
            print(f"{case:46} {rows[-1]['images_per_second']:12,.0f} images/s")
        for case, data in (("folder, decoded on demand", on_demand), ("cache, mapped", mapped)):
            for ahead in (False, True):
                steps = min(20, len(memory) // options.batch)
                spent = waits(data, options.batch, device, ahead, options.step_ms / 1e3, steps)
                text = f"{case}, {'read ahead' if ahead else 'in the step'}"
                rows.append({"case": text, "waiting_milliseconds": spent, "step_milliseconds": options.step_ms})
                print(f"{text:46} {spent:12,.2f} ms waited of a step of {options.step_ms:g} ms")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        shape = list(memory.shape)
        record = {"benchmark": "data", **environment(device), "data": options.data.name, "shape": shape}
        record |= {"images": len(memory), "batch": options.batch, "rows": rows}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
