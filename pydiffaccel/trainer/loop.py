"""The training loop. Batches, noises and times are functions of (seed, step), so the step is the state of all data.

Only a coupling that remembers something between steps has a state of its own, which checkpoints hold.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from pydiffaccel._cli import CommandError
from pydiffaccel.coupling import Coupling, CouplingDiagnostics, PendingNoise, diagnose, start_drawing
from pydiffaccel.curriculum import ContinuousCurriculum, TimestepCurriculum
from pydiffaccel.forward import Process
from pydiffaccel.trainer.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_optimizer,
    optimizer_state,
    prune_checkpoints,
    save_checkpoint,
)
from pydiffaccel.trainer.config import TrainOptions
from pydiffaccel.trainer.data import BatchOrder, ImageData
from pydiffaccel.trainer.metrics import MetricsLog, Progress, Stopwatch, coupling_figures
from pydiffaccel.trainer.objective import Objective
from pydiffaccel.trainer.run import RunFolder

__all__ = ["Trainer"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class _Ahead:
    """The noise of a later part that is being paired, and the coupling's state before that."""

    step: int
    part: int
    x: Tensor
    noise: PendingNoise
    state: Callable[[], dict[str, Any]]


@dataclass
class Trainer:
    """Trains a network; everything it needs is handed in, already built and on its device.

    Attributes:
        network: answers ``network(x_t, time)`` with a tensor or an object with ``.sample``.
        process: the forward process and what is predicted.
        coupling: which noise each image gets, and the data's scale.
        optimizer: over network's parameters.
        data: the images.
        options: batch size, accumulation, steps, clipping, number format and seed; names in it are not resolved here.
        curriculum: distribution of the training times; None is the process' own.
        schedulers: stepped in order after each optimizer step.
        ema: averaged weights, or None.
        step: optimizer steps done.
    """

    network: nn.Module
    process: Process
    coupling: Coupling
    optimizer: Optimizer
    data: ImageData
    options: TrainOptions
    curriculum: TimestepCurriculum | ContinuousCurriculum | None = None
    schedulers: Sequence[LRScheduler] = ()
    ema: AveragedModel | None = None
    step: int = 0

    def __post_init__(self) -> None:
        self.device = next(self.network.parameters()).device
        self.seconds = 0.0  # of training, over all parts of an interrupted run
        o = self.options
        self._objective = Objective(
            self.process, self.coupling, self.curriculum, o.snr_gamma, o.kl_objective, o.path_times, o.kl_microbatch
        )
        self._order = BatchOrder(len(self.data), self.options.seed)
        self._coupling_watch = Stopwatch(self.device)
        self._earlier_coupling_seconds = 0.0
        self._ahead: _Ahead | None = None
        self._diagnostics: list[CouplingDiagnostics] = []  # of this step's parts
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=self.options.mixed_precision == "fp16")

    @property
    def coupling_seconds(self) -> float:
        """Seconds spent on drawing and choosing noise, out of ``seconds``."""
        return self._earlier_coupling_seconds + self._coupling_watch.seconds()

    @property
    def sampling_network(self) -> nn.Module:
        """The network whose weights are for sampling: the average where there is one."""
        if self.ema is None:
            return self.network
        network = self.ema.module
        assert isinstance(network, nn.Module)
        return network

    def _answer(self, x: Tensor, model_time: Tensor) -> object:
        precision = self.options.mixed_precision
        if precision == "no":
            return self.network(x, model_time)
        with torch.autocast(self.device.type, _DTYPES[precision]):
            return self.network(x, model_time)

    def _place(self, step: int, part: int) -> dict[str, Any]:
        """What the draws of a part are a function of."""
        return {"seed": self.options.seed, "step": step, "first_sample": part * self.options.train_batch_size}

    def _data(self, step: int, part: int) -> Tensor:
        """The data of a part, scaled."""
        n = self.options.train_batch_size
        position = (step * self.options.gradient_accumulation_steps + part) * n
        return self.coupling.scale_data(self.data.batch(self._order.indices(position, n), self.device))

    def _data_and_noise(self, part: int) -> tuple[Tensor, Tensor | None]:
        """The data of a part of this step and its noise: None where the loss draws it."""
        step, ahead = self.step, self._ahead
        if ahead is not None and (ahead.step, ahead.part) == (step, part):
            x, self._ahead = ahead.x, None
            with self._coupling_watch.measure():
                noise = ahead.noise.result()
            milliseconds = ahead.noise.milliseconds
        else:
            self._forget_ahead()
            x = self._data(step, part)
            if self._objective.draws_itself(step):
                return x, None
            with self._coupling_watch.measure() as timer:
                noise = self._objective.noise(x, self._place(step, part))
            milliseconds = timer.milliseconds
        if not self.coupling.is_plain(step):
            first = noise[:, 0] if noise.dim() > x.dim() else noise  # of the terms of KL diffusion
            self._diagnostics.append(diagnose(x, first, **self._place(step, part), milliseconds=milliseconds))
        if self.options.coupling_ahead:
            self._begin_next(part)
        return x, noise

    def _begin_next(self, part: int) -> None:
        """Begins to pair what follows a part of this step, unless that is plain noise or the end."""
        last = part + 1 == self.options.gradient_accumulation_steps
        step, part = (self.step + 1, 0) if last else (self.step, part + 1)
        if step == self.options.max_train_steps or self.coupling.is_plain(step):
            return
        x, state = self._data(step, part), self.coupling.snapshot()
        noise = start_drawing(lambda: self._objective.noise(x, self._place(step, part)), [x])
        self._ahead = _Ahead(step, part, x, noise, state)

    def _forget_ahead(self) -> None:
        """Ends what was begun ahead of a step that does not come; the coupling is as it was before."""
        if self._ahead is not None:
            with contextlib.suppress(Exception):
                self._ahead.noise.result()
            self.coupling.load_state_dict(self._ahead.state())
            self._ahead = None

    def losses(self, part: int) -> Iterator[Tensor]:
        """The loss of one accumulation part of the current step, as a sum of differentiable parts of its own."""
        x, noise = self._data_and_noise(part)
        return self._objective.losses(self._answer, x, noise, self._place(self.step, part))

    def train_step(self) -> tuple[Tensor, Tensor, float]:
        """One optimizer step; returns its loss and gradient norm, on the device, and its learning rate."""
        parts = self.options.gradient_accumulation_steps
        self._diagnostics = []
        total = torch.zeros((), device=self.device)
        for part in range(parts):
            for loss in self.losses(part):
                loss = loss / parts
                torch.autograd.backward(self._scaler.scale(loss))
                total += loss.detach()
        self._scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.options.max_grad_norm or math.inf)
        rate = float(self.optimizer.param_groups[0]["lr"])
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for scheduler in self.schedulers:
            scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self.step += 1
        return total, norm, rate

    def fit(
        self,
        folder: RunFolder,
        *,
        stop: Callable[[], bool] = lambda: False,
        on_checkpoint: Callable[[int], None] = lambda step: None,
    ) -> bool:
        """Trains up to max_train_steps with metrics and checkpoints in folder; False where stop() ended it before.

        Raises:
            CommandError: the loss or the gradient is no finite number.
        """
        o = self.options
        log = MetricsLog(folder.metrics, self.step)
        progress = Progress(o.max_train_steps, self.step, "step")
        pending: list[tuple[int, Tensor, Tensor, float]] = []
        couplings: list[list[CouplingDiagnostics]] = []
        images = o.images_per_step
        begin, before = time.monotonic(), self.seconds
        first = self.step
        saved = self.step if self.step else -1

        def flush() -> None:
            """One transfer from the device for all steps since the last."""
            if not pending:
                return
            losses = torch.stack([row[1] for row in pending]).tolist()
            norms = torch.stack([row[2] for row in pending]).tolist()
            self.seconds = before + time.monotonic() - begin
            figures = coupling_figures(couplings)
            for (step, _, _, _), loss, norm in zip(pending, losses, norms, strict=True):
                # Under fp16 an overflown gradient is found and skipped by the scaler.
                if not math.isfinite(loss) or not (math.isfinite(norm) or self._scaler.is_enabled()):
                    raise CommandError(
                        f"the loss of step {step} is {loss:g} and its gradient's norm {norm:g}; "
                        f"try a smaller --learning_rate or a longer --lr_warmup_steps"
                    )
            log.write(
                [
                    {
                        "step": step,
                        "loss": loss,
                        "grad_norm": norm if math.isfinite(norm) else None,
                        "learning_rate": rate,
                        "images": step * images,
                        "evaluations": step * images * o.evaluations_per_image,
                        "seconds": round(self.seconds, 3),
                        **coupled,
                    }
                    for (step, _, _, rate), loss, norm, coupled in zip(pending, losses, norms, figures, strict=True)
                ]
            )
            pending.clear()
            couplings.clear()
            speed = (self.step - first) * images / max(1e-9, self.seconds - before)
            progress.advance(self.step, {"loss": f"{losses[-1]:.4f}", "images/s": f"{speed:,.0f}"})

        def checkpoint() -> None:
            nonlocal saved
            log.sync()
            save_checkpoint(folder.checkpoints, self.state())
            prune_checkpoints(folder.checkpoints, o.checkpoints_total_limit)
            saved = self.step
            on_checkpoint(self.step)

        self.network.train()
        with contextlib.closing(log), contextlib.closing(progress), contextlib.ExitStack() as at_the_end:
            at_the_end.callback(self._forget_ahead)
            while self.step < o.max_train_steps and not stop():
                loss, norm, rate = self.train_step()
                pending.append((self.step, loss, norm, rate))
                couplings.append(self._diagnostics)
                due = self.step % o.checkpointing_steps == 0 or self.step == o.max_train_steps
                if due or self.step % o.log_every == 0:
                    flush()
                if due:
                    checkpoint()
            flush()
            if self.step > max(saved, 0):
                checkpoint()
        return self.step >= o.max_train_steps

    def state(self) -> Checkpoint:
        """Everything a continuation needs."""
        tensors, rest = optimizer_state(self.optimizer)
        groups = {"model": self.network.state_dict(), "optimizer": tensors}
        if self.ema is not None:
            groups["ema"] = self.ema.state_dict()
        return Checkpoint(
            self.step,
            groups,
            {
                "optimizer": rest,
                "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
                "scaler": self._scaler.state_dict(),
                "seconds": self.seconds,
                "coupling_seconds": self.coupling_seconds,
                "coupling": self._ahead.state() if self._ahead is not None else self.coupling.state_dict(),
            },
        )

    def load(self, checkpoint: Checkpoint) -> None:
        """Puts back what ``state`` took.

        Raises:
            CommandError: the checkpoint is of another model or optimizer.
        """
        self._forget_ahead()
        try:
            self.network.load_state_dict(dict(checkpoint.tensors["model"]))
            if self.ema is not None:
                self.ema.load_state_dict(dict(checkpoint.tensors["ema"]))
            load_optimizer(self.optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
            for scheduler, state in zip(self.schedulers, checkpoint.state["schedulers"], strict=True):
                scheduler.load_state_dict(state)
            self._scaler.load_state_dict(checkpoint.state["scaler"])
            self.seconds = float(checkpoint.state["seconds"])
            self._earlier_coupling_seconds = float(checkpoint.state["coupling_seconds"])
            # Checkpoints of the first release have no entry, and no coupling had a state then.
            self.coupling.load_state_dict(checkpoint.state.get("coupling", {}))
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise CommandError(
                f"the checkpoint of step {checkpoint.step} does not fit this run ({reason}); "
                f"remove its folder to continue from the one before"
            ) from error
        self.step = checkpoint.step

    def resume(self, folder: RunFolder) -> int:
        """Continues from the newest checkpoint in folder, if there is one; returns the steps done."""
        found = list_checkpoints(folder.checkpoints)
        if found:
            self.load(load_checkpoint(found[-1][1]))
        return self.step
