"""Time grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiffaccel.schedule import EDMSchedule, FlowSchedule, Schedule, VPSchedule
from pydiffaccel.solvers.spacing import SPACINGS, custom_sigmas, custom_times, spaced_times

VP = VPSchedule.linear()
FLOW = FlowSchedule()
EDM = EDMSchedule()
ZERO_SNR = VP.rescaled_to_zero_terminal_snr()


def ratios(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    return np.asarray(schedule.sigma(times) / schedule.alpha(times))


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


def test_leading_with_offset_and_drop_last() -> None:
    assert spaced_times(VP, 4, "leading", options={"steps_offset": 1}).tolist() == [751, 501, 251, 1, -1]
    assert spaced_times(VP, 4, "leading", options={"drop_last": True}).tolist() == [800, 600, 400, 200, -1]
    assert spaced_times(VP, 4, "linspace", options={"drop_last": True}).tolist() == [999, 749, 500, 250, -1]
    assert spaced_times(VP, 1, "linspace", options={"drop_last": True}).tolist() == [999, -1]


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras_is_the_published_formula(rho: float) -> None:
    """2206.00364, equation 5."""
    n = 9
    i = np.arange(n)
    sigmas = (80 ** (1 / rho) + i / (n - 1) * (0.002 ** (1 / rho) - 80 ** (1 / rho))) ** rho
    np.testing.assert_allclose(spaced_times(EDM, n, "karras", options={"rho": rho}), [*sigmas, 0], rtol=1e-11)
    low, high = ratios(VP, np.array([0.0, 999.0]))
    expected = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    times = spaced_times(VP, n, "karras", options={"rho": rho})
    np.testing.assert_allclose(ratios(VP, times[:-1]), expected, rtol=1e-9)
    assert (times[0], times[-2], times[-1]) == (999, 0, -1)


def test_levels_between_bounds() -> None:
    options = {"sigma_min": 0.1, "sigma_max": 20.0}
    for spacing in ("karras", "exponential", "log_snr"):
        for schedule in (VP, EDM):
            found = ratios(schedule, spaced_times(schedule, 6, spacing, options=options))
            assert found[[0, -2, -1]] == pytest.approx([20, 0.1, 0])
    np.testing.assert_allclose(
        ratios(EDM, spaced_times(EDM, 4, "exponential", end=0.01)), np.geomspace(80, 0.01, 5), rtol=1e-12
    )
    assert np.array_equal(spaced_times(VP, 7, "exponential"), spaced_times(VP, 7, "log_snr"))


@pytest.mark.parametrize("schedule", [FLOW, ZERO_SNR])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_pure_noise_comes_first(schedule: Schedule, spacing: str) -> None:
    times = spaced_times(schedule, 5, spacing)
    assert times[0] == schedule.noisy_end
    curve = ratios(EDM, spaced_times(EDM, 5, spacing))
    if schedule is FLOW:
        np.testing.assert_allclose(ratios(FLOW, times[1:]), curve[1:], rtol=1e-9)
    assert spaced_times(schedule, 1, spacing).tolist() == [schedule.noisy_end, schedule.clean_end]


def test_quadratic() -> None:
    np.testing.assert_allclose(spaced_times(VP, 4, "quadratic"), [999, 444, 111, 0, -1])
    np.testing.assert_allclose(spaced_times(VP, 3, "quadratic", end=99.0), [999, 499, 199, 99])
    np.testing.assert_allclose(spaced_times(FLOW, 4, "quadratic"), [0, 7 / 16, 3 / 4, 15 / 16, 1])
    np.testing.assert_allclose(spaced_times(EDM, 4, "quadratic"), [80, 45, 20, 5, 0])
    assert spaced_times(VP, 1, "quadratic").tolist() == [999, -1]


def test_user_sigmas() -> None:
    levels = [9.0, 2.0, 0.3]
    for schedule in (VP, FLOW, EDM):
        times = custom_sigmas(schedule, levels)
        np.testing.assert_allclose(ratios(schedule, times), [*levels, 0], rtol=1e-9)
        assert np.array_equal(times, custom_sigmas(schedule, [*levels, 0.0]))
    assert custom_sigmas(FLOW, [np.inf, 1.0]).tolist() == [0, 0.5, 1]
    assert custom_sigmas(EDM, [4.0, 1.0], end=0.5).tolist() == [4, 1, 0.5]
    # The ends of a schedule, as other tools round them to float32.
    ends = np.float32(ratios(VP, np.array([999.0, 0.0]))).tolist()
    assert custom_sigmas(VP, ends).tolist() == [999, 0, -1]


@pytest.mark.parametrize(
    ("sigmas", "end", "sentence"),
    [
        ([], None, r"sigmas must be a non-empty one-dimensional sequence, got shape \(0,\)"),
        ([2.0, -0.1], None, "sigmas must be 0 or positive, got -0.1 at index 1"),
        ([2.0, float("nan")], None, "sigmas must be 0 or positive, got nan at index 1"),
        ([2.0, 3.0], None, "sigmas must fall strictly, got 2 at index 0 and then 3"),
        ([2.0, 2.0], None, "sigmas must fall strictly, got 2 at index 0 and then 2"),
        ([200.0, 2.0], None, r"sigmas must be at most 157.\d+, the schedule's noisy end, got 200"),
        ([2.0, 0.001], None, r"evaluated at t = -0.9\d+, below training index 0"),
        ([2.0, 0.0], 5.0, "sigmas end with 0, the clean end, so end must be left out, got 5"),
        ([0.0], None, "sigmas must hold a level above 0, got only 0"),
    ],
)
def test_bad_user_sigmas(sigmas: list[float], end: float | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        custom_sigmas(VP, sigmas, end)


def test_values_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match="sigmas must be a sequence of numbers"):
        custom_sigmas(VP, ["much"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="timesteps must be a sequence of numbers"):
        custom_times(VP, [[1.0], 2.0])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("spacing", "options", "end", "error", "sentence"),
    [
        ("leading", {"steps_offset": -1}, None, ValueError, "steps_offset must not be negative, got -1"),
        ("leading", {"steps_offset": 0.5}, None, TypeError, "steps_offset must be an int, got float"),
        ("leading", {"steps_offset": 300}, None, ValueError, "time of a vp schedule must lie in"),
        ("linspace", {"drop_last": 1}, None, TypeError, "drop_last must be True or False, got 1"),
        ("karras", {"rho": 0.0}, None, ValueError, "rho must be positive and finite, got 0.0"),
        ("karras", {"rho": "7"}, None, TypeError, "rho must be a number, got str"),
        ("karras", {"sigma_min": -0.1}, None, ValueError, "sigma_min must be positive and finite, got -0.1"),
        ("karras", {"sigma_max": 900.0}, None, ValueError, r"sigma_max must be at most 157.\d+, the schedule's noisy"),
        (
            "karras",
            {"sigma_min": 5.0, "sigma_max": 4.0},
            None,
            ValueError,
            "from more to less noise, got .* from 4 to 5",
        ),
        ("log_snr", {"sigma_min": 0.1}, 20.0, ValueError, "give end or sigma_min, not both, got end 20"),
        ("trailing", {"rho": 7.0}, None, ValueError, "spacing 'trailing' has no option 'rho'"),
    ],
)
def test_bad_spacing_options(spacing: str, options: dict[str, object], end: float, error: Any, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        spaced_times(VP, 4, spacing, end, options)


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
