"""Pairing beside other work: the same noise, errors where they are asked for, no thread that stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import (
    KNN,
    Coupling,
    Distributed,
    Hungarian,
    Independent,
    NoiseQueue,
    Scaled,
    Sinkhorn,
    WarmUp,
    start_drawing,
)
from pydiffaccel.coupling import pending as module
from tests.coupling.samples import data

COUPLINGS = [
    Independent(),
    Hungarian(),
    Hungarian(pool=300),
    Sinkhorn(),
    KNN(4),
    Distributed(Hungarian()),
    Scaled(2.0, WarmUp(1, Hungarian())),
]


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pydiffaccel-pairing"]


def wait_until_no_worker() -> None:
    for thread in workers():
        thread.join(10)
    assert workers() == []


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_the_same_noise_as_at_once(coupling: Coupling) -> None:
    x, labels = data(256, 3, 16, 16), torch.arange(256) % 5
    mask = data(256, 3, 16, 16, seed=1) > -1
    for options in ({}, {"labels": labels}, {"mask": mask}):
        handle = coupling.start(x, seed=1, step=2, first_sample=3, **options)
        noise = handle.result()
        assert torch.equal(noise, coupling(x, seed=1, step=2, first_sample=3, **options))
        assert handle.done()
        assert handle.result() is noise
        assert handle.milliseconds() > 0
    wait_until_no_worker()


def test_many_at_once_come_in_order() -> None:
    # The queue refuses steps out of order.
    queue, again = NoiseQueue(30), NoiseQueue(30)
    batches = [data(4, 50, seed=step) for step in range(200)]
    handles = [queue.start(x, step=step) for step, x in enumerate(batches)]
    assert len(workers()) <= 1
    for step, (x, handle) in reversed(list(enumerate(zip(batches, handles, strict=True)))):
        expected = None if step else again(x, step=0)
        assert expected is None or torch.equal(handle.result(), expected)
    for step, (x, handle) in list(enumerate(zip(batches, handles, strict=True)))[1:]:
        assert torch.equal(handle.result(), again(x, step=step))
    wait_until_no_worker()


def test_two_threads_may_start(recwarn: pytest.WarningsRecorder) -> None:
    x, results = data(16, 8), {}

    def start(seed: int) -> None:
        handles = [Hungarian().start(x, seed=seed, step=step) for step in range(50)]
        results[seed] = [handle.result() for handle in handles]

    threads = [threading.Thread(target=start, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        assert all(torch.equal(noise, Hungarian()(x, seed=seed, step=step)) for step, noise in enumerate(results[seed]))
    wait_until_no_worker()


def test_errors_come_with_the_result() -> None:
    x = data(4, 3)
    for handle, error, sentence in (
        (Hungarian().start(x * torch.nan), ValueError, "NaN"),
        (Hungarian().start(x, labels=torch.arange(3)), ValueError, "labels must have shape"),
        (Hungarian().start([1, 2]), TypeError, "x must be a floating-point tensor, got list"),  # type: ignore[arg-type]
        (KNN(2).start(x.long()), TypeError, "x must be a floating-point tensor"),
        (KNN(2).start(x, step=-1), ValueError, "step must be in"),
    ):
        for _ in range(2):
            with pytest.raises(error, match=sentence):
                handle.result()
        assert handle.done()
    assert torch.equal(Hungarian().start(x).result(), Hungarian()(x))


def test_start_returns_before_the_work_is_done() -> None:
    go = threading.Event()

    def draw() -> Tensor:
        assert go.wait(10)
        return torch.ones(1)

    x = torch.zeros(1)
    first, second = start_drawing(draw, [x]), start_drawing(lambda: torch.zeros(1), [x])
    assert not first.done()
    assert not second.done()
    go.set()
    assert float(second.result()) == 0
    assert first.done()


def test_no_gradient_in_the_worker() -> None:
    x = data(4, 3).requires_grad_()
    assert not Hungarian().start(x).result().requires_grad


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_starts_again() -> None:
    """In a process of its own, whose child pairs on while the parent's worker is busy."""
    code = (
        "import os, sys, threading, torch\n"
        "torch.set_num_threads(1)\n"
        "from pydiffaccel.coupling import Hungarian, start_drawing\n"
        "go, x = threading.Event(), torch.randn(8, 5)\n"
        "old = start_drawing(lambda: (go.wait(30), x)[1], [x])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        old.result()\n"
        "    except RuntimeError as error:\n"
        "        assert 'was started in the parent process' in str(error)\n"
        "        assert torch.equal(Hungarian().start(x).result(), Hungarian()(x))\n"
        "        os._exit(7)\n"
        "    os._exit(1)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "go.set()\n"
        "assert old.result() is x\n"
        "sys.exit(status)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 7


def test_the_interpreter_ends_with_work_left() -> None:
    code = (
        "import torch\n"
        "from pydiffaccel.coupling import Hungarian\n"
        "handles = [Hungarian().start(torch.randn(300, 50), step=step) for step in range(5)]\n"
        "print('left', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_data_is_let_go_of() -> None:
    import weakref

    x = data(4, 3)
    handle = Hungarian().start(x)
    handle.result()
    gone = weakref.ref(x)
    del x
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.001)  # the worker's last frame
    assert gone() is None
    assert isinstance(handle, module.PendingNoise)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("coupling", [*COUPLINGS[:4], Scaled(2.0, Hungarian())], ids=repr)
def test_a_side_stream_gives_the_same_noise(coupling: Coupling) -> None:
    for step in range(20):
        # Work before and after on the current stream; the inputs' memory is given back at once.
        x = data(512, 768, seed=step).cuda()
        expected = coupling(x, seed=1, step=step)
        handle = coupling.start(x * 1.0, seed=1, step=step)
        busy = x @ x.T
        noise = handle.result()
        assert torch.equal(noise, expected)
        assert handle.milliseconds() > 0
        del busy
    with pytest.raises(TypeError, match="floating-point"):
        coupling.start(torch.zeros(4, 3, dtype=torch.int64, device="cuda")).result()
    assert workers() == []
