"""Momentum decay beside other schedulers, steps that are left out, groups that come later."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, LRScheduler, SequentialLR

from pydiffaccel.optim import MomentumDecay
from tests.adam import B0, B2, LR, beta1_at, build, gradient, parameter, ramp, reference, tau, train

# Other schedulers.


def overwriting(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    return [LambdaLR(optimizer, ramp), MomentumDecay(optimizer, 25, warmup_steps=7)]


def multiplying(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    return [LinearLR(optimizer, 1 / 8, 1.0, 7), MomentumDecay(optimizer, 25, warmup_steps=7)]


def multiplying_after(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    return multiplying(optimizer)[::-1]


def chained(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    return [ChainedScheduler(multiplying(optimizer), optimizer)]


def sequential(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
    warmup = LinearLR(optimizer, 1 / 8, 1.0, 7)
    return [SequentialLR(optimizer, [warmup, MomentumDecay(optimizer, 18)], [7])]


@pytest.mark.parametrize("compose", [overwriting, multiplying, multiplying_after, chained, sequential])
def test_warm_ups_compose(compose: Callable[[torch.optim.Optimizer], list[LRScheduler]]) -> None:
    p, optimizer = build(torch.optim.AdamW, weight_decay=0.1)
    schedulers = compose(optimizer)
    result = train(p, optimizer, schedulers, range(40))
    expected = reference(
        40,
        lambda step: LR * ramp(step) * (1 - B0 * tau(step, 25, 7)),
        lambda step: beta1_at(tau(step, 25, 7)),
        0.1,
        True,
    )
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_a_learning_rate_set_by_hand_is_kept() -> None:
    p, optimizer = build()
    scheduler = MomentumDecay(optimizer, 10)
    for step in range(6):
        p.grad = gradient(step, p)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.5 / (step + 1)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 / (step + 1) * (1 - B0 * tau(step + 1, 10)))


def test_between_the_steps_the_learning_rate_is_that_of_the_others() -> None:
    p, optimizer = build()
    scheduler = MomentumDecay(optimizer, 300)
    for step in range(300):
        p.grad = gradient(step, p)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == LR  # exactly: nothing is lost over the steps
        scheduler.step()


@pytest.mark.parametrize("compose", [overwriting, multiplying])
def test_optimizer_steps_may_be_left_out(compose: Callable[[torch.optim.Optimizer], list[LRScheduler]]) -> None:
    # As a gradient scaler does on overflow: the schedulers go on, Adam's state and its bias correction do not.
    p, optimizer = build(torch.optim.AdamW, weight_decay=0.1)
    schedulers = compose(optimizer)
    skipped, taken = {3, 12, 13, 20, 24, 30}, []
    for step in range(40):
        expected = LR * ramp(step) * (1 - B0 * tau(step, 25, 7))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-12)
        if step not in skipped:
            p.grad = gradient(len(taken), p)
            optimizer.step()
            taken.append(step)
        for scheduler in schedulers:
            scheduler.step()
    expected = reference(
        len(taken),
        lambda n: LR * ramp(taken[n]) * (1 - B0 * tau(taken[n], 25, 7)),
        lambda n: beta1_at(tau(taken[n], 25, 7)),
        0.1,
        True,
    )
    assert torch.allclose(p, expected, rtol=1e-10, atol=1e-12)


def test_a_dropped_scheduler_corrects_nothing() -> None:
    (p, one), (q, other) = build(), build()
    scheduler = MomentumDecay(one, 10)
    train(p, one, [scheduler], range(4))
    del scheduler
    group = one.param_groups[0]
    group["betas"], group["lr"] = (B0, B2), LR
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    with torch.no_grad():
        q.copy_(p)
    assert torch.equal(train(p, one, [], range(4, 9)), train(q, other, [], range(4, 9)))


def test_a_step_that_raises_leaves_nothing_behind() -> None:
    def closure() -> float:
        raise RuntimeError("out of memory")

    results = []
    for failures in (0, 2):
        p, optimizer = build(torch.optim.AdamW, weight_decay=0.3)
        scheduler = MomentumDecay(optimizer, 10)
        train(p, optimizer, [scheduler], range(4))
        for _ in range(failures):
            with pytest.raises(RuntimeError, match="out of memory"):
                optimizer.step(closure)
        results.append(train(p, optimizer, [scheduler], range(4, 12)))
        assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert torch.equal(*results)


def test_a_group_added_later_is_taken_in() -> None:
    p, optimizer = build()
    scheduler = MomentumDecay(optimizer, 10)
    train(p, optimizer, [scheduler], range(4))
    q = parameter()
    optimizer.add_param_group({"params": [q], "lr": 0.1})
    before = q.detach().clone()
    q.grad = torch.ones_like(q)
    train(p, optimizer, [scheduler], range(4, 5))
    assert torch.allclose(before - q.detach(), torch.full_like(q, 0.1), rtol=1e-6)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * (1 - B0 * 0.5))
