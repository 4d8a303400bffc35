"""Momentum decay: its schedule, bias correction against a hand-written Adam, other schedulers, resuming."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, LRScheduler, SequentialLR

from pydiffaccel.optim import MomentumDecay

KINDS = [torch.optim.Adam, torch.optim.AdamW]
IMPLEMENTATIONS = [{"foreach": False}, {"foreach": True}, {"fused": True}]
LR, B0, B2, EPS = 0.02, 0.9, 0.99, 1e-8


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


def gradient(step: int, p: Tensor) -> Tensor:
    """Of a quadratic with noise, so that the moments matter."""
    noise = torch.randn(3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return p.detach() * torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64) + noise


def build(kind: type[torch.optim.Optimizer] = torch.optim.Adam, p: Tensor | None = None, **options: Any):
    p = parameter() if p is None else p
    return p, kind([p], **({"lr": LR, "betas": (B0, B2), "eps": EPS} | options))


def train(p: Tensor, optimizer: torch.optim.Optimizer, schedulers: list[LRScheduler], steps: range) -> Tensor:
    for step in steps:
        p.grad = gradient(step, p)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return p.detach().clone()


def reference(
    steps: int, lr: Callable[[int], float], beta1: Callable[[int], float], weight_decay: float, decoupled: bool
) -> Tensor:
    """Adam (1412.6980) with a beta_1 of its own at every step: the first moment is a weighted sum of gradients whose
    weights add up to 1 - prod_j beta_1(j), and is divided by that."""
    p = parameter().detach()
    m, v, product = torch.zeros_like(p), torch.zeros_like(p), 1.0
    for step in range(steps):
        g = gradient(step, p)
        if decoupled:
            p = p - lr(step) * weight_decay * p
        else:
            g = g + weight_decay * p
        b1 = beta1(step)
        product *= b1
        m = b1 * m + (1 - b1) * g
        v = B2 * v + (1 - B2) * g**2
        p = p - lr(step) * (m / (1 - product)) / ((v / (1 - B2 ** (step + 1))).sqrt() + EPS)
    return p


def tau(step: int, total: int, warmup: int = 0) -> float:
    return min(1.0, max(0.0, (step - warmup) / (total - warmup)))


def beta1_at(t: float) -> float:
    return B0 * (1 - t) / (1 - B0 * t)


# The schedule.


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_schedule_is_the_formula(warmup: int, strength: float) -> None:
    p, optimizer = build()
    scheduler = MomentumDecay(optimizer, 20, warmup_steps=warmup, strength=strength)
    group = optimizer.param_groups[0]
    for step in range(25):
        t = strength * tau(step, 20, warmup)
        assert scheduler.tau == pytest.approx(tau(step, 20, warmup))
        assert group["betas"] == (pytest.approx(beta1_at(t), abs=1e-15), B2)
        assert group["lr"] == pytest.approx(LR * (1 - B0 * t), rel=1e-12)
        assert group["lr"] * (1 - group["betas"][0]) == pytest.approx(LR * (1 - B0), rel=1e-12)
        assert scheduler.get_last_lr() == [group["lr"]]
        train(p, optimizer, [scheduler], range(step, step + 1))


def test_beta1_reaches_zero_and_torch_takes_it() -> None:
    for kind in KINDS:
        for options in IMPLEMENTATIONS:
            p, optimizer = build(kind, **options)
            scheduler = MomentumDecay(optimizer, 5)
            train(p, optimizer, [scheduler], range(5))
            assert optimizer.param_groups[0]["betas"][0] == 0.0
            train(p, optimizer, [scheduler], range(5, 8))
            assert bool(torch.isfinite(p).all())
            assert torch.equal(optimizer.state[p]["exp_avg"], gradient(7, p) * 0 + p.grad)


def test_the_control_is_a_linear_decay_of_the_learning_rate() -> None:
    (p, one), (q, other) = build(), build()
    decay, control = MomentumDecay(one, 20), LinearLR(other, 1.0, 1 - B0, 20)
    for step in range(25):
        assert one.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
        train(p, one, [decay], range(step, step + 1))
        train(q, other, [control], range(step, step + 1))
    assert not torch.equal(p, q)


def test_lr_only_is_the_control() -> None:
    results = []
    for make in (
        lambda o: MomentumDecay(o, 20, parts="lr_only"),
        lambda o: LambdaLR(o, lambda step: 1 - B0 * tau(step, 20)),
        lambda o: LinearLR(o, 1.0, 1 - B0, 20),
    ):
        p, optimizer = build(torch.optim.AdamW, weight_decay=0.2)
        results.append((train(p, optimizer, [make(optimizer)], range(30)), optimizer.param_groups[0]))
    (own, group), (closed, its_group), (linear, _) = results
    assert torch.equal(own, closed)
    assert group["lr"] == its_group["lr"]
    assert group["betas"] == (B0, B2)
    # LinearLR multiplies step by step, which rounds.
    assert torch.allclose(own, linear, rtol=1e-12, atol=0)


@pytest.mark.parametrize("parts", ["lr_only", "beta_only"])
@pytest.mark.parametrize("options", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("warmup", [0, 7])
def test_each_part_alone(parts: str, options: dict[str, bool], warmup: int) -> None:
    p, optimizer = build(torch.optim.AdamW, weight_decay=0.2, **options)
    schedulers: list[LRScheduler] = [LambdaLR(optimizer, ramp)] if warmup else []
    schedulers.append(MomentumDecay(optimizer, 25, warmup_steps=warmup, parts=parts))
    result = train(p, optimizer, schedulers, range(40))
    assert optimizer.param_groups[0]["betas"][0] == (B0 if parts == "lr_only" else 0.0)
    expected = reference(
        40,
        lambda i: LR * (ramp(i) if warmup else 1) * (1 - B0 * tau(i, 25, warmup) if parts == "lr_only" else 1),
        lambda i: B0 if parts == "lr_only" else beta1_at(tau(i, 25, warmup)),
        0.2,
        True,
    )
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_groups_have_their_own_beta1() -> None:
    p, q = parameter(), parameter()
    optimizer = torch.optim.Adam([{"params": [p]}, {"params": [q], "betas": (0.5, 0.9), "lr": 0.3}], lr=LR)
    scheduler = MomentumDecay(optimizer, 10)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    first, second = optimizer.param_groups
    assert first["betas"] == (pytest.approx(0.9 * 0.5 / 0.55), 0.999)
    assert second["betas"] == (pytest.approx(0.5 * 0.5 / 0.75), 0.9)
    assert second["lr"] == pytest.approx(0.3 * 0.75)


# Bias correction.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", IMPLEMENTATIONS, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("warmup", [0, 6])
def test_updates_are_those_of_the_reference(
    kind: type[torch.optim.Optimizer], options: dict[str, bool], weight_decay: float, warmup: int
) -> None:
    p, optimizer = build(kind, weight_decay=weight_decay, **options)
    result = train(p, optimizer, [MomentumDecay(optimizer, 25, warmup_steps=warmup)], range(40))
    expected = reference(
        40,
        lambda step: LR * (1 - B0 * tau(step, 25, warmup)),
        lambda step: beta1_at(tau(step, 25, warmup)),
        weight_decay,
        decoupled=kind is torch.optim.AdamW,
    )
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_adams_own_correction_would_be_another() -> None:
    # What the hooks add is far above the tolerance of the comparison with the reference.
    p, optimizer = build()
    scheduler = MomentumDecay(optimizer, 25)
    optimizer._optimizer_step_pre_hooks.clear()
    optimizer._optimizer_step_post_hooks.clear()
    for step in range(40):
        p.grad = gradient(step, p)
        optimizer.step()
        scheduler.step()
    expected = reference(
        40, lambda step: LR * (1 - B0 * tau(step, 25)), lambda step: beta1_at(tau(step, 25)), 0.0, False
    )
    assert (p - expected).abs().max() > 1e-4


def test_a_constant_gradient_gives_unit_updates() -> None:
    # With exact correction the first moment is the gradient itself, whatever beta_1 did: each update is lr sign(g).
    p, optimizer = build(eps=0.0)
    scheduler = MomentumDecay(optimizer, 10)
    for _ in range(15):
        before, lr = p.detach().clone(), scheduler.get_last_lr()[0]
        p.grad = torch.tensor([2.0, -0.1, 30.0], dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        assert torch.allclose(before - p.detach(), lr * p.grad.sign(), rtol=1e-9)


def test_an_optimizer_that_has_trained_already_is_continued() -> None:
    p, optimizer = build()
    train(p, optimizer, [], range(7))
    result = train(p, optimizer, [MomentumDecay(optimizer, 10)], range(7, 20))
    expected = reference(
        20, lambda step: LR * (1 - B0 * tau(step - 7, 10)), lambda step: beta1_at(tau(step - 7, 10)), 0.0, False
    )
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-12)


def test_a_learning_rate_tensor_is_changed_in_place() -> None:
    lr = torch.tensor(LR, dtype=torch.float64)
    p, optimizer = build(torch.optim.AdamW, lr=lr, weight_decay=0.2, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    result = train(p, optimizer, [MomentumDecay(optimizer, 25)], range(40))
    assert optimizer.param_groups[0]["lr"] is held
    expected = reference(
        40, lambda step: LR * (1 - B0 * tau(step, 25)), lambda step: beta1_at(tau(step, 25)), 0.2, True
    )
    assert torch.allclose(result, expected, rtol=1e-10, atol=1e-12)


# Other schedulers.


def ramp(step: int) -> float:
    return min(1.0, (step + 1) / 8)


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


# Resuming.


@pytest.mark.parametrize("order", ["optimizer first", "scheduler first", "optimizer before construction"])
@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("parts", ["both", "lr_only", "beta_only"])
def test_a_resumed_run_continues_bit_for_bit(order: str, warmup: bool, parts: str) -> None:
    def schedulers(optimizer: torch.optim.Optimizer) -> list[LRScheduler]:
        ramps: list[LRScheduler] = [LambdaLR(optimizer, ramp)] if warmup else []
        return [*ramps, MomentumDecay(optimizer, 25, warmup_steps=7 if warmup else 0, parts=parts)]

    p, optimizer = build(torch.optim.AdamW, weight_decay=0.1)
    own = schedulers(optimizer)
    train(p, optimizer, own, range(13))
    saved = copy.deepcopy(optimizer.state_dict())
    decay = json.loads(json.dumps(own[-1].state_dict()))
    others = [scheduler.state_dict() for scheduler in own[:-1]]
    q, resumed = build(torch.optim.AdamW, p=torch.nn.Parameter(p.detach().clone()), weight_decay=0.1)
    if order == "optimizer before construction":
        resumed.load_state_dict(saved)
    again = schedulers(resumed)
    if order == "optimizer first":
        resumed.load_state_dict(saved)
    for scheduler, state in zip(again, [*others, decay], strict=True):
        scheduler.load_state_dict(state)
    if order != "optimizer first":
        resumed.load_state_dict(saved)
    assert again[-1].state_dict() == own[-1].state_dict()
    assert torch.equal(train(p, optimizer, own, range(13, 40)), train(q, resumed, again, range(13, 40)))


def test_states_of_older_runs_are_read() -> None:
    p, optimizer = build()
    scheduler = MomentumDecay(optimizer, 10)
    train(p, optimizer, [scheduler], range(4))
    state = scheduler.state_dict()
    del state["parts"]
    scheduler.load_state_dict(state)
    assert scheduler.parts == "both"


# Sentences.


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda o: MomentumDecay(torch.optim.SGD([parameter()]), 5), TypeError, "needs Adam or AdamW, got SGD"),
        (lambda o: MomentumDecay(None, 5), TypeError, "MomentumDecay needs Adam or AdamW, got NoneType"),
        (lambda o: MomentumDecay(o, 0), ValueError, "total_steps must be at least 1, got 0"),
        (lambda o: MomentumDecay(o, 5.0), TypeError, "total_steps must be an int, got float"),
        (lambda o: MomentumDecay(o, 5, True), TypeError, "warmup_steps must be an int, got bool"),
        (
            lambda o: MomentumDecay(o, 5, 5),
            ValueError,
            r"warmup_steps must lie in \[0, total_steps\) = \[0, 5\), got 5",
        ),
        (lambda o: MomentumDecay(o, 5, -1), ValueError, "warmup_steps must lie in .* got -1"),
        (lambda o: MomentumDecay(o, 5, strength=1.1), ValueError, r"strength must lie in \[0, 1\], got 1.1"),
        (lambda o: MomentumDecay(o, 5, strength=math.nan), ValueError, r"strength must lie in \[0, 1\], got nan"),
        (
            lambda o: MomentumDecay(o, 5, parts="lr"),
            ValueError,
            "parts must be one of both, lr_only, beta_only, got 'lr'",
        ),
        (
            lambda o: MomentumDecay(
                torch.optim.Adam([parameter()], lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.9))), 5
            ),
            TypeError,
            "betas must be floats, got a tensor",
        ),
    ],
)
def test_bad_settings(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(build()[1])
