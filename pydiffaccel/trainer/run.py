"""The folder of a run: who may write to it, what it holds, and what a sampler needs to know about it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydiffaccel._cli import CommandError
from pydiffaccel.coupling import Coupling, coupling_from_dict
from pydiffaccel.forward import Process, process_from_dict
from pydiffaccel.networks import NetworkConfig
from pydiffaccel.trainer.checkpoint import read_json, write_json
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import TrainData
from pydiffaccel.trainer.ema import halflife_name

__all__ = ["RunDescription", "RunFolder", "RunLock"]

FORMAT = "pydiffaccel.run"
VERSION = 1


@dataclass(frozen=True)
class RunDescription:
    """process.json: the forward process, the coupling with the data's scale, the network, and the data's shape.

    For a class-conditional network also how often it was told no class in training.

    Images are in [-1, 1] before ``coupling.scale_data`` and after ``coupling.unscale_data``.
    """

    process: Process
    coupling: Coupling
    network: NetworkConfig
    data_name: str
    num_images: int
    classes: tuple[str, ...]
    latent_scale: float | None = None  # samples divided by it are what the latents' decoder takes; None: images
    conditioning_dropout_prob: float = 0.0

    @classmethod
    def of(
        cls, process: Process, coupling: Coupling, network: NetworkConfig, data: TrainData, dropout: float = 0.0
    ) -> RunDescription:
        """The description; dropout counts for a class-conditional network only."""
        return cls(
            process,
            coupling,
            network,
            data.name,
            len(data),
            data.classes,
            data.scale if data.kind == "latents" else None,
            float(dropout) if network.num_classes is not None else 0.0,
        )

    def to_dict(self) -> dict[str, Any]:
        conditioning = {"conditioning": {"name": "class_labels", "dropout_prob": self.conditioning_dropout_prob}}
        return {
            "format": FORMAT,
            "version": VERSION,
            "process": self.process.to_dict(),
            "coupling": self.coupling.to_dict(),
            "network": self.network.to_dict(),
            **(conditioning if self.network.num_classes is not None else {}),
            "data": {
                "name": self.data_name,
                "num_images": self.num_images,
                "shape": list(self.network.shape),
                **({"range": [-1.0, 1.0]} if self.latent_scale is None else {"latent_scale": self.latent_scale}),
                "classes": list(self.classes),
            },
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> RunDescription:
        """What ``to_dict`` described.

        Raises:
            ValueError, TypeError, KeyError: another format or version, or fields that are missing or invalid.
        """
        if d.get("format") != FORMAT or d.get("version") != VERSION:
            raise ValueError(f"its format is {d.get('format')!r}, version {d.get('version')!r}")
        data = d["data"]
        return cls(
            process_from_dict(d["process"]),
            coupling_from_dict(d["coupling"]),
            NetworkConfig.from_dict(d["network"]),
            str(data["name"]),
            int(data["num_images"]),
            tuple(data["classes"]),
            data.get("latent_scale"),
            float(d.get("conditioning", {}).get("dropout_prob", 0.0)),
        )


@dataclass(frozen=True)
class RunFolder:
    """Names of everything in a run's folder."""

    path: Path

    @property
    def options(self) -> Path:
        return self.path / "options.json"

    @property
    def process(self) -> Path:
        return self.path / "process.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def nonfinite(self) -> Path:
        """Where there is one: the steps without a finite loss or gradient that ended the run, and their images."""
        return self.path / "nonfinite.json"

    @property
    def loss_plot(self) -> Path:
        return self.path / "loss.png"

    @property
    def samples(self) -> Path:
        return self.path / "samples.png"

    def sample_grid(self, step: int) -> Path:
        """The samples after so many steps."""
        return self.path / "samples" / f"step_{step:08d}.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    def average(self, images: int) -> Path:
        """The average of the weights that forgets half in so many images."""
        return self.path / f"model_{halflife_name(images)}.safetensors"

    @property
    def summary(self) -> Path:
        """Written last: a run that has it for all its steps is finished."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plans(self) -> Path:
        return self.path / "plans"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def holds_run(self) -> bool:
        """Whether a run was begun here.

        Raises:
            CommandError: the folder is a file, or holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise CommandError(f"{self.path} is a file; give an --output_dir that is a folder or does not exist yet")
        if self.options.exists():
            return True
        others = sorted(item.name for item in self.path.iterdir() if not self._ours(item)) if self.path.exists() else []
        if others:
            raise CommandError(
                f"{self.path} is in use by something else: it holds '{others[0]}' but no run; give another --output_dir"
            )
        return False

    def _ours(self, item: Path) -> bool:
        """Left by a run that ended before it had written its options."""
        return item == self.lock or (item.name.startswith(".") and item.name.endswith(".tmp"))

    def read_options(self) -> TrainOptions:
        """The run's options.

        Raises:
            CommandError: the file is missing or damaged.
        """
        try:
            return TrainOptions.from_dict(read_json(self.options))
        except (ValueError, TypeError) as error:
            raise CommandError(f"{self.options} does not hold the options of a run: {error}") from error

    def read_description(self) -> RunDescription:
        """What process.json says.

        Raises:
            CommandError: the file is missing or damaged.
        """
        try:
            return RunDescription.from_dict(read_json(self.process))
        except (ValueError, TypeError, KeyError) as error:
            raise CommandError(f"{self.process} does not describe a run: {error}") from error

    def write_description(self, description: RunDescription) -> None:
        write_json(self.process, description.to_dict())

    def finished_steps(self) -> int:
        """Steps of the finished run in this folder; 0 while there is none."""
        if not self.summary.exists():
            return 0
        step = read_json(self.summary).get("step")
        return step if isinstance(step, int) else 0


# What flock answers on network file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """Holds a run's folder for this process; the system lets go of it when the process ends in any way.

    On a file system without locks it says so on stderr, and nothing is held.

    Raises:
        CommandError: another live process holds it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._handle = -1

    def __enter__(self) -> RunLock:
        self._handle = os.open(self._folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._handle, 200).decode(errors="replace").strip() or "unknown"
            self._close()
            raise CommandError(
                f"{self._folder.path} is in use by another live process ({holder}); wait for it or give another "
                f"--output_dir"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._close()
                raise
            print(
                f"note: the file system of {self._folder.path} has no locks ({error.strerror}); "
                f"take care that no second process trains there",
                file=sys.stderr,
            )
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            self._close()

    def _close(self) -> None:
        os.close(self._handle)
        self._handle = -1
