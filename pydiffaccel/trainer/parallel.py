"""The processes of a run: a single one, or the ranks that torchrun started.

Nothing here imports torch before ``Ranks.join``, so that a command line can ask for its rank and still answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from pydiffaccel._cli import CommandError, UsageError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor, nn
    from torch.distributed.distributed_c10d import Store


__all__ = ["Ranks"]

# How long a rank waits for the others: reading the data and drawing the last pictures may take that long.
_TIMEOUT = timedelta(minutes=30)
_ELSEWHERE = "another rank failed"  # never shown: the rank that failed has its own sentence


class Ranks:
    """The processes of a run. Every method works alike in a single process, where it exchanges nothing.

    Methods that exchange something must be called by all ranks in the same order.

    Attributes:
        rank: this process, 0 .. count - 1.
        count: how many there are.
        local_rank: this process among those of its machine, which is the number of its GPU.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0) -> None:
        self.rank, self.count, self.local_rank = rank, count, local_rank
        self._stderr = sys.stderr
        self._speaks: bool | None = None  # whether this rank says why the run fails; None: not agreed
        self._store: Store | None = None
        self._control: dist.ProcessGroup | None = None
        self._pairing: dist.ProcessGroup | None = None
        self._asked: tuple[Tensor, dist.Work] | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Those that torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK describe; one process without them.

        Raises:
            UsageError: WORLD_SIZE says that there are others, but a variable is missing or no number.
        """
        numbers = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
        values = {name: environment.get(name, "") for name in numbers}
        if values["WORLD_SIZE"] in ("", "1"):
            return cls()
        for name, value in values.items():
            if not value.isdecimal():
                raise UsageError(
                    f"the environment variable {name} must be a number, as torchrun sets it, got {value!r}"
                )
        if not environment.get("MASTER_ADDR"):
            raise UsageError(
                "the environment variable MASTER_ADDR must name the machine of rank 0, as torchrun sets it"
            )
        return cls(int(values["RANK"]), int(values["WORLD_SIZE"]), int(values["LOCAL_RANK"]))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def pairing_group(self) -> dist.ProcessGroup | None:
        """A group of its own for couplings: they may be paired beside other exchanges."""
        return self._pairing

    @property
    def control_group(self) -> dist.ProcessGroup | None:
        """A group for what the hosts exchange."""
        return self._control

    def split(self, n: int) -> tuple[int, int]:
        """(first row, number of rows) of n that are this rank's: contiguous, sizes differ by at most 1."""
        size, larger = divmod(n, self.count)
        return self.rank * size + min(self.rank, larger), size + (self.rank < larger)

    def join(self, device_name: str) -> torch.device:
        """Meets the other ranks; returns this rank's device: ranks of one machine take one GPU each.

        Args:
            device_name: what --device says.

        Raises:
            UsageError: it is a single GPU, but there are many ranks.
            CommandError: there is no such device, or the others cannot be met.
        """
        from pydiffaccel.sampler import select_device

        if self.count == 1:
            return select_device(device_name)
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore

        self._store = store = self._meet()
        if device_name.startswith("cuda:"):
            raise UsageError(f"--device {device_name} is one GPU, and there are {self.count} ranks; give --device cuda")
        device = select_device(device_name)
        on_gpu = device.type == "cuda"
        if on_gpu:
            device = select_device(f"cuda:{self.local_rank}")
            torch.cuda.set_device(device)
        with self.exchanging():
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=PrefixStore("pydiffaccel", store),
                rank=self.rank,
                world_size=self.count,
                timeout=_TIMEOUT,
                device_id=device if on_gpu else None,
            )
            self._pairing = dist.new_group()
            self._control = dist.new_group(backend="gloo")  # numbers on the host, no wait for a GPU
        return device

    def _meet(self) -> Store:
        """The store that rank 0 keeps and all ranks see."""
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        try:
            return cast("Store", next(rendezvous("env://", timeout=_TIMEOUT))[0])
        except (dist.DistError, ValueError) as error:
            self._speaks = True
            where = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
            reason = str(error).strip().splitlines()[-1]
            raise CommandError(
                f"rank {self.rank} cannot meet the other ranks at {where} ({reason}); if another program uses that "
                f"port, give torchrun another --master_port"
            ) from error

    def leave(self) -> None:
        """Waits for the others and ends the exchange."""
        if self._control is not None:
            import torch.distributed as dist

            self.barrier()
            dist.destroy_process_group()
            self._store = self._control = self._pairing = None

    def barrier(self) -> None:
        """Returns when all ranks are here."""
        if self._control is not None:
            import torch.distributed as dist

            self._finish_asking()
            dist.barrier(group=self._control)

    def total(self, value: Tensor) -> Tensor:
        """The sum of value over all ranks, on value's device, which is not waited for."""
        if self.count > 1:
            import torch.distributed as dist

            value = value.clone()
            dist.all_reduce(value)
        return value

    def any_so_far(self, mine: bool) -> bool:
        """Whether a rank said True in the call before, alike on all ranks; a single process is answered at once.

        What the ranks say travels while they work on.
        """
        if self._control is None:
            return mine
        import torch
        import torch.distributed as dist

        answer = self._finish_asking()
        said = torch.tensor(int(mine))
        work = dist.all_reduce(said, dist.ReduceOp.MAX, group=self._control, async_op=True)
        assert work is not None
        self._asked = said, work
        return answer

    def _finish_asking(self) -> bool:
        if self._asked is None:
            return False
        (said, work), self._asked = self._asked, None
        work.wait()
        return bool(said)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What raises on one rank raises on all.

        Raises:
            CommandError: another rank has failed, and says why.
        """
        failed = True
        try:
            yield
            failed = False
        finally:
            if self._control is not None:
                first = self._first(failed)
                if first < self.count:
                    self._speaks = first == self.rank
                    if not failed:
                        raise CommandError(_ELSEWHERE)

    def any(self, mine: bool) -> bool:
        """Whether a rank says True."""
        return mine if self._control is None else self._first(mine) < self.count

    def _first(self, mine: bool) -> int:
        """The first rank that says True; their number where none does."""
        import torch
        import torch.distributed as dist

        first = torch.tensor(self.rank if mine else self.count)
        dist.all_reduce(first, dist.ReduceOp.MIN, group=self._control)
        return int(first)

    def exchange(self, value: Any) -> list[Any]:
        """What each rank has, in order, on every rank: a message as ``messages.to_bytes`` takes it."""
        if self._control is None:
            return [value]
        import torch
        import torch.distributed as dist

        from pydiffaccel.trainer.messages import from_bytes, to_bytes

        own = torch.frombuffer(bytearray(to_bytes(value)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(own)]), group=self._control)
        longest = max(int(size) for size in sizes)
        found = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.count)]
        dist.all_gather(found, torch.cat([own, own.new_zeros(longest - len(own))]), group=self._control)
        return [from_bytes(part[: int(size)].numpy().tobytes()) for part, size in zip(found, sizes, strict=True)]

    def check_same(self, what: str, value: int) -> None:
        """All ranks have the same value.

        Raises:
            CommandError: they have not; on all ranks.
        """
        if self._control is None:
            return
        import torch
        import torch.distributed as dist

        low_high = torch.tensor([-value, value])
        dist.all_reduce(low_high, dist.ReduceOp.MAX, group=self._control)
        low, high = -int(low_high[0]), int(low_high[1])
        if low != high:
            raise CommandError(
                f"all ranks must find the same {what}, got {low:,} to {high:,}; --data and --output_dir must be the "
                f"same on every machine"
            )

    @contextlib.contextmanager
    def exchanging(self, advice: str = "the same command continues from the last checkpoint") -> Iterator[None]:
        """Turns the loss of another rank into one sentence, with advice at its end.

        Raises:
            CommandError: the exchange broke off.
        """
        if self.count == 1:
            yield
            return
        import torch.distributed as dist

        try:
            yield
        except RuntimeError as error:
            # gloo raises a plain RuntimeError.
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            reason = str(error).strip().splitlines()[-1].rpartition("] ")[2]
            raise CommandError(f"rank {self.rank} has lost another rank ({reason}); {advice}") from error

    @contextlib.contextmanager
    def quietly(self) -> Iterator[None]:
        """Inside, only the main rank prints."""
        if self.is_main:
            yield
            return
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield

    def say(self, sentence: str) -> None:
        """Prints why a rank fails; of several ranks that fail one says it."""
        if self._is_first() if self._speaks is None else self._speaks:
            print(sentence, file=self._stderr, flush=True)

    def _is_first(self) -> bool:
        if self._store is None:
            return self.is_main  # flags and values, which all ranks see alike
        key = f"pydiffaccel/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        try:
            with _quiet_errors():
                return bool(self._store.add(key, 1) == 1)
        except RuntimeError:
            return True  # the rank that kept the store is gone

    def place(self, network: nn.Module, device: torch.device, parallel: str) -> None:
        """Puts network on this rank's device, whole for "ddp", this rank's shards of it for "fsdp"."""
        if parallel == "ddp" or self.count == 1:
            network.to(device)
            return
        from torch.distributed.device_mesh import init_device_mesh

        from pydiffaccel.trainer.sharding import shard

        shard(network, init_device_mesh(device.type, (self.count,)))

    def replicate(self, network: nn.Module) -> nn.Module:
        """A module that answers as network, whole or sharded, and whose backward averages the gradients over ranks."""
        from pydiffaccel.trainer.sharding import is_sharded

        if self.count == 1 or is_sharded(network):
            return network
        from torch.nn.parallel import DistributedDataParallel

        device = next(network.parameters()).device
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )

    def rehearse(self, network: nn.Module, losses: Iterator[Tensor]) -> None:
        """One backward whose gradients are dropped.

        DistributedDataParallel sums gradients in the order in which its first backward makes them, and in that backward
        in another one. Of three or more numbers the order decides the last bits: without a rehearsal a continued run
        would not repeat those of an uninterrupted one.
        """
        import torch

        device = next(network.parameters()).device
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.autograd.backward(next(losses))
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        network.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Inside, backward through what ``replicate`` returned adds to this rank's gradient and exchanges none."""
        if self.count == 1:
            yield
            return
        from torch.distributed.fsdp import FSDPModule
        from torch.nn.parallel import DistributedDataParallel

        if isinstance(model, DistributedDataParallel):
            with model.no_sync():
                yield
        elif isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(False)
            yield
            model.set_requires_gradient_sync(True)


@contextlib.contextmanager
def _quiet_errors() -> Iterator[None]:
    """Inside, what native code writes to the standard error goes nowhere: a lost store makes torch print its stack."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
