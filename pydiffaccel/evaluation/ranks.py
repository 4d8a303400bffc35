"""Work that several processes share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from pydiffaccel._cli import CommandError
from pydiffaccel.evaluation._arrays import Array

__all__ = ["Ranks", "joined"]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among those that evaluate together.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        group: a gloo group of all; None for a single process.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    def share(self, n: int) -> range:
        """This rank's part of 0 .. n - 1; the parts of all ranks, in order, are the whole."""
        return range(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def device(self, name: str) -> str:
        """What a flag --device means here: with "auto" and several GPUs, each process of a machine takes one."""
        if name != "auto" or self.count == 1 or not torch.cuda.is_available():
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"

    def gather(self, action: Callable[[], Sequence[Array]]) -> Array:
        """The rows ``[n, F]`` that action gives on each rank, one after the other, on every rank.

        Raises:
            CommandError: on every rank, what the first one raised that did.
        """
        if self.count == 1:
            return np.concatenate(action())
        mine: tuple[Sequence[Array], str | None]
        try:
            mine = (action(), None)
        except CommandError as error:
            mine = ([], str(error))
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, mine, group=self.group)
        for _, sentence in every:
            if sentence is not None:
                raise CommandError(sentence)
        return np.concatenate([part for parts, _ in every for part in parts])

    def once(self, action: Callable[[], Result]) -> Result:
        """What action gives on rank 0, on every rank.

        Raises:
            CommandError: on every rank, what rank 0 raised.
        """
        if self.count == 1:
            return action()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = action()
            except CommandError as error:
                answer[1] = str(error)
        dist.broadcast_object_list(answer, src=0, group=self.group)
        if answer[1] is not None:
            raise CommandError(answer[1])
        result: Result = answer[0]
        return result


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, or those of the group that is already there; else this one alone."""
    if not dist.is_available():
        yield Ranks()
        return
    ours = not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if ours:
        dist.init_process_group("gloo")  # only features on the CPU are exchanged
    try:
        if dist.is_initialized() and dist.get_world_size() > 1:
            yield Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))
        else:
            yield Ranks()
    finally:
        if ours:
            dist.destroy_process_group()
