"""A solver as data: an immutable, self-checking table of evaluations and linear updates, in float64.

A plan says, for every network evaluation, at which noise level the current state is evaluated, which kind of output the
coefficients act on, and how new states follow:

    state_new = a * states[base] + sum_j b[j] * outputs[newest - j] + noise * z

``states[0]`` is the sample the run starts from and every update appends one state; the newest state is the one that the
next evaluation sees. One-step and multistep methods have one update per evaluation, whose base is the newest state.
Multistage methods (Heun, single-step DPM-Solver, Runge-Kutta starts of PNDM) name an older base, predictor-corrector
methods (UniPC) make two updates after one evaluation, stochastic ones set ``noise``. ``integrate`` runs any of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydiffaccel.schedule import Schedule, schedule_from_dict
from pydiffaccel.solvers.point import Point, finite, output_parts, points_at

__all__ = ["Evaluation", "Plan", "Update", "load_plan"]

FORMAT = "pydiffaccel.plan"
VERSION = 1

# What a point of a loaded plan may differ from its schedule: another platform's exp and log, not another schedule.
_POINT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Update:
    """One new state: ``a * states[base] + sum_j b[j] * outputs[newest - j] + noise * z``.

    Attributes:
        point: noise level of the new state.
        base: index of the state it starts from; 0 is the sample the run starts from.
        a: factor of the base state.
        b: factors of the stored outputs, newest first; zeros are allowed and cost nothing.
        noise: standard deviation of fresh noise, >= 0.
    """

    point: Point
    base: int
    a: float
    b: tuple[float, ...] = ()
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.point, Point):
            raise TypeError(f"point of an update must be a Point, got {type(self.point).__name__}")
        if isinstance(self.base, bool) or not isinstance(self.base, int):
            raise TypeError(f"base of an update must be an int, got {type(self.base).__name__}")
        object.__setattr__(self, "a", finite(self.a, "a of an update"))
        object.__setattr__(self, "b", tuple(finite(value, "b of an update") for value in self.b))
        object.__setattr__(self, "noise", finite(self.noise, "noise of an update"))
        if self.noise < 0:
            raise ValueError(f"noise of an update must not be negative, got {self.noise}")


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation, of the newest state, and the updates that follow it.

    Attributes:
        point: noise level at which the model is evaluated, that of the newest state.
        output_type: the prediction type that the coefficients of this output are for.
        updates: at least one.
    """

    point: Point
    output_type: str
    updates: tuple[Update, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.point, Point):
            raise TypeError(f"point of an evaluation must be a Point, got {type(self.point).__name__}")
        output_parts(self.output_type, 1.0, 0.0)  # refuses an unknown type
        object.__setattr__(self, "updates", tuple(self.updates))
        if not self.updates:
            raise ValueError(f"the evaluation at t = {self.point.t:g} has no update")
        for update in self.updates:
            if not isinstance(update, Update):
                raise TypeError(f"updates must be of type Update, got {type(update).__name__}")


