"""The curriculum over training times: its distribution, its draws and its weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, norm
from torch import Tensor

from pydiffaccel.curriculum import TimestepCurriculum


def variation(p: Tensor) -> float:
    """Total variation to the uniform distribution."""
    return float((p - 1 / len(p)).abs().sum() / 2)


@settings(deadline=None, max_examples=60)
@given(
    num=st.integers(1, 300),
    total=st.integers(1, 50),
    mu=st.floats(-0.5, 1.5),
    width=st.floats(0.005, 3),
    most=st.floats(0, 1),
)
def test_probabilities_are_a_distribution_that_moves_one_way(
    num: int, total: int, mu: float, width: float, most: float
) -> None:
    curriculum = TimestepCurriculum(num, total, mu=mu, width=width, max_weight=most)
    last = 0.0
    for step in range(0, total + 3, max(1, total // 7)):
        p = curriculum.probabilities(step)
        assert p.dtype == torch.float64
        assert p.shape == (num,)
        assert bool((p >= 0).all())
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        assert variation(p) >= last - 1e-12
        last = variation(p)
    assert torch.equal(curriculum.probabilities(total), curriculum.probabilities(total + 100))


def test_probabilities_are_the_formula() -> None:
    curriculum = TimestepCurriculum(100, 50, mu=0.3, width=0.2, max_weight=0.8)
    t = torch.arange(100, dtype=torch.float64)
    g = torch.from_numpy(norm.pdf(t.numpy(), loc=30, scale=20))
    g /= g.sum()
    for step, w in ((0, 0.0), (25, 0.4), (50, 0.8), (999, 0.8)):
        assert curriculum.mixing(step) == pytest.approx(w)
        assert torch.allclose(curriculum.probabilities(step), (1 - w) / 100 + w * g, rtol=1e-12)
    assert curriculum.probabilities(50).argmax() == 30


def test_at_full_weight_the_mass_is_not_on_one_index() -> None:
    # A published re-implementation multiplies by T^2 where it should divide.
    p = TimestepCurriculum(1000, 10).probabilities(10)
    assert p.max() < 2 / 1000
    assert (p > 1e-5).all()


@pytest.mark.parametrize("step", [0, 3, 10])
def test_draws_follow_the_probabilities(step: int) -> None:
    curriculum = TimestepCurriculum(25, 10, mu=0.4, width=0.15)
    t = curriculum.sample(step, 40_000, seed=1)
    assert t.dtype == torch.int64
    assert t.shape == (40_000,)
    expected = 40_000 * curriculum.probabilities(step)
    assert chisquare(t.bincount(minlength=25).numpy(), expected.numpy()).pvalue > 1e-3


def test_narrow_gaussians_stay_inside_the_range() -> None:
    for mu in (-0.2, 0.0, 1.0, 1.2):
        t = TimestepCurriculum(50, 1, mu=mu, width=0.001).sample(1, 1000, seed=3)
        assert bool((t == (0 if mu < 0.5 else 49)).all())
    assert bool((TimestepCurriculum(1, 1).sample(1, 100) == 0).all())


def test_a_draw_is_a_function_of_seed_step_and_sample() -> None:
    curriculum, state = TimestepCurriculum(500, 10), torch.get_rng_state()
    whole = curriculum.sample(6, 30, seed=2, first_sample=100)
    parts = [curriculum.sample(6, n, seed=2, first_sample=100 + a) for a, n in ((0, 13), (13, 17))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(whole, curriculum.sample(6, 30, seed=3, first_sample=100))
    assert curriculum.sample(6, 0).shape == (0,)


def test_importance_weights_restore_the_uniform_mean() -> None:
    curriculum = TimestepCurriculum(40, 10, width=0.3, importance=True)
    values = torch.linspace(0, 3, 40, dtype=torch.float64).square()
    every = torch.arange(40)
    for step in (0, 4, 10):
        p, w = curriculum.probabilities(step), curriculum.weights(step, every)
        assert w.dtype == torch.float32
        assert (p * w * values).sum().item() == pytest.approx(values.mean().item(), rel=1e-6)
    t = torch.tensor([[3, 3], [39, 0]])
    assert torch.equal(curriculum.weights(7, t), curriculum.weights(7, every)[t])
    # And on draws: the weighted mean is the uniform one, the plain mean is not.
    drawn = curriculum.sample(10, 50_000, seed=5)
    weighted = curriculum.weights(10, drawn) * values[drawn]
    assert abs(weighted.mean() - values.mean()) < 4 * weighted.std() / math.sqrt(50_000)
    assert abs(values[drawn].mean() - values.mean()) > 0.2


def test_without_importance_all_weights_are_one() -> None:
    t = torch.tensor([0, 5, 39])
    assert torch.equal(TimestepCurriculum(40, 10).weights(10, t), torch.ones(3))
    assert torch.equal(TimestepCurriculum(40, 10, importance=True).weights(0, t), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: TimestepCurriculum(0, 1), ValueError, "num_train_timesteps must be at least 1, got 0"),
        (lambda: TimestepCurriculum(1.0, 1), TypeError, "num_train_timesteps must be an int, got float"),
        (lambda: TimestepCurriculum(10, 0), ValueError, "total_steps must be at least 1, got 0"),
        (lambda: TimestepCurriculum(10, 1, mu=math.inf), ValueError, "mu must be finite, got inf"),
        (lambda: TimestepCurriculum(10, 1, width=0.0), ValueError, "width must be positive and finite, got 0.0"),
        (lambda: TimestepCurriculum(10, 1, max_weight=1.5), ValueError, r"max_weight must lie in \[0, 1\], got 1.5"),
        (lambda: TimestepCurriculum(10, 1).sample(-1, 2), ValueError, "step must be at least 0, got -1"),
        (lambda: TimestepCurriculum(10, 1).probabilities(-1), ValueError, "step must be at least 0, got -1"),
        (lambda: TimestepCurriculum(10, 1).weights(0, torch.ones(2)), TypeError, "t must hold integer indices, got"),
    ],
)
def test_bad_input(call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
