"""What follows a step's gradient: the optimizer, the schedulers and the averages, or none of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

__all__ = ["Update"]


class Update:
    """Updates the weights where loss and gradient are finite, and leaves everything as it was where they are not.

    A GPU is never waited for in the middle of a step: the fused optimizer decides there, and the schedulers and
    averages follow once the next step's gradient is on its way. Under fp16, and for optimizers that are not fused, the
    host decides.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        schedulers: Sequence[LRScheduler],
        emas: Collection[AveragedModel],
        device: torch.device,
    ) -> None:
        self._network, self._optimizer, self._scaler = network, optimizer, scaler
        self._schedulers, self._emas = schedulers, emas
        fused = bool(optimizer.defaults.get("fused"))
        self._on_device = device.type == "cuda" and fused and not scaler.is_enabled()
        self._pending: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, loss: Tensor, norm: Tensor) -> float:
        """One update with the gradients that the parameters hold, unscaled; returns its learning rate.

        loss and the gradient's norm are scalars on the device, the same on all ranks: so all of them decide alike.
        """
        self.settle()
        rate = float(self._optimizer.param_groups[0]["lr"])
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        if self._on_device:
            self._step_on_device(finite)
            self._ask_device(finite)
        elif bool(finite):
            self._scaler.step(self._optimizer)
            self._follow()
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        return rate

    def settle(self) -> None:
        """Schedulers and averages have followed the last update; called before anyone looks at them."""
        if self._pending is None:
            return
        (finite, copied), self._pending = self._pending, None
        copied.synchronize()
        if bool(finite):
            self._follow()

    def _step_on_device(self, finite: Tensor) -> None:
        """A step that the fused optimizer itself leaves out where finite is false."""
        # What torch's gradient scaler hands to fused optimizers, which then change nothing where it is 1.
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        try:
            self._optimizer.step()
        finally:
            del self._optimizer.found_inf  # type: ignore[attr-defined]

    def _ask_device(self, finite: Tensor) -> None:
        flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending = flag, copied

    def _follow(self) -> None:
        for scheduler in self._schedulers:
            scheduler.step()
        for ema in self._emas:
            ema.update_parameters(self._network)
