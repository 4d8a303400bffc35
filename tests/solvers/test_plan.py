"""The table: construction checks, immutability, JSON, and tables of other families written by hand."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pydiffaccel.schedule import FlowSchedule, VPSchedule
from pydiffaccel.solvers import Evaluation, Plan, Point, Update, integrate, load_plan, make_plan
from pydiffaccel.solvers.point import output_parts, points_at

VP = VPSchedule.linear(100)
FLOW = FlowSchedule()
PLANS = {
    "ddim": make_plan("ddim", VP, 7),
    "ddim eta": make_plan("ddim", VP, 7, eta=0.5),
    "dpm_solver++": make_plan("dpm_solver++", VP, 7),
    "euler": make_plan("euler", FLOW, 7),
}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def heun(num_steps: int) -> Plan:
    """Heun's method on flow paths: a predictor, and a corrector that starts from the state before it."""
    h = 0.9 / num_steps  # short of the data, where this exact model would be 0 / 0
    points = points_at(FLOW, [i * h for i in range(num_steps + 1)])
    rows = []
    for i in range(num_steps):
        here, after = points[i], points[i + 1]
        rows.append(Evaluation(here, "flow", (Update(after, base=2 * i, a=1.0, b=(h,)),)))
        rows.append(Evaluation(after, "flow", (Update(after, base=2 * i, a=1.0, b=(h / 2, h / 2)),)))
    return Plan("heun", FLOW, num_steps, points[0], tuple(rows))


def predictor_corrector(num_steps: int) -> Plan:
    """Predict with two outputs, evaluate, correct with the trapezoid, predict on: one evaluation a step (as UniPC)."""
    points = points_at(FLOW, [i / num_steps for i in range(num_steps + 1)])
    h = 1 / num_steps
    rows = [Evaluation(points[0], "flow", (Update(points[1], base=0, a=1.0, b=(h,)),))]
    corrected = 0
    for i in range(1, num_steps):
        correct = Update(points[i], base=corrected, a=1.0, b=(h / 2, h / 2))
        corrected = 2 * i
        predict = Update(points[i + 1], base=corrected, a=1.0, b=(1.5 * h, -0.5 * h))
        rows.append(Evaluation(points[i], "flow", (correct, predict)))
    return Plan("predictor-corrector", FLOW, num_steps, points[0], tuple(rows))


@every_plan
def test_plan_survives_json_bit_for_bit(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.save(path)
    again = load_plan(path)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.metadata == plan.metadata
    assert again.to_dict() == plan.to_dict() == json.loads(path.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


@every_plan
def test_copies_are_equal(plan: Plan) -> None:
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert copy.deepcopy(plan) == plan


@settings(max_examples=50)
@given(
    a=st.floats(allow_nan=False, allow_infinity=False),
    b=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=1),
    noise=st.floats(min_value=0, allow_infinity=False),
)
def test_any_coefficient_survives_json(a: float, b: list[float], noise: float) -> None:
    start, end = points_at(FLOW, [0.0, 0.3])
    row = Evaluation(start, "flow", (Update(end, base=0, a=a, b=tuple(b), noise=noise),))
    plan = Plan("mine", FLOW, 1, start, (row,))
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    update = again.evaluations[0].updates[0]
    assert [v.hex() for v in (update.a, *update.b, update.noise)] == [v.hex() for v in (a, *b, noise)]


def test_file_says_what_it_is(tmp_path: Path) -> None:
    d = PLANS["dpm_solver++"].to_dict()
    assert (d["format"], d["version"], d["solver"], d["num_steps"], d["nfe"]) == (
        "pydiffaccel.plan",
        1,
        "dpm_solver++",
        7,
        7,
    )
    metadata = PLANS["ddim eta"].to_dict()["metadata"]
    assert metadata == {"order": 1, "spacing": "trailing", "spacing_options": {}, "options": {"eta": 0.5}}


@every_plan
@pytest.mark.parametrize(
    "path",
    [
        ("evaluations", 2, "updates", 0, "a"),
        ("evaluations", 2, "updates", 0, "b", 0),
        ("evaluations", 1, "point", "t"),
        ("start", "alpha"),
        ("num_steps",),
        ("solver",),
        ("metadata", "order"),
        ("nfe",),
    ],
)
def test_tampered_plans_are_refused(plan: Plan, path: tuple[Any, ...], tmp_path: Path) -> None:
    d = plan.to_dict()
    inner = d
    for key in path[:-1]:
        inner = inner[key]
    value = inner[path[-1]]
    inner[path[-1]] = value + "x" if isinstance(value, str) else value + 1
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(d))
    with pytest.raises(ValueError, match=r"plan\.json: the plan was changed after it was saved: checksum 'sha256:"):
        load_plan(file)


@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.5])
def test_unknown_versions_are_refused(version: Any) -> None:
    with pytest.raises(ValueError, match=r"plan version .* is unknown; this release reads version 1"):
        Plan.from_dict({**PLANS["ddim"].to_dict(), "version": version})


