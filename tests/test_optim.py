"""Momentum decay: its schedule, bias correction against a hand-written Adam, resuming, bad settings."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler

from pydiffaccel.optim import MomentumDecay
from tests.adam import (
    B0,
    B2,
    IMPLEMENTATIONS,
    KINDS,
    LR,
    beta1_at,
    build,
    gradient,
    parameter,
    ramp,
    reference,
    tau,
    train,
)

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
