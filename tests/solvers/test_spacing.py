"""Time grids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiffaccel.schedule import FlowSchedule, Schedule, VPSchedule
from pydiffaccel.solvers.spacing import SPACINGS, custom_times, spaced_times

VP = VPSchedule.linear()
FLOW = FlowSchedule()


@pytest.mark.parametrize(
    ("spacing", "times"),
    [
        ("trailing", [999, 799, 599, 399, 199, -1]),
        ("leading", [800, 600, 400, 200, 0, -1]),
        ("linspace", [999, 749, 500, 250, 0, -1]),
        ("uniform", [999, 799, 599, 399, 199, -1]),
    ],
)
def test_five_steps(spacing: str, times: list[float]) -> None:
    np.testing.assert_allclose(spaced_times(VP, 5, spacing), times, atol=1e-10)


@pytest.mark.parametrize("num_steps", [2, 5, 10, 25, 50, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_diffusers_has_the_same_timesteps(spacing: str, num_steps: int) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    theirs = schedulers.DDIMScheduler(1000, timestep_spacing=spacing)
    theirs.set_timesteps(num_steps)
    assert spaced_times(VP, num_steps, spacing)[:-1].tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("end", [None, 0.0, 33.3])
def test_log_snr_steps_are_equal(end: float | None) -> None:
    times = spaced_times(VP, 12, "log_snr", end)
    assert times[0] == 999
    assert times[-1] == (-1 if end is None else end)
    steps = np.diff(VP.log_snr(times[:-1] if end is None else times))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    assert len(times) == 13
    if end is None:
        assert times[-2] == 0


def test_flow_is_uniform() -> None:
    np.testing.assert_allclose(spaced_times(FLOW, 4, "uniform"), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(spaced_times(FLOW, 2, "uniform", 0.5), [0, 0.25, 0.5])


@given(
    st.integers(1, 60).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))),
    st.sampled_from(sorted(SPACINGS)),
)
def test_every_grid_is_strict_and_complete(sizes: tuple[int, int], spacing: str) -> None:
    total, num_steps = sizes
    schedule = VPSchedule.linear(total)
    if spacing in ("log_snr", "exponential", "karras", "quadratic") and total == 1:
        return
    times = spaced_times(schedule, num_steps, spacing)
    assert len(times) == num_steps + 1
    assert (np.diff(times) < 0).all()
    assert times[-1] == -1
    assert times[0] == total - 1 or spacing == "leading"
    assert (times[:-1] >= 0).all()


def test_one_step_starts_in_the_noise() -> None:
    for spacing in ("trailing", "linspace", "log_snr", "uniform"):
        assert spaced_times(VP, 1, spacing).tolist() == [999, -1]


def test_custom_times() -> None:
    assert custom_times(VP, [900, 450.5, 3]).tolist() == [900, 450.5, 3, -1]
    assert custom_times(FLOW, [0, 0.1, 0.6], end=0.7).tolist() == [0, 0.1, 0.6, 0.7]


@pytest.mark.parametrize(
    ("schedule", "times", "sentence"),
    [
        (VP, [], r"timesteps must be a non-empty one-dimensional sequence, got shape \(0,\)"),
        (VP, [[1.0]], "timesteps must be a non-empty one-dimensional sequence"),
        (VP, [3, 900], r"run strictly from the noisy end \(999\) towards the clean end \(-1\), got 3 and then 900"),
        (VP, [900, 900], "got 900 and then 900"),
        (VP, [1000], "time of a vp schedule must lie in"),
        (VP, [5, -0.5], "the model would be evaluated at t = -0.5, below training index 0"),
        (FLOW, [0.5, 0.25], "got 0.5 and then 0.25"),
        (FLOW, [0.5, 1.0], "got 1 and then 1"),
        (VP, [float("nan")], "got nan"),
    ],
)
def test_bad_custom_times(schedule: Schedule, times: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        custom_times(schedule, times)


def test_bad_spacings() -> None:
    with pytest.raises(
        ValueError,
        match="unknown spacing 'karst'; known: trailing, leading, linspace, log_snr, exponential, karras, quad",
    ):
        spaced_times(VP, 4, "karst")
    with pytest.raises(ValueError, match="spacing 'trailing' needs a discrete vp schedule, got flow"):
        spaced_times(FLOW, 4, "trailing")
    with pytest.raises(ValueError, match="at most one step per training index, got 1001 steps for 1000 indices"):
        spaced_times(VP, 1001, "leading")
    with pytest.raises(ValueError, match="below training index 0"):
        spaced_times(VP, 1001, "uniform")
    with pytest.raises(ValueError, match="towards the clean end"):
        spaced_times(VP, 10, "trailing", end=500.0)
