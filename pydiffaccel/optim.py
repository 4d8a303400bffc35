"""Momentum decay with learning-rate compensation (2404.07946)."""

from __future__ import annotations

import weakref
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["PARTS", "MomentumDecay"]

# What a decay changes: beta_1 and the learning rate, or one of them as a control.
PARTS = ("both", "lr_only", "beta_only")


@dataclass
class _Group:
    """What one parameter group needs beside its own entries.

    Attributes:
        lr: the learning rate without this scheduler's factor.
        shown: the learning rate this scheduler wrote into the group.
        applied: whether the group holds the factor (between this scheduler's step and the optimizer's).
        factor: the factor of the learning rate, 1 - b0 tau.
        product: product of beta_1 over the optimizer steps before the current run of equal ones.
        beta1: beta_1 of the current run.
        run: length of the current run.
        steps: optimizer steps so far.
    """

    lr: float
    shown: float
    applied: bool
    factor: float
    product: float
    beta1: float
    run: int
    steps: int


class MomentumDecay(LRScheduler):
    """Lowers Adam's beta_1 to 0 over training and the learning rate with it.

    With b0 the group's beta_1 and tau = (i - warmup_steps) / (total_steps - warmup_steps), cut to [0, 1], at step i:

        beta_1 = b0 (1 - s tau) / (1 - b0 s tau),    lr = lr0 (1 - b0) / (1 - beta_1) = lr0 (1 - b0 s tau),

    s being the strength. So lr (1 - beta_1), the weight of a new gradient in an update, is constant, and what happens
    to the learning rate is a linear decay to (1 - b0) lr0. The control for any comparison is that decay alone:
    ``torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 - b0, total_steps)``. beta_2 stays. beta_1 ends at exactly 0,
    which Adam takes: the update then uses the gradient itself.

    **Bias correction.** Adam divides by 1 - beta_1^n, n the number of its steps, which is right for a constant beta_1;
    for a moving one the first moment is biased by 1 - prod_j beta_1(j). Hooks around ``optimizer.step()`` multiply the
    learning rate by (1 - beta_1^n) / (1 - prod_j beta_1(j)) for the duration of that step, which makes the update the
    right one; decoupled weight decay (AdamW) is divided by the same number, so it stays lr weight_decay. n counts the
    steps of the group: a parameter that misses some of them (no gradient) is corrected as if it had not, and a step
    that a fused optimizer skips inside, for a GradScaler, counts.

    **With other schedulers**, as a warm-up: ``step()`` this one after them. Its factor is on the learning rate from its
    own step to the next ``optimizer.step()``; in between the group holds the others' learning rate, so that it does not
    matter whether they multiply the learning rate (LinearLR) or overwrite it (LambdaLR). ``get_last_lr()`` has the
    product. Works in ``ChainedScheduler`` (last) and in ``SequentialLR`` (total_steps then counts from its milestone).

    **Controls.** parts="lr_only" leaves beta_1 alone: the control above, with warm-up and other schedulers as here.
    parts="beta_only" leaves the learning rate alone, the bias correction included.

    At strength 0 nothing is touched: training is bit-identical to training without it.

    Args:
        optimizer: Adam or AdamW, any implementation (foreach, fused, capturable), with float betas.
        total_steps: the step at which beta_1 is fully decayed, warm-up included.
        warmup_steps: steps before the decay begins; the learning rate's ramp is another scheduler's.
        strength: s in [0, 1]; 0 turns the decay off.
        parts: what changes: "both", "lr_only" or "beta_only".

    Raises:
        TypeError: another optimizer, betas that are tensors, or steps that are no ints.
        ValueError: total_steps < 1, warmup_steps outside [0, total_steps), strength outside [0, 1], or unknown parts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        strength: float = 1.0,
        parts: str = "both",
    ) -> None:
        if not isinstance(optimizer, (Adam, AdamW)):
            raise TypeError(f"MomentumDecay needs Adam or AdamW, got {type(optimizer).__name__}")
        for name, value in (("total_steps", total_steps), ("warmup_steps", warmup_steps)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps}")
        if not 0 <= warmup_steps < total_steps:
            raise ValueError(f"warmup_steps must lie in [0, total_steps) = [0, {total_steps}), got {warmup_steps}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must lie in [0, 1], got {strength}")
        if parts not in PARTS:
            raise ValueError(f"parts must be one of {', '.join(PARTS)}, got {parts!r}")
        for group in optimizer.param_groups:
            if isinstance(group["betas"][0], Tensor):
                raise TypeError("betas must be floats, got a tensor")
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.strength = strength
        self.parts = parts
        self._groups: list[_Group] = []
        self._stepping: list[_Stepping] = []
        super().__init__(optimizer)
        if strength == 0:
            return
        # Weak, so that an optimizer outlives its schedulers and is not corrected by one that was dropped.
        this = weakref.ref(self)

        def before(optimizer: Optimizer, args: object, kwargs: object) -> None:
            if (scheduler := this()) is not None:
                scheduler._before_step()

        def after(optimizer: Optimizer, args: object, kwargs: object) -> None:
            if (scheduler := this()) is not None:
                scheduler._after_step()

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    @property
    def tau(self) -> float:
        """Progress of the decay at the current step, in [0, 1]."""
        progress = (self.last_epoch - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return min(1.0, max(0.0, progress))

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group; within ``step`` it also sets beta_1, as torch's OneCycleLR does."""
        return self._apply([_from_others(group, state) for group, state in self._states()])

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        # Asked for by SequentialLR at a milestone: the schedule starts from the initial learning rate.
        return self._apply([float(lr) for lr in self.base_lrs])

    def _apply(self, lrs: list[float]) -> list[float | Tensor]:
        """The learning rates with this scheduler's factor."""
        if self.strength == 0:
            return [*lrs]
        progress = self.strength * self.tau
        values: list[float | Tensor] = []
        for lr, (group, state) in zip(lrs, self._states(), strict=True):
            b0 = group["initial_beta1"]
            factor = 1.0 if self.parts == "beta_only" else 1 - b0 * progress
            values.append(lr * factor)
            if self._get_lr_called_within_step:
                state.lr, state.factor, state.applied = lr, factor, True
                state.shown = _as_stored(group, lr * factor)
                self._set_beta1(group, progress)
        return values

    def _set_beta1(self, group: dict[str, Any], progress: float) -> None:
        if self.parts != "lr_only":
            b0 = group["initial_beta1"]
            group["betas"] = (b0 * (1 - progress) / (1 - b0 * progress), group["betas"][1])

    def state_dict(self) -> dict[str, Any]:
        """Everything but the optimizer, in plain numbers and lists (JSON-ready)."""
        return {
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "strength": self.strength,
            "parts": self.parts,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": [float(lr) for lr in self.get_last_lr()],
            "groups": [asdict(state) for state in self._groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from ``state_dict()``; the optimizer's own state may be loaded before or after."""
        state = dict(state_dict)
        self._groups = [_Group(**group) for group in state.pop("groups")]
        self.__dict__.update(state)
        if self.strength > 0:
            progress = self.strength * self.tau
            for group, _ in self._states():
                self._set_beta1(group, progress)

    def _states(self) -> list[tuple[dict[str, Any], _Group]]:
        """The parameter groups with their state, which a group gets when it is first seen."""
        groups = self.optimizer.param_groups
        for group in groups[len(self._groups) :]:
            beta1 = group["betas"][0]
            group.setdefault("initial_beta1", beta1)
            taken = [int(self.optimizer.state[p].get("step", 0)) for p in group["params"] if p in self.optimizer.state]
            steps = max(taken, default=0)
            lr = float(group["lr"])
            self._groups.append(
                _Group(lr=lr, shown=lr, applied=False, factor=1.0, product=1.0, beta1=beta1, run=steps, steps=steps)
            )
        return list(zip(groups, self._groups, strict=True))

    def _before_step(self) -> None:
        for entry in self._stepping:  # of a step that raised
            entry.undo(entry.shown)
        self._stepping = []
        for group, state in self._states():
            lr, beta1 = _without_factor(group, state), group["betas"][0]
            product, run = state.product, state.run + 1
            if beta1 != state.beta1:
                product, run = product * state.beta1**state.run, 1
            following = replace(
                state, lr=lr, applied=False, product=product, beta1=beta1, run=run, steps=state.steps + 1
            )
            entry = _Stepping(group, following, float(group["lr"]), group["weight_decay"])
            self._stepping.append(entry)
            if run == following.steps:
                continue  # constant so far: Adam's own correction is right
            correction = (1 - beta1**following.steps) / (1 - product * beta1**run)
            _set_lr(group, entry.shown * correction)
            if group.get("decoupled_weight_decay", isinstance(self.optimizer, AdamW)):
                group["weight_decay"] = entry.weight_decay / correction

    def _after_step(self) -> None:
        for entry in self._stepping:
            entry.undo(entry.following.lr)
        self._groups = [entry.following for entry in self._stepping]
        self._stepping = []


@dataclass(frozen=True)
class _Stepping:
    """What to put back when the optimizer has stepped, or has failed to.

    Attributes:
        group: the parameter group.
        following: its state after the step.
        shown: its learning rate before the correction.
        weight_decay: its weight decay before the correction.
    """

    group: dict[str, Any]
    following: _Group
    shown: float
    weight_decay: float

    def undo(self, lr: float) -> None:
        _set_lr(self.group, lr)
        self.group["weight_decay"] = self.weight_decay


def _without_factor(group: dict[str, Any], state: _Group) -> float:
    """The group's learning rate without this scheduler's factor."""
    lr = float(group["lr"])
    if not state.applied:
        return lr
    # Changed since: by a scheduler that was stepped after this one and multiplied.
    return state.lr if lr == state.shown else lr / state.factor


def _from_others(group: dict[str, Any], state: _Group) -> float:
    """The learning rate that the other schedulers ask for, when this one is stepped after them."""
    lr = float(group["lr"])
    if not state.applied or lr == state.shown:
        return _without_factor(group, state)
    # No optimizer step since the last time (a gradient scaler left it out): the factor was still on the learning rate
    # when the others changed it. They multiplied it, and the factor is in there, or overwrote it, and it is not.
    # Schedules move by small steps, so take the reading that is closer to the last value.
    return min(lr, lr / state.factor, key=lambda value: abs(value - state.lr))


def _as_stored(group: dict[str, Any], lr: float) -> float:
    """lr as the group holds it: rounded, where it holds a tensor."""
    held = group["lr"]
    return float(held.new_tensor(lr)) if isinstance(held, Tensor) else lr


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)  # in place: captured and compiled optimizers hold this tensor
    else:
        group["lr"] = lr
