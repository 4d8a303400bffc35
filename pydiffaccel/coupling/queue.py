"""An assignment for small batches: noises that no row took wait for the next steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pydiffaccel.coupling._assignment import as_rows, inner_product_cost
from pydiffaccel.coupling._checks import check_count
from pydiffaccel.coupling.base import Coupling
from pydiffaccel.coupling.hungarian import Hungarian
from pydiffaccel.noise import derive_seed, gaussian_noise
from pydiffaccel.ops import hungarian

__all__ = ["NoiseQueue"]

_GREATEST_AGING = 1e6  # the oldest noise goes first long before


@dataclass(frozen=True)
class _Lane:
    """The waiting noises of one seed and class.

    Attributes:
        drawn: noises drawn so far.
        waiting: int64 ``[size, 4]``, what each noise is made from: 1 for one of the first filling and else 0, its step
            and its row; and how many had been drawn before it.
        noise: the noises themselves, ``[size, *]``, or None until they are needed.
    """

    drawn: int
    waiting: Tensor
    noise: Tensor | None


@dataclass(frozen=True, eq=False)
class NoiseQueue(Coupling):
    """Assignment over steps, for batches too small to have much choice: B rows choose among B fresh noises and `size`
    that wait.

    The rows get B different ones of them at the greatest sum of ``<x_i, n_j>`` (an exact rectangular assignment); the
    others wait. Unlike a pool (``Hungarian(pool=...)``) this throws no noise away: after any number of steps the noises
    used are all those drawn but the `size` that wait, so their law over time is the Gaussian one. For that reason
    ``|n_j|^2`` does not count: it would only put long noises off, which then fill the queue.

    No noise starves: a waiting one gets cheaper by ``aging * |x| / size`` with each noise drawn after it (``|x|`` the
    root mean square length of the rows), without bound. docs/coupling.md has what that costs and gains.

    The fresh noises are the plain ones of the rows. Called with steps in order, each (step, first_sample) once, and
    one call at a time. ``state_dict`` holds four integers per waiting noise; the noises are made again from them.
    Over several ranks each rank has a queue of its own.

    ``pair`` cannot know which noises wait: it is ``Hungarian(labels).pair``.

    Args:
        size: noises that wait between steps; 0 is ``Hungarian(labels)`` bit for bit.
        labels: "within" gives each class a queue of its own where labels are given, so that the noise law does not
            depend on the class (memory: one queue per class seen); "across" ignores them.
        aging: how fast waiting noises get cheaper, at least 0; 0 lets them wait for ever.

    "within" looks at the labels on the host: on a GPU it waits once.

    Raises:
        TypeError: size is no int, or aging no number.
        ValueError: size < 0, labels is neither word, or aging is not in [0, 1e6].
    """

    name: ClassVar[str] = "queue"

    size: int
    labels: str = "within"
    aging: float = 0.2
    _lanes: dict[tuple[int, int | None], _Lane] = field(init=False, repr=False, default_factory=dict)
    _last: dict[int, tuple[int, int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_count("size", self.size, 0)
        if isinstance(self.aging, bool) or not isinstance(self.aging, (int, float)):
            raise TypeError(f"aging must be a number, got {type(self.aging).__name__}")
        if not (self.aging >= 0 and math.isfinite(self.aging)):
            raise ValueError(f"aging must be finite and at least 0, got {self.aging}")
        if self.aging > _GREATEST_AGING:
            raise ValueError(f"aging must be at most {_GREATEST_AGING:g}, got {self.aging}")
        object.__setattr__(self, "aging", float(self.aging))
        Hungarian(self.labels)  # checks the word

    def reset(self) -> None:
        """Forgets the waiting noises: the next call is the first."""
        self._lanes.clear()
        self._last.clear()

    def _draw(
        self, x: Tensor, seed: int, step: int, first_sample: int, labels: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.size == 0 or len(x) == 0:
            return Hungarian(self.labels)._draw(x, seed, step, first_sample, labels, mask)
        fresh = gaussian_noise(x, seed, step, first_sample)
        last = self._last.get(seed)
        if last is not None and (step, first_sample) <= last:
            raise ValueError(
                f"a queue must be called with steps in order, each once: step {step}, first_sample {first_sample} came "
                f"after step {last[0]}, first_sample {last[1]}; reset() starts again, load_state_dict() goes back"
            )
        data = x.detach() if mask is None else torch.where(mask, x.detach(), 0)
        out = fresh
        lanes: dict[tuple[int, int | None], _Lane] = {}
        for label, rows in self._groups(labels, x):
            key = (seed, label)
            lane = self._lanes.get(key) or self._filled(x, seed, label, step, first_sample)
            own, own_data = (fresh, data) if rows is None else (fresh[rows], data[rows])
            identities = torch.zeros(len(own), 4, dtype=torch.int64, device=x.device)
            identities[:, 1] = step
            identities[:, 2] = first_sample + (torch.arange(len(x), device=x.device) if rows is None else rows)
            identities[:, 3] = lane.drawn
            chosen, lanes[key] = self._step(lane, own, own_data, identities, seed, label)
            out = chosen if rows is None else out.index_copy(0, rows, chosen)
        # Only now, so that a call that fails changes nothing.
        self._lanes.update(lanes)
        self._last[seed] = (step, first_sample)
        return out

    def _step(
        self, lane: _Lane, fresh: Tensor, data: Tensor, identities: Tensor, seed: int, label: int | None
    ) -> tuple[Tensor, _Lane]:
        """The noise of each row of data, and the lane after it. Nothing here waits for a GPU."""
        candidates = torch.cat([fresh, self._noise_of(lane, fresh, seed, label)])
        identities = torch.cat([identities, lane.waiting.to(fresh.device)])
        rows, drawn = len(fresh), lane.drawn + len(fresh)
        cost = inner_product_cost(as_rows(data), as_rows(candidates))
        if self.aging:
            squares = torch.linalg.vector_norm(as_rows(data), dim=1, dtype=torch.float64).square()
            length = squares.mean().sqrt().to(cost.dtype)
            cost -= self.aging / self.size * length * (drawn - identities[:, 3])
        chosen = hungarian(cost).clamp_(min=0)  # on a GPU invalid data is answered with -1
        taken = torch.zeros(len(candidates), dtype=torch.int8, device=fresh.device).index_fill_(0, chosen, 1)
        kept = taken.argsort(stable=True)[: len(candidates) - rows]
        left = _Lane(drawn, identities.index_select(0, kept), candidates.index_select(0, kept))
        return candidates.index_select(0, chosen), left

    def _groups(self, labels: Tensor | None, x: Tensor) -> list[tuple[int | None, Tensor | None]]:
        """(class, its rows) of each class; None stands for no class and for all rows."""
        if labels is None or self.labels == "across":
            return [(None, None)]
        rows: dict[int, list[int]] = {}
        for row, label in enumerate(labels.tolist()):
            rows.setdefault(int(label), []).append(row)
        return [(label, torch.tensor(own, device=x.device)) for label, own in rows.items()]

    def _filled(self, x: Tensor, seed: int, label: int | None, step: int, first_sample: int) -> _Lane:
        """A lane at its first call. Rows are counted from first_sample * size: other ranks fill with other noises."""
        if (first_sample + 1) * self.size > 2**32:
            raise ValueError(
                f"a queue of {self.size} noises takes first_sample up to {2**32 // self.size - 1}, got {first_sample}"
            )
        waiting = torch.zeros(self.size, 4, dtype=torch.int64, device=x.device)
        waiting[:, 0], waiting[:, 1] = 1, step
        waiting[:, 2] = first_sample * self.size + torch.arange(self.size, device=x.device)
        like = x.new_empty(self.size, *x.shape[1:])
        noise = gaussian_noise(like, _filling_seed(seed, label), step, first_sample * self.size)
        return _Lane(0, waiting, noise)

    def _noise_of(self, lane: _Lane, like: Tensor, seed: int, label: int | None) -> Tensor:
        """The waiting noises ``[size, *]`` in like's sample shape, dtype and device."""
        noise = lane.noise
        if noise is not None and (noise.shape[1:], noise.dtype, noise.device) == (
            like.shape[1:],
            like.dtype,
            like.device,
        ):
            return noise
        filling = _filling_seed(seed, label)
        return torch.cat(
            [
                gaussian_noise(like[:1], filling if filled else seed, step, row)
                for filled, step, row, _ in lane.waiting.tolist()
            ]
        )

    def _pair(self, x: Tensor, noise: Tensor, labels: Tensor | None, mask: Tensor | None) -> Tensor:
        return Hungarian(self.labels)._pair(x, noise, labels, mask)

    def to_dict(self) -> dict[str, Any]:
        """``{"name": "queue", "size": ..., "labels": ..., "aging": ...}``; the state is not part of it."""
        return {"name": self.name, "size": self.size, "labels": self.labels, "aging": self.aging}

    def snapshot(self) -> Callable[[], dict[str, Any]]:
        """A function for the state as it is now: size, the last call of each seed, and each lane's waiting noises as
        four integers. It waits for a GPU only when it is called."""
        last, lanes = dict(self._last), dict(self._lanes)  # a lane is replaced, never changed

        def state() -> dict[str, Any]:
            return {
                "size": self.size,
                "last": [[seed, *call] for seed, call in last.items()],
                "lanes": [
                    {"seed": seed, "label": label, "drawn": lane.drawn, "waiting": lane.waiting.tolist()}
                    for (seed, label), lane in lanes.items()
                ],
            }

        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``state_dict`` returned.

        Raises:
            ValueError: the state is no queue's, of a queue of another size, or damaged; the queue stays as it was.
        """
        if not isinstance(state, Mapping):
            raise ValueError(f"the state of a queue is a dict, got {type(state).__name__}")
        expected = {"size", "last", "lanes"}
        if set(state) != expected:
            raise ValueError(f"the state of a queue has {sorted(expected)}, got {sorted(state)}")
        if state["size"] != self.size:
            raise ValueError(f"the state is of a queue of size {state['size']}, this one has size {self.size}")
        try:
            last = {int(seed): (int(step), int(first)) for seed, step, first in state["last"]}
            lanes = {}
            for lane in state["lanes"]:
                waiting = torch.tensor(lane["waiting"], dtype=torch.int64)
                if waiting.shape != (self.size, 4):
                    raise ValueError(f"waiting must have shape ({self.size}, 4), got {tuple(waiting.shape)}")
                drawn, low, high = int(lane["drawn"]), waiting.amin(0).tolist(), waiting.amax(0).tolist()
                if min(low) < 0 or high[0] > 1 or max(high[1:3]) >= 2**32 or high[3] > drawn:
                    raise ValueError(f"waiting holds what no queue writes, from {low} to {high} of {drawn} drawn")
                label = None if lane["label"] is None else int(lane["label"])
                lanes[int(lane["seed"]), label] = _Lane(drawn, waiting, None)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the state of the queue is damaged: {error}") from error
        self.reset()
        self._last.update(last)
        self._lanes.update(lanes)


def _filling_seed(seed: int, label: int | None) -> int:
    """The seed of a lane's first filling; the classes' lanes are filled with different noises."""
    return derive_seed(seed, "queue-filling" if label is None else f"queue-filling-{label}")