@dataclass(frozen=True)
class Plan:
    """A solver on a time grid, as a table. Immutable, compared and hashed by content, checked at construction.

    Attributes:
        solver: name of the family, as ``"ddim"``.
        schedule: the noise schedule that the coefficients are for.
        num_steps: intervals of the time grid (``nfe`` counts network evaluations).
        start: noise level of the sample the run starts from.
        evaluations: the table, in order.
        initial_updates: updates made before the first evaluation (scaling, added noise); usually none.
        metadata_json: how the plan was made, as a JSON object; read it through ``metadata``.

    Raises:
        TypeError, ValueError: a field of the wrong type, a base or history column that does not exist yet, a
            coefficient that is not finite, an evaluation at another level than the newest state's, or a point that is
            not on the schedule.
    """

    solver: str
    schedule: Schedule
    num_steps: int
    start: Point
    evaluations: tuple[Evaluation, ...]
    initial_updates: tuple[Update, ...] = ()
    metadata_json: str = "{}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluations", tuple(self.evaluations))
        object.__setattr__(self, "initial_updates", tuple(self.initial_updates))
        if not isinstance(self.solver, str) or not self.solver:
            raise ValueError(f"solver must be a non-empty name, got {self.solver!r}")
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule, got {type(self.schedule).__name__}")
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int) or self.num_steps < 1:
            raise ValueError(f"num_steps must be a positive int, got {self.num_steps!r}")
        if not isinstance(self.start, Point):
            raise TypeError(f"start must be a Point, got {type(self.start).__name__}")
        if not self.evaluations:
            raise ValueError("a plan needs at least one evaluation")
        metadata = json.loads(self.metadata_json)
        if not isinstance(metadata, dict):
            raise ValueError(f"metadata must be a JSON object, got {self.metadata_json!r}")
        object.__setattr__(self, "metadata_json", _canonical(metadata))
        self._check_table()
        self._check_points()

    @property
    def nfe(self) -> int:
        """Number of network evaluations."""
        return len(self.evaluations)

    @property
    def metadata(self) -> dict[str, Any]:
        """How the plan was made (order, spacing, options, distillation report); a fresh copy on every access."""
        result: dict[str, Any] = json.loads(self.metadata_json)
        return result

    @cached_property
    def stochastic(self) -> bool:
        """Whether any update adds noise."""
        return any(update.noise > 0 for _, update in self.updates())

    @cached_property
    def state_points(self) -> tuple[Point, ...]:
        """Noise levels of all states: the start and one per update."""
        return (self.start, *(update.point for _, update in self.updates()))

    @cached_property
    def trajectory_states(self) -> tuple[int, ...]:
        """Indices of the states on the trajectory: start, result and every base, so no predictor or inner stage."""
        bases = {update.base for _, update in self.updates()}
        return tuple(sorted({0, len(self.state_points) - 1, *bases}))

    def updates(self) -> Iterator[tuple[int, Update]]:
        """All updates in order, each with the index of the evaluation it follows (-1: none yet)."""
        for update in self.initial_updates:
            yield -1, update
        for index, evaluation in enumerate(self.evaluations):
            for update in evaluation.updates:
                yield index, update

    def with_metadata(self, **entries: Any) -> Plan:
        """The same table with these metadata entries added or replaced; values must be JSON-ready."""
        return replace(self, metadata_json=_canonical({**self.metadata, **entries}))

    def consistency_error(self) -> float:
        """How far, at most, an update misses the state it should make for a perfect model of a single data point.

        For such a model every output is p x_0 + q noise, so an exact update takes alpha, sigma of its base to alpha,
        sigma of its own point. Every consistent solver reaches rounding level here. Corrections fitted to a teacher
        (``distill_plan``) may trade a little of it for accuracy.
        """
        points = self.state_points
        worst = 0.0
        for state, (index, update) in enumerate(self.updates(), start=1):
            signal = update.a * points[update.base].alpha
            noise = update.a * points[update.base].sigma
            for lag, factor in enumerate(update.b):
                source = self.evaluations[index - lag]
                p, q = output_parts(source.output_type, source.point.alpha, source.point.sigma)
                signal += factor * p
                noise += factor * q
            if update.noise > 0:
                noise = math.hypot(noise, update.noise)
            worst = max(worst, abs(signal - points[state].alpha), abs(noise - points[state].sigma))
        return worst

    def describe(self) -> str:
        """The table as text: one line per update, with its time, half log-SNR and coefficients."""
        lines = [f"{self.solver}: {self.num_steps} steps, {self.nfe} evaluations, {self.schedule.name} schedule"]
        for state, (index, update) in enumerate(self.updates(), start=1):
            at = self.evaluations[index].point if index >= 0 else self.start
            b = ", ".join(f"{value:+.6g}" for value in update.b)
            extra = f" + {update.noise:.6g} z" if update.noise > 0 else ""
            lines.append(
                f"{index:4d}  t {at.t:10.4f} -> {update.point.t:10.4f}  log-SNR {at.log_snr:+9.4f} ->"
                f" {update.point.log_snr:+9.4f}  x{state} = {update.a:.6g} x{update.base} + [{b}] m{extra}"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data, with format, version and a checksum over everything else."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "solver": self.solver,
            "num_steps": self.num_steps,
            "nfe": self.nfe,
            "schedule": self.schedule.to_dict(),
            "start": asdict(self.start),
            "initial_updates": [asdict(update) for update in self.initial_updates],
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "metadata": self.metadata,
        }
        result: dict[str, Any] = json.loads(_canonical({**content, "checksum": _checksum(content)}))  # no tuples left
        return result

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Plan:
        """The plan that ``to_dict`` described, bit for bit.

        Raises:
            ValueError: no plan, another version, missing or unknown fields, a checksum that does not match, or a table
                that does not pass the checks of the constructor.
        """
        if not isinstance(d, Mapping) or d.get("format") != FORMAT:
            seen = d.get("format") if isinstance(d, Mapping) else type(d).__name__
            raise ValueError(f"this is no {FORMAT} file: its format is {seen!r}")
        if type(d.get("version")) is not int or d["version"] != VERSION:
            raise ValueError(f"plan version {d.get('version')!r} is unknown; this release reads version {VERSION}")
        content = {key: value for key, value in d.items() if key != "checksum"}
        expected = {"format", "version", "solver", "num_steps", "nfe", "schedule", "start", "initial_updates"}
        expected |= {"evaluations", "metadata"}
        if set(content) != expected or "checksum" not in d:
            raise ValueError(f"a plan has the fields {sorted(expected | {'checksum'})}, got {sorted(d)}")
        checksum = _checksum(content)
        if d["checksum"] != checksum:
            raise ValueError(
                f"the plan was changed after it was saved: checksum {d['checksum']!r}, content {checksum!r}"
            )
        try:
            plan = cls(
                solver=content["solver"],
                schedule=schedule_from_dict(content["schedule"]),
                num_steps=content["num_steps"],
                start=Point(**content["start"]),
                evaluations=tuple(
                    Evaluation(**{**row, "point": Point(**row["point"]), "updates": _read_updates(row["updates"])})
                    for row in content["evaluations"]
                ),
                initial_updates=_read_updates(content["initial_updates"]),
                metadata_json=_canonical(content["metadata"]),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"the plan's table is malformed: {error}") from None
        if content["nfe"] != plan.nfe:
            raise ValueError(f"the plan claims {content['nfe']} evaluations but its table has {plan.nfe}")
        return plan

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON; the file appears whole or not at all."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _check_table(self) -> None:
        points = [self.start]
        for update in self.initial_updates:
            if not isinstance(update, Update):
                raise TypeError(f"initial_updates must be of type Update, got {type(update).__name__}")
            self._check_update(update, points, 0)
        for index, evaluation in enumerate(self.evaluations):
            if not isinstance(evaluation, Evaluation):
                raise TypeError(f"evaluations must be of type Evaluation, got {type(evaluation).__name__}")
            if evaluation.point != points[-1]:
                raise ValueError(
                    f"evaluation {index} is at t = {evaluation.point.t:g}, but the newest state is at"
                    f" t = {points[-1].t:g}"
                )
            for update in evaluation.updates:
                self._check_update(update, points, index + 1)

    @staticmethod
    def _check_update(update: Update, points: list[Point], num_outputs: int) -> None:
        if not 0 <= update.base < len(points):
            raise ValueError(f"an update starts from state {update.base}, but there are {len(points)} states so far")
        if len(update.b) > num_outputs:
            raise ValueError(f"an update uses {len(update.b)} outputs, but there are {num_outputs} so far")
        points.append(update.point)

    def _check_points(self) -> None:
        times = [point.t for point in self.state_points]
        for got, want in zip(self.state_points, points_at(self.schedule, times), strict=True):
            off = max(abs(got.alpha - want.alpha), abs(got.sigma - want.sigma), abs(got.unit - want.unit))
            if off > _POINT_TOLERANCE * max(1.0, want.alpha, want.sigma):
                raise ValueError(
                    f"the point at t = {got.t:g} has alpha {got.alpha}, sigma {got.sigma}, but the schedule has"
                    f" {want.alpha}, {want.sigma}"
                )


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads a plan that ``Plan.save`` wrote, bit for bit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no plan, has another version, or was changed after it was saved.
    """
    try:
        d = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{os.fspath(path)} is no JSON file: {error}") from None
    try:
        return Plan.from_dict(d)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def _read_updates(rows: Sequence[Mapping[str, Any]]) -> tuple[Update, ...]:
    return tuple(Update(**{**row, "point": Point(**row["point"]), "b": tuple(row["b"])}) for row in rows)


def _canonical(value: Any) -> str:
    """One text per content: sorted keys; floats as their shortest exact decimal form, so they read back bit for bit."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _checksum(content: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(_canonical(content).encode()).hexdigest()
