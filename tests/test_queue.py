"""NoiseQueue: what is drawn is used, nothing starves, and a stopped run goes on as if it had not been."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from pydiffaccel.coupling import Hungarian, NoiseQueue, Scaled, WarmUp, coupling_from_dict
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import data, rows, total


def batches(steps: int, batch: int = 4, size: int = 24, mean: float = 0.5) -> Iterator[tuple[int, Tensor]]:
    """Data with a common mean, another batch each step."""
    for step in range(steps):
        yield step, data(batch, size, seed=step) + mean


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (5, 7, 2), (8, 5), (1, 4), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_queue_of_none_is_the_assignment(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = data(*shape, dtype=dtype)
    labels, mask = torch.arange(shape[0]) % 2, data(*shape, seed=3) > -0.5
    for word in ("within", "across"):
        for options in ({}, {"labels": labels}, {"mask": mask}, {"labels": labels, "mask": mask}):
            for step in (2, 0):  # nothing is remembered
                noise = NoiseQueue(0, word)(x, seed=1, step=step, first_sample=3, **options)
                assert torch.equal(noise, Hungarian(word)(x, seed=1, step=step, first_sample=3, **options))


@pytest.mark.parametrize("batch", range(1, 9))
def test_all_noises_drawn_are_used_or_wait(batch: int) -> None:
    queue, used, drawn = NoiseQueue(10), [], []
    for step, x in batches(30, batch):
        used.append(queue(x, seed=1, step=step))
        drawn.append(gaussian_noise(x, 1, step))
    (lane,) = queue._lanes.values()
    waiting = rows(lane.noise)
    filling = rows(torch.cat([*used, lane.noise]))
    for row in rows(torch.cat(drawn)):
        filling.remove(row)  # raises where a drawn noise is neither used nor waiting
    assert len(filling) == len(waiting) == 10
    assert len(set(rows(torch.cat(used)))) == 30 * batch  # none twice


def test_each_step_is_the_best_choice_among_all_that_wait() -> None:
    queue = NoiseQueue(9, aging=0.0)
    for step, x in batches(6):
        candidates = gaussian_noise(x, 1, step)
        if queue._lanes:
            candidates = torch.cat([candidates, queue._lanes[1, None].noise])
            best = _best_inner_products(x, candidates)
            assert float((x * queue(x, seed=1, step=step)).sum()) == pytest.approx(best, rel=1e-5)
        else:
            queue(x, seed=1, step=step)


def _best_inner_products(x: Tensor, candidates: Tensor) -> float:
    from scipy.optimize import linear_sum_assignment

    gain = (x.double() @ candidates.double().T).numpy()
    return float(gain[linear_sum_assignment(gain, maximize=True)].sum())


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_a_queue_is_nearer_than_the_assignment_of_the_batch_alone(batch: int) -> None:
    queue, alone, near = NoiseQueue(40), 0.0, 0.0
    for step, x in batches(60, batch):
        near += total(x, queue(x, seed=1, step=step))
        alone += total(x, Hungarian()(x, seed=1, step=step))
    assert near < 0.97 * alone


def test_the_noises_used_are_gaussian_over_time() -> None:
    # A pool keeps the best and throws the rest away: its noises are shifted towards the mean of all data. Of a queue
    # only those that wait are missing.
    queue, steps = NoiseQueue(30), 1500
    used = torch.cat([queue(x, seed=1, step=step) for step, x in batches(steps)])
    pool = torch.cat([Hungarian(pool=34)(x, seed=1, step=step) for step, x in batches(steps)])
    unit = torch.full((24,), 1 / math.sqrt(24))
    assert float((pool @ unit).mean()) > 0.5
    # At most the 30 waiting ones, each about 3 long at worst, and the sampling error of 6000 draws.
    assert abs(float((used @ unit).mean())) < 30 * 3 / len(used) + 4 / math.sqrt(len(used))
    assert float(used.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / used.numel()) + 30 * 2 / len(used))
    for column in (0, 11, 23):
        assert kstest(used[:, column].numpy(), "norm").pvalue > 1e-3
    assert kstest((used @ unit).numpy(), "norm").pvalue > 1e-3
    assert kstest((pool @ unit).numpy(), "norm").pvalue < 1e-9


def oldest(queue: NoiseQueue, steps: int) -> int:
    """The longest that a noise waited, in steps."""
    longest = 0
    for step, x in batches(steps, mean=2.0):
        queue(x, seed=1, step=step)
        longest = max(longest, step - int(queue._lanes[1, None].waiting[:, 1].min()))
    return longest


def test_no_noise_starves() -> None:
    # 40 noises wait 10 steps each on average; data with a common mean is the hard case.
    assert oldest(NoiseQueue(40), 400) < 160
    assert oldest(NoiseQueue(40, aging=0.0), 400) > 320


def test_classes_have_queues_of_their_own() -> None:
    queue, used, drawn = NoiseQueue(6), {0: [], 1: []}, {0: [], 1: []}
    for step, x in batches(25):
        labels = (torch.arange(4) + step) % 3 % 2
        noise, plain = queue(x, seed=1, step=step, labels=labels), gaussian_noise(x, 1, step)
        for label in (0, 1):
            used[label].append(noise[labels == label])
            drawn[label].append(plain[labels == label])
    assert set(queue._lanes) == {(1, 0), (1, 1)}
    fillings = []
    for label in (0, 1):
        left = rows(torch.cat([*used[label], queue._lanes[1, label].noise]))
        for row in rows(torch.cat(drawn[label])):
            left.remove(row)
        assert len(left) == 6
        fillings += left
    assert len(set(fillings)) == 12
    across = NoiseQueue(6, "across")
    across(data(4, 3), labels=torch.arange(4))
    assert set(across._lanes) == {(0, None)}


def test_padding_does_not_decide() -> None:
    clean, spoiled = NoiseQueue(8), NoiseQueue(8)
    for step in range(8):
        x = data(4, 5, 3, seed=step)
        mask = (torch.arange(5) < torch.tensor([2, 5, 1, 3]).unsqueeze(1)).unsqueeze(-1)
        noise = clean(x, step=step, mask=mask)
        assert torch.equal(noise, spoiled(torch.where(mask, x, torch.nan), step=step, mask=mask))


def test_ranks_wait_for_different_noises() -> None:
    queues = [NoiseQueue(16) for _ in range(3)]
    used = [queue(data(4, 6), seed=1, step=0, first_sample=4 * rank) for rank, queue in enumerate(queues)]
    everything = [*used, *(queue._lanes[1, None].noise for queue in queues)]
    assert len(set(rows(torch.cat(everything)))) == 3 * 20


# State.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_restored_queue_goes_on_bit_for_bit(dtype: torch.dtype, cut: int) -> None:
    def step_of(queue: Scaled, step: int) -> Tensor:
        x = data(4, 3, 2, seed=step, dtype=dtype)
        parts = [queue(x, seed=seed, step=step, labels=torch.arange(4) % 2) for seed in (1, 5)]
        parts.append(queue(x, seed=1, step=step, first_sample=4))
        return torch.cat(parts)

    whole = Scaled(2.0, WarmUp(2, NoiseQueue(7)))
    expected = [step_of(whole, step) for step in range(10)]
    first = Scaled(2.0, WarmUp(2, NoiseQueue(7)))
    for step in range(cut):
        step_of(first, step)
    state = json.loads(json.dumps(first.state_dict()))
    second = coupling_from_dict(first.to_dict())
    assert second == first
    second.load_state_dict(state)
    assert all(torch.equal(step_of(second, step), expected[step]) for step in range(cut, 10))
    # The first one is not moved by what the second one does.
    assert all(torch.equal(step_of(first, step), expected[step]) for step in range(cut, 10))


def test_the_state_is_identities_only() -> None:
    queue = NoiseQueue(5)
    for step, x in batches(3):
        queue(x, seed=7, step=step)
    state = queue.state_dict()
    assert state["last"] == [[7, 2, 0]]
    (lane,) = state["lanes"]
    assert (lane["seed"], lane["label"], lane["drawn"]) == (7, None, 12)
    assert all(len(noise) == 4 and all(isinstance(value, int) for value in noise) for noise in lane["waiting"])
    queue.reset()
    assert queue.state_dict() == NoiseQueue(5).state_dict()


def test_steps_come_in_order() -> None:
    queue, x = NoiseQueue(5), data(4, 3)
    queue(x, seed=1, step=3, first_sample=4)
    for step, first in ((3, 4), (3, 0), (2, 9)):
        with pytest.raises(
            ValueError,
            match=rf"steps in order, each once: step {step}, first_sample {first} came after step 3, first_sample 4",
        ):
            queue(x, seed=1, step=step, first_sample=first)
    queue(x, seed=1, step=3, first_sample=8)
    queue(x, seed=2, step=0)  # every seed has its own order
    queue.reset()
    queue(x, seed=1, step=0)


def test_large_data_do_not_overflow() -> None:
    x = data(3, 5)
    assert torch.equal(NoiseQueue(4)(x * 2.0**100), NoiseQueue(4)(x))


def test_samples_beyond_the_last_row_of_a_queue() -> None:
    NoiseQueue(8)(data(4, 3), first_sample=2**29 - 1)
    with pytest.raises(ValueError, match="a queue of 8 noises takes first_sample up to 536870911, got 536870912"):
        NoiseQueue(8)(data(4, 3), first_sample=2**29)


def test_a_failed_step_changes_nothing() -> None:
    queue, x = NoiseQueue(5), data(4, 3)
    queue(x, step=0)
    before = queue.state_dict()
    with pytest.raises(ValueError, match="NaN"):
        queue(torch.full((4, 3), torch.nan), step=1)
    assert queue.state_dict() == before
    queue(x, step=1)


def test_given_noise_is_assigned_without_the_queue() -> None:
    queue, x, noise = NoiseQueue(5), data(4, 3), data(9, 3, seed=1)
    assert torch.equal(queue.pair(x, noise), Hungarian().pair(x, noise))
    assert queue.state_dict()["lanes"] == []


def test_samples_may_change_their_shape() -> None:
    queue = NoiseQueue(5)
    for step, length in enumerate((3, 7, 2)):
        x = data(4, length, 2)
        assert queue(x, step=step).shape == x.shape
    wide = queue(data(4, 2, 2, dtype=torch.float64), step=3)
    assert wide.dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: NoiseQueue(-1), ValueError, "size must be at least 0, got -1"),
        (lambda: NoiseQueue(2.0), TypeError, "size must be an int, got float"),
        (lambda: NoiseQueue(2, "both"), ValueError, "labels must be 'within' or 'across', got 'both'"),
        (lambda: NoiseQueue(2, aging=-0.1), ValueError, "aging must be finite and at least 0, got -0.1"),
        (lambda: NoiseQueue(2, aging=1e300), ValueError, "aging must be at most 1e\\+06, got 1e\\+300"),
        (lambda: NoiseQueue(2).load_state_dict(None), ValueError, "the state of a queue is a dict, got NoneType"),
        (
            lambda: NoiseQueue(1).load_state_dict(
                {"size": 1, "last": [], "lanes": [{"seed": 0, "label": None, "drawn": 4, "waiting": [[0, -4, 0, 0]]}]}
            ),
            ValueError,
            r"damaged: waiting holds what no queue writes, from \[0, -4, 0, 0\] to \[0, -4, 0, 0\] of 4 drawn",
        ),
        (lambda: NoiseQueue(2, aging="slow"), TypeError, "aging must be a number, got str"),
        (
            lambda: NoiseQueue(2).load_state_dict({}),
            ValueError,
            r"the state of a queue has \['lanes', 'last', 'size'\]",
        ),
        (
            lambda: NoiseQueue(2).load_state_dict({"size": 3, "last": [], "lanes": []}),
            ValueError,
            "of a queue of size 3, this one has size 2",
        ),
        (
            lambda: NoiseQueue(2).load_state_dict(
                {"size": 2, "last": [], "lanes": [{"seed": 0, "label": None, "drawn": 4, "waiting": [[0, 1, 2, 3]]}]}
            ),
            ValueError,
            r"damaged: waiting must have shape \(2, 4\), got \(1, 4\)",
        ),
        (
            lambda: NoiseQueue(2).load_state_dict({"size": 2, "last": [], "lanes": [{"seed": 0}]}),
            ValueError,
            "the state of the queue is damaged",
        ),
    ],
)
def test_bad_settings_and_states(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_uses_the_same_noises() -> None:
    host, device = NoiseQueue(20), NoiseQueue(20)
    for step, x in batches(20):
        noise = device(x.cuda(), step=step)
        assert noise.is_cuda
        assert torch.allclose(noise.cpu(), host(x, step=step), atol=1e-4)
    assert host.state_dict() == device.state_dict()