def resealed(d: dict[str, Any]) -> dict[str, Any]:
    """A table that was changed by someone who also knows how to write the checksum."""
    from pydiffaccel.solvers.plan import _checksum

    content = {key: value for key, value in d.items() if key != "checksum"}
    return {**content, "checksum": _checksum(content)}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "else"}, "this is no pydiffaccel.plan file: its format is 'else'"),
        ({"extra": 1}, "a plan has the fields"),
        ({"nfe": 3}, "the plan claims 3 evaluations but its table has 7"),
        ({"evaluations": [{}]}, "the plan's table is malformed"),
        ({"start": {"t": 99.0}}, "the plan's table is malformed"),
        ({"evaluations": []}, "a plan needs at least one evaluation"),
        ({"schedule": {"name": "flow"}}, "must lie in"),
        ({"schedule": VPSchedule.cosine(100).to_dict()}, "but the schedule has"),
        ({"num_steps": 0}, "num_steps must be a positive int, got 0"),
        ({"metadata": []}, r"metadata must be a JSON object, got '\[\]'"),
    ],
)
def test_wrong_tables_are_refused_even_with_their_checksum(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Plan.from_dict(resealed({**PLANS["ddim"].to_dict(), **change}))


def test_files_that_are_no_plans(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with pytest.raises(FileNotFoundError):
        load_plan(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is no JSON file"):
        load_plan(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no JSON file"):
        load_plan(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="its format is 'list'"):
        load_plan(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.mkdir()  # a rename onto a folder fails
    with pytest.raises(OSError, match=r"plan\.json"):
        PLANS["ddim"].save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_immutable() -> None:
    plan = PLANS["ddim"]
    with pytest.raises(FrozenInstanceError):
        plan.num_steps = 3  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plan.evaluations[0].updates[0].a = 0.0  # type: ignore[misc]
    plan.metadata["order"] = 7
    assert plan.metadata["order"] == 1
    row = Evaluation(plan.start, "epsilon", [Update(plan.start, base=0, a=1, b=[2])])  # type: ignore[arg-type]
    assert row.updates == (Update(plan.start, base=0, a=1.0, b=(2.0,)),)
    assert isinstance(row.updates[0].a, float)


def test_metadata_entries() -> None:
    plan = PLANS["ddim"].with_metadata(author="me", order=3)
    assert plan.metadata == {**PLANS["ddim"].metadata, "author": "me", "order": 3}
    assert plan.evaluations == PLANS["ddim"].evaluations
    assert plan != PLANS["ddim"]
    with pytest.raises(ValueError, match="JSON compliant"):
        plan.with_metadata(bad=math.nan)


def test_nfe_is_counted_from_the_table() -> None:
    assert [plan.nfe for plan in PLANS.values()] == [7, 7, 7, 7]
    assert (heun(5).nfe, heun(5).num_steps) == (10, 5)
    assert (predictor_corrector(5).nfe, predictor_corrector(5).num_steps) == (5, 5)


def test_stochastic() -> None:
    assert PLANS["ddim eta"].stochastic
    assert not PLANS["ddim"].stochastic


@every_plan
def test_consistency(plan: Plan) -> None:
    assert plan.consistency_error() < 1e-12
    row = plan.evaluations[3]
    update = replace(row.updates[0], b=tuple(1.001 * value for value in row.updates[0].b))
    changed = replace(plan, evaluations=(*plan.evaluations[:3], replace(row, updates=(update,)), *plan.evaluations[4:]))
    assert changed.consistency_error() > 1e-5


def test_trajectory_leaves_out_predictors_and_stages() -> None:
    assert PLANS["ddim"].trajectory_states == tuple(range(8))
    plan = heun(3)
    assert plan.trajectory_states == (0, 2, 4, 6)
    assert [plan.state_points[i].t for i in plan.trajectory_states] == pytest.approx([0, 0.3, 0.6, 0.9])
    assert predictor_corrector(3).trajectory_states == (0, 2, 4, 5)


@pytest.mark.parametrize("family", [heun, predictor_corrector])
def test_second_order_tables_written_by_hand_converge(family: Any, gaussian: Any, normal: Any) -> None:
    x = normal(0, 5, 4)
    errors = []
    for num_steps in (40, 80, 160):
        plan = family(num_steps)
        assert plan.consistency_error() < 1e-12
        exact = gaussian.exact(x, plan.start, plan.state_points[-1])
        errors.append(float((integrate(plan, gaussian, x) - exact).abs().max()))
    assert 1.7 < math.log2(errors[0] / errors[1]) < 2.5
    assert 1.7 < math.log2(errors[1] / errors[2]) < 2.3


def test_initial_updates_run_before_the_first_evaluation(isotropic: Any, normal: Any) -> None:
    start, first, end = points_at(FLOW, [0.0, 0.2, 1.0])
    jump = Update(first, base=0, a=0.5)
    row = Evaluation(first, "sample", (Update(end, base=1, a=0.25, b=(0.75,)),))
    plan = Plan("jump", FLOW, 1, start, (row,), initial_updates=(jump,))
    x = normal(0, 3, 4)
    expected = 0.25 * 0.5 * x + 0.75 * isotropic(0.5 * x, first, "sample")
    torch.testing.assert_close(integrate(plan, isotropic, x), expected)
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan.trajectory_states == (0, 1, 2)


def test_describe_shows_every_row() -> None:
    lines = PLANS["ddim eta"].describe().splitlines()
    assert lines[0] == "ddim: 7 steps, 7 evaluations, vp schedule"
    assert len(lines) == 8
    assert "z" in lines[1]
    assert "x7 = " in lines[-1]


def test_prediction_types_of_a_perfect_model() -> None:
    assert output_parts("epsilon", 0.8, 0.6) == (0, 1)
    assert output_parts("sample", 0.8, 0.6) == (1, 0)
    assert output_parts("v_prediction", 0.8, 0.6) == (-0.6, 0.8)
    assert output_parts("flow", 0.8, 0.6) == (1, -1)


A, B, C = points_at(FLOW, [0.0, 0.5, 1.0])
GOOD = Update(B, base=0, a=1.0, b=(0.5,))
ROW = Evaluation(A, "flow", (GOOD,))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Point(0.0, 0.0, math.nan, 1.0), "alpha of a point must be finite, got nan"),
        (lambda: Point(0.0, 0.0, -1.0, 1.0), "a point needs alpha, sigma >= 0, not both 0, got -1.0 and 1.0"),
        (lambda: Point(0.0, 0.0, 0.0, 0.0), "not both 0"),
        (lambda: Update(B, base=0, a=math.inf), "a of an update must be finite, got inf"),
        (lambda: Update(B, base=0, a=1.0, b=(math.nan,)), "b of an update must be finite, got nan"),
        (lambda: Update(B, base=0, a=1.0, noise=-1.0), "noise of an update must not be negative, got -1.0"),
        (lambda: Evaluation(A, "score", (GOOD,)), "unknown prediction type 'score'; known: epsilon, sample"),
        (lambda: Evaluation(A, "flow", ()), "the evaluation at t = 0 has no update"),
        (lambda: Plan("", FLOW, 1, A, (ROW,)), "solver must be a non-empty name, got ''"),
        (lambda: Plan("x", FLOW, 0, A, (ROW,)), "num_steps must be a positive int, got 0"),
        (lambda: Plan("x", FLOW, 1, A, ()), "a plan needs at least one evaluation"),
        (lambda: Plan("x", FLOW, 1, B, (ROW,)), "evaluation 0 is at t = 0, but the newest state is at t = 0.5"),
        (lambda: Plan("x", FLOW, 2, A, (ROW, ROW)), "evaluation 1 is at t = 0, but the newest state is at t = 0.5"),
        (
            lambda: Plan("x", FLOW, 1, A, (replace(ROW, updates=(replace(GOOD, base=1),)),)),
            "an update starts from state 1, but there are 1 states so far",
        ),
        (
            lambda: Plan("x", FLOW, 1, A, (replace(ROW, updates=(replace(GOOD, base=-1),)),)),
            "an update starts from state -1",
        ),
        (
            lambda: Plan("x", FLOW, 1, A, (replace(ROW, updates=(replace(GOOD, b=(1.0, 1.0)),)),)),
            "an update uses 2 outputs, but there are 1 so far",
        ),
        (
            lambda: Plan("x", FLOW, 1, A, (replace(ROW, point=A),), initial_updates=(replace(GOOD, point=A),)),
            "an update uses 1 outputs, but there are 0 so far",
        ),
        (
            lambda: Plan("x", FLOW, 1, replace(A, alpha=0.1), (replace(ROW, point=replace(A, alpha=0.1)),)),
            "the point at t = 0 has alpha 0.1, sigma 1.0, but the schedule has 0.0, 1.0",
        ),
    ],
)
def test_bad_values(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Point("0", 0.0, 0.0, 1.0), "t of a point must be a number, got str"),  # type: ignore[arg-type]
        (lambda: Update(B, base=True, a=1.0), "base of an update must be an int, got bool"),
        (lambda: Update(0.5, base=0, a=1.0), "point of an update must be a Point, got float"),  # type: ignore[arg-type]
        (lambda: Evaluation(0.5, "flow", (GOOD,)), "point of an evaluation must be a Point"),  # type: ignore[arg-type]
        (lambda: Evaluation(A, "flow", ("x",)), "updates must be of type Update, got str"),  # type: ignore[arg-type]
        (lambda: Plan("x", "vp", 1, A, (ROW,)), "schedule must be a Schedule, got str"),  # type: ignore[arg-type]
        (lambda: Plan("x", FLOW, 1, 0.0, (ROW,)), "start must be a Point, got float"),  # type: ignore[arg-type]
        (lambda: Plan("x", FLOW, 1, A, (GOOD,)), "evaluations must be of type Evaluation, got Update"),  # type: ignore[arg-type]
        (lambda: Plan("x", FLOW, 1, A, (ROW,), (ROW,)), "initial_updates must be of type Update"),  # type: ignore[arg-type]
    ],
)
def test_bad_types(call: Any, sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        call()
