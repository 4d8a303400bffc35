"""The training loop. Batches, noises and times are functions of (seed, step), so the step is the state of all data.

Only a coupling that remembers something between steps has a state of its own, which checkpoints hold.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from pydiffaccel._cli import CommandError
from pydiffaccel.coupling import Coupling, CouplingDiagnostics
from pydiffaccel.densities import TimeDistribution
from pydiffaccel.forward import Process
from pydiffaccel.trainer.build import make_weighting
from pydiffaccel.trainer.checkpoint import Checkpoint, load_optimizer, optimizer_state
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.couplings import over_ranks
from pydiffaccel.trainer.data import TrainData
from pydiffaccel.trainer.feed import Batch, Feed
from pydiffaccel.trainer.fit import fit
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.parallel import Ranks
from pydiffaccel.trainer.run import RunFolder
from pydiffaccel.trainer.sharding import fitting, is_sharded, whole, whole_tensors
from pydiffaccel.trainer.trackers import Trackers
from pydiffaccel.trainer.update import Update

__all__ = ["Trainer"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Trainer:
    """Trains a network; everything it needs is handed in, already built and on its device.

    Attributes:
        network: answers ``network(x_t, time)`` with a tensor or an object with ``.sample``; under class_conditional
            ``network(x_t, time, class_labels=...)``.
        process: the forward process and what is predicted.
        coupling: which noise each image gets, and the data's scale.
        optimizer: over network's parameters.
        data: the images.
        options: batch size, accumulation, steps, clipping, number format and seed; names in it are not resolved here.
        curriculum: distribution of the training times; None is the process' own.
        schedulers: stepped in order after each optimizer step.
        emas: averages of the weights by the name that they have in a checkpoint; the first one is for sampling.
        step: optimizer steps done.
        ranks: the processes that train together, each on its rows of the batch.
    """

    network: nn.Module
    process: Process
    coupling: Coupling
    optimizer: Optimizer
    data: TrainData
    options: TrainOptions
    curriculum: TimeDistribution | None = None
    schedulers: Sequence[LRScheduler] = ()
    emas: Mapping[str, AveragedModel] = field(default_factory=dict)
    step: int = 0
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        self.device = next(self.network.parameters()).device
        self.seconds = 0.0  # of training, over all parts of an interrupted run
        o = self.options
        coupling = over_ranks(self.coupling, self.ranks)
        self._replica = self.ranks.replicate(self.network)
        self._model: Callable[..., object] = torch.compile(self._replica) if o.compile else self._replica
        self._unrehearsed = self._replica is not self.network
        weighting = make_weighting(o, self.process)
        self._objective = Objective(
            self.process, coupling, self.curriculum, weighting, o.kl_objective, o.path_times, o.kl_microbatch
        )
        self.feed = Feed(self.data, coupling, self._objective, o, self.device, self.ranks)
        # Losses are means over a rank's rows, and ranks are averaged: ranks with more rows count for more.
        self._rows = self.ranks.split(o.train_batch_size)[1]
        self._share = self._rows * self.ranks.count / o.train_batch_size
        self.diagnostics: list[CouplingDiagnostics] = []  # what the couplings of the last step's parts did
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=o.mixed_precision == "fp16")
        self._update = Update(
            self.network, self.optimizer, self._scaler, self.schedulers, self.emas.values(), self.device
        )

    @property
    def coupling_seconds(self) -> float:
        """Seconds spent on drawing and choosing noise, out of ``seconds``."""
        return self.feed.coupling_seconds

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the weights; then ``state`` holds such parts too."""
        return is_sharded(self.network)

    @property
    def seeks_scale(self) -> bool:
        """Whether a gradient scaler is on and has room to go down: overflows are then part of its work."""
        return self._scaler.is_enabled() and self._scaler.get_scale() > 1

    @property
    def sampling_network(self) -> nn.Module:
        """The network whose weights are for sampling: the first average where there is one."""
        self._update.settle()
        for ema in self.emas.values():
            network = ema.module
            assert isinstance(network, nn.Module)
            return network
        return self.network

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Whole weights on the host, on the main rank: those of each average by its name, or of "model" without any.

        All ranks call.
        """
        self._update.settle()
        modules = {name: ema.module for name, ema in self.emas.items()} or {"model": self.network}
        keep = self.ranks.is_main
        return {name: whole_tensors(module.state_dict(), keep=keep) for name, module in modules.items()}

    def _answer(self, x: Tensor, model_time: Tensor, **condition: Tensor) -> object:
        precision = self.options.mixed_precision
        if self.options.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if precision == "no":
            return self._model(x, model_time, **condition)
        with torch.autocast(self.device.type, _DTYPES[precision]):
            return self._model(x, model_time, **condition)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The mean over the rows of all ranks of what each rank has as the mean over its own; all ranks call."""
        return self.ranks.total(value * self._share) / self.ranks.count

    def losses(self, part: int) -> Iterator[Tensor]:
        """The loss of one accumulation part of the current step, as a sum of differentiable parts of its own."""
        batch = self.feed.batch(self.step, part)
        if batch.diagnostics is not None:
            self.diagnostics.append(batch.diagnostics)
        if self._unrehearsed:
            self._unrehearsed = False
            self.ranks.rehearse(self.network, self._losses_of(batch))
        return self._losses_of(batch)

    def _losses_of(self, batch: Batch) -> Iterator[Tensor]:
        return self._objective.losses(self._answer, batch.x, batch.noise, batch.place, batch.condition)

    def train_step(self) -> tuple[Tensor, Tensor, float]:
        """One optimizer step on all ranks; returns its loss and gradient norm, on the device, and its learning rate.

        Where one of the two is no finite number the step only counts: it changes no weights, averages or schedulers.
        """
        parts, pieces = self.options.gradient_accumulation_steps, self._objective.num_losses(self._rows)
        self.diagnostics = []
        total = torch.zeros((), device=self.device)
        for part in range(parts):
            losses = self.losses(part)
            for piece in range(1, pieces + 1):
                last = part + 1 == parts and piece == pieces
                # The last backward alone exchanges gradients.
                with contextlib.nullcontext() if last else self.ranks.alone(self._replica):
                    loss = next(losses) * self._share / parts
                    torch.autograd.backward(self._scaler.scale(loss))
                total += loss.detach()
        total = self.ranks.total(total) / self.ranks.count
        self._scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), self.options.max_grad_norm or math.inf))
        rate = self._update(total, norm)
        self.step += 1
        return total, norm, rate

    def fit(
        self,
        folder: RunFolder,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_checkpoint: Callable[[int], None] = lambda step: None,
        trackers: Trackers | None = None,
    ) -> bool:
        """Trains up to max_train_steps with metrics and checkpoints in folder; False where stop() ended it before.

        Raises:
            CommandError: too many steps in a row were skipped, or a checkpoint cannot be written.
        """
        return fit(self, folder, stop=stop, on_checkpoint=on_checkpoint, trackers=trackers)

    def state(self) -> Checkpoint:
        """Everything a continuation needs."""
        self._update.settle()
        tensors, rest = optimizer_state(self.optimizer)
        groups = {"model": self.network.state_dict(), "optimizer": tensors}
        groups |= {name: ema.state_dict() for name, ema in self.emas.items()}
        return Checkpoint(
            self.step,
            groups,
            {
                "optimizer": rest,
                "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
                "scaler": self._scaler.state_dict(),
                "seconds": self.seconds,
                "coupling_seconds": self.coupling_seconds,
                "coupling": self.feed.state(),
            },
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Puts back what ``state`` took.

        Raises:
            CommandError: the checkpoint is of another model or optimizer.
        """
        try:
            modules = {"model": self.network, **self.emas}
            tensors = fitting(checkpoint, modules, self.optimizer)
            for name, module in modules.items():
                module.load_state_dict(dict(tensors[name]))
            load_optimizer(self.optimizer, tensors["optimizer"], checkpoint.state["optimizer"])
            for scheduler, state in zip(self.schedulers, checkpoint.state["schedulers"], strict=True):
                scheduler.load_state_dict(state)
            self._scaler.load_state_dict(checkpoint.state["scaler"])
            self.seconds = float(checkpoint.state["seconds"])
            # Checkpoints of the first release have no entry "coupling", and no coupling had a state then.
            self.feed.load(checkpoint.state.get("coupling", {}), float(checkpoint.state["coupling_seconds"]))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CommandError(
                f"the checkpoint of step {checkpoint.step} does not fit this run ({reason}); "
                f"remove its folder to continue from the one before"
            ) from error
        self.step = checkpoint.step
