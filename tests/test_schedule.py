"""Noise schedules: exact tables, inverse of the log-SNR, ends, descriptions and refusals."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydiffaccel.schedule import (
    EDMSchedule,
    FlowSchedule,
    Schedule,
    VPSchedule,
    schedule_from_dict,
)
from tests.schedules import CONTINUOUS, TRUNCATED, VP

ZERO_SNR = VPSchedule.scaled_linear().rescaled_to_zero_terminal_snr()
ALL: dict[str, Schedule] = {
    **VP,
    **CONTINUOUS,
    **TRUNCATED,
    "zero_snr": ZERO_SNR,
    "flow": FlowSchedule(),
    "edm": EDMSchedule(),
}
every_schedule = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)
every_vp = pytest.mark.parametrize("schedule", VP.values(), ids=VP)


@every_vp
def test_indices_get_the_square_roots_of_the_given_values(schedule: VPSchedule) -> None:
    index = np.arange(1000)
    assert np.array_equal(schedule.alpha(index), np.sqrt(schedule.alphas_cumprod))
    assert np.array_equal(schedule.sigma(index), np.sqrt(1 - schedule.alphas_cumprod))


@every_schedule
def test_clean_end_is_the_data_exactly(schedule: Schedule) -> None:
    assert schedule.alpha(schedule.clean_end) == 1
    assert schedule.sigma(schedule.clean_end) == 0
    assert schedule.log_snr(schedule.clean_end) == np.inf
    assert schedule.time_of_log_snr(np.inf) == schedule.clean_end


@every_vp
def test_variance_is_preserved_between_indices(schedule: VPSchedule) -> None:
    t = np.linspace(-1, 999, 7777)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-14)


@every_vp
def test_log_alphabar_is_linear_between_indices(schedule: VPSchedule) -> None:
    log_bar = np.log(schedule.alphas_cumprod)
    between = 0.25 * log_bar[:-1] + 0.75 * log_bar[1:]
    np.testing.assert_allclose(2 * np.log(schedule.alpha(np.arange(999) + 0.75)), between, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(2 * np.log(schedule.alpha(-0.5)), 0.5 * log_bar[0], rtol=1e-9)
    np.testing.assert_allclose(schedule.log_alphas_cumprod([0.0, 998.5]), [log_bar[0], log_bar[998:].mean()])


@every_schedule
def test_log_snr_is_the_log_ratio_and_falls_with_the_noise(schedule: Schedule) -> None:
    t = np.linspace(schedule.noisy_end, schedule.clean_end, 3001)[1:-1]
    lam = schedule.log_snr(t)
    np.testing.assert_allclose(lam, np.log(schedule.alpha(t) / schedule.sigma(t)), rtol=1e-9, atol=1e-12)
    assert (np.diff(lam) > 0).all()


@every_schedule
def test_time_of_log_snr_inverts_log_snr(schedule: Schedule) -> None:
    t = np.linspace(schedule.noisy_end, schedule.clean_end, 4001)
    np.testing.assert_allclose(schedule.time_of_log_snr(schedule.log_snr(t)), t, atol=1e-11)


@given(st.floats(-1, 999))
def test_time_of_log_snr_inverts_log_snr_at_any_time(t: float) -> None:
    # Close to the clean end alphabar itself resolves 1e-16, which is 1e-12 of an index.
    schedule = VP["linear"]
    assert abs(schedule.time_of_log_snr(schedule.log_snr(t)) - t) < 1e-10


@given(st.floats(-30, 30))
def test_log_snr_inverts_time_of_log_snr_for_flow(log_snr: float) -> None:
    schedule = FlowSchedule()
    # 1 - t has an absolute error of 1e-16, so lambda has one of 1e-16 exp(lambda).
    assert abs(schedule.log_snr(schedule.time_of_log_snr(log_snr)) - log_snr) < 1e-13 + 1e-15 * np.exp(log_snr)


def test_zero_terminal_snr_is_the_published_algorithm() -> None:
    root = np.sqrt(VPSchedule.scaled_linear().alphas_cumprod)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(ZERO_SNR.alpha(np.arange(1000)), expected, rtol=1e-12, atol=1e-15)
    assert (ZERO_SNR.alpha(999), ZERO_SNR.sigma(999), ZERO_SNR.log_snr(999)) == (0, 1, -np.inf)
    assert ZERO_SNR.alphas_cumprod[0] == VPSchedule.scaled_linear().alphas_cumprod[0]
    # alpha is linear over the last interval, where log alphabar has no other end.
    np.testing.assert_allclose(ZERO_SNR.alpha([998.25, 998.999]), ZERO_SNR.alpha(998) * np.array([0.75, 0.001]))
    assert ZERO_SNR.time_of_log_snr(-np.inf) == 999
    assert ZERO_SNR.betas[-1] == 1
    np.testing.assert_allclose(VPSchedule.from_betas(ZERO_SNR.betas).alphas_cumprod, ZERO_SNR.alphas_cumprod)
    with pytest.raises(ValueError, match="zero terminal SNR needs at least 2 training steps, got 1"):
        VPSchedule([0.5]).rescaled_to_zero_terminal_snr()


def test_diffusers_rescales_to_the_same_zero_terminal_snr() -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    theirs = schedulers.DDIMScheduler(
        1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    np.testing.assert_allclose(ZERO_SNR.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-7)


def test_flow_is_a_straight_path() -> None:
    t = np.linspace(0, 1, 11)
    schedule = FlowSchedule()
    assert np.array_equal(schedule.alpha(t), t)
    assert np.array_equal(schedule.sigma(t), 1 - t)
    assert schedule.log_snr(0.0) == -np.inf
    assert schedule.time_of_log_snr(-np.inf) == 0
    assert schedule.log_snr(0.5) == 0


@every_schedule
def test_no_warning_at_the_ends(schedule: Schedule) -> None:
    ends = np.array([schedule.noisy_end, schedule.clean_end])
    with np.errstate(all="raise"):
        schedule.time_of_log_snr(schedule.log_snr(ends))


@every_schedule
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 3)])
def test_shapes_and_dtype(schedule: Schedule, shape: tuple[int, ...]) -> None:
    t = np.full(shape, 0.5, dtype=np.float32)
    for result in (schedule.alpha(t), schedule.sigma(t), schedule.log_snr(t), schedule.unit_time(t)):
        assert isinstance(result, np.ndarray)
        assert result.shape == shape
        assert result.dtype == np.float64
    assert schedule.time_of_log_snr(schedule.log_snr(t)).shape == shape


def test_unit_time() -> None:
    np.testing.assert_allclose(VP["linear"].unit_time([-1, 0, 499, 999]), [0, 0.001, 0.5, 1])
    np.testing.assert_allclose(FlowSchedule().unit_time([0, 0.3, 1]), [0, 0.3, 1])


def test_betas_give_back_what_they_were() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule = VPSchedule.from_betas(betas)
    assert schedule == VPSchedule.linear()
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-10)
    assert schedule.num_train_timesteps == 1000
    assert (schedule.noisy_end, schedule.clean_end) == (999, -1)


def test_cosine_follows_its_formula() -> None:
    def bar(u: float) -> float:
        return float(np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2)

    schedule = VPSchedule.cosine(50)
    np.testing.assert_allclose(
        schedule.alphas_cumprod[:40], [bar((i + 1) / 50) / bar(0) for i in range(40)], rtol=1e-12
    )
    assert schedule.betas.max() == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("linear", VPSchedule.linear(1000, 1e-4, 0.02)),
        ("scaled_linear", VPSchedule.scaled_linear(1000, 0.00085, 0.012)),
        ("squaredcos_cap_v2", VPSchedule.cosine(1000)),
    ],
)
def test_diffusers_has_the_same_noise_levels(name: str, schedule: VPSchedule) -> None:
    schedulers = pytest.importorskip("diffusers.schedulers")
    start, end = (1e-4, 0.02) if name == "linear" else (0.00085, 0.012)
    theirs = schedulers.DDPMScheduler(1000, beta_schedule=name, beta_start=start, beta_end=end)
    np.testing.assert_allclose(schedule.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-5)


@every_schedule
def test_description_gives_the_same_schedule(schedule: Schedule) -> None:
    again = schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    for twin in (again, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        t = np.linspace(schedule.noisy_end, schedule.clean_end, 101)
        assert np.array_equal(twin.log_snr(t), schedule.log_snr(t))


def test_schedules_differ_by_content() -> None:
    assert VP["linear"] != VP["cosine"]
    assert VP["linear"] != FlowSchedule()
    assert FlowSchedule() == FlowSchedule()
    assert len({VPSchedule.linear(), VPSchedule.linear(), FlowSchedule()}) == 2


def test_immutable() -> None:
    values = np.array([0.9, 0.5])
    schedule = VPSchedule(values)
    values[0] = 0.1  # the caller's array is not the schedule's
    assert schedule.alphas_cumprod.tolist() == [0.9, 0.5]
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 0.1
    with pytest.raises(ValueError, match="read-only"):
        pickle.loads(pickle.dumps(schedule)).alphas_cumprod[0] = 0.1
    with pytest.raises(FrozenInstanceError):
        schedule.alphas_cumprod = values  # type: ignore[misc]


def test_one_training_step_and_a_noiseless_index() -> None:
    single = VPSchedule([0.5])
    assert (single.noisy_end, single.num_train_timesteps) == (0, 1)
    assert single.time_of_log_snr(0.0) == pytest.approx(0)
    noiseless = VPSchedule([1.0, 0.5])
    assert noiseless.sigma(0) == 0
    assert noiseless.log_snr(0) == np.inf


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([], "alphas_cumprod must not be empty"),
        ([[0.5]], r"alphas_cumprod must be one-dimensional, got shape \(1, 1\)"),
        ([0.9, np.nan], "alphas_cumprod must be finite, got nan at index 1"),
        ([0.9, -np.inf], "alphas_cumprod must be finite, got -inf at index 1"),
        ([0.9, -0.1], r"alphas_cumprod must lie in \[0, 1\], got -0.1 at index 1"),
        ([1.5, 0.5], r"alphas_cumprod must lie in \[0, 1\], got 1.5 at index 0"),
        ([0.9, 0.0, 0.0], "alphas_cumprod must be strictly decreasing, got 0.0 at index 1 and then 0.0"),
        ([0.9, 0.5, 0.5], "alphas_cumprod must be strictly decreasing, got 0.5 at index 1 and then 0.5"),
    ],
)
def test_bad_alphas_cumprod(values: list[float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        VPSchedule(values)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [["a"], [None], [[0.5], [0.5, 0.4]]])
def test_alphas_cumprod_that_are_no_numbers(values: list[object]) -> None:
    with pytest.raises((TypeError, ValueError), match="alphas_cumprod must"):
        VPSchedule(values)  # type: ignore[arg-type]


@pytest.mark.parametrize("betas", [[0.1, 0.0], [1.0, 0.1], [0.1, 1.1], [-0.1]])
def test_bad_betas(betas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"betas must lie in \(0, 1\), got"):
        VPSchedule.from_betas(betas)


def test_bad_counts() -> None:
    with pytest.raises(ValueError, match="num_train_timesteps must be at least 1, got 0"):
        VPSchedule.linear(0)
    with pytest.raises(TypeError, match="num_train_timesteps must be an int, got float"):
        VPSchedule.cosine(10.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta_start must be positive, got -1"):
        VPSchedule.scaled_linear(10, beta_start=-1)


@every_schedule
def test_times_outside_are_refused_and_rounding_is_not(schedule: Schedule) -> None:
    beyond = schedule.noisy_end + (schedule.noisy_end - schedule.clean_end)
    for t in (beyond, np.nan, [schedule.clean_end, beyond]):
        with pytest.raises(ValueError, match=f"time of a {schedule.name} schedule must lie in"):
            schedule.alpha(t)
    away = 1e-12 if schedule.clean_end > schedule.noisy_end else -1e-12
    assert schedule.alpha(schedule.clean_end + away) == 1
    with pytest.raises(TypeError, match="must be numbers"):
        schedule.alpha("noon")  # type: ignore[arg-type]


def test_edm_adds_noise_to_the_data_as_it_is() -> None:
    schedule = EDMSchedule(3.0)
    assert (schedule.noisy_end, schedule.clean_end) == (3, 0)
    np.testing.assert_array_equal(schedule.alpha([0, 1, 3]), [1, 1, 1])
    np.testing.assert_array_equal(schedule.sigma([0, 1, 3]), [0, 1, 3])
    np.testing.assert_allclose(schedule.log_snr([1, 2]), [0, -np.log(2)])
    for value, error, sentence in (
        (0.0, ValueError, "sigma_max must be positive and finite, got 0.0"),
        (np.inf, ValueError, "sigma_max must be positive and finite, got inf"),
        ("80", TypeError, "sigma_max must be a number, got str"),
    ):
        with pytest.raises(error, match=sentence):
            EDMSchedule(value)


def test_log_snr_out_of_reach() -> None:
    with pytest.raises(ValueError, match=r"log_snr of this edm schedule must lie in"):
        EDMSchedule().time_of_log_snr(-4.5)
    with pytest.raises(ValueError, match=r"log_snr of this vp schedule must lie in \[-5.05884, inf\], got -6.0"):
        VP["linear"].time_of_log_snr([0.0, -6.0])
    with pytest.raises(ValueError, match="got nan"):
        FlowSchedule().time_of_log_snr(np.nan)


@pytest.mark.parametrize(
    ("d", "sentence"),
    [
        ({"name": "sine"}, "unknown schedule 'sine'; known: continuous_vp, edm, flow, truncated_vp, vp"),
        ({}, "unknown schedule None"),
        ({"name": ["vp"]}, r"unknown schedule \['vp'\]"),
        ({"name": "vp"}, r"a vp schedule has the fields \['alphas_cumprod'\], got \[\]"),
        (
            {"name": "continuous_vp", "shape": "square"},
            "unknown shape 'square' of a continuous_vp schedule",
        ),
        (
            {"name": "continuous_vp", "shape": "constant"},
            "a constant continuous_vp schedule has the fields",
        ),
        (
            {"name": "truncated_vp", "base": {"name": "flow"}, "num_terms": 2, "basis": "kl", "num_intervals": 1000},
            "the base of a truncated_vp schedule must be a vp schedule, got flow",
        ),
        ({"name": "flow", "shift": 3}, r"a flow schedule has the fields \[\], got \['shift'\]"),
    ],
)
def test_bad_descriptions(d: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        schedule_from_dict(d)


def test_description_must_be_a_dict() -> None:
    with pytest.raises(TypeError, match="a schedule is described by a dict, got str"):
        schedule_from_dict("vp")  # type: ignore[arg-type]
