"""``--preset fast``: for each objective the combination that measured best (docs/evidence.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydiffaccel._cli import UsageError

__all__ = ["fast", "with_preset"]

FORWARDS = ("flow", "vp")  # what was measured
_PAIRED = {
    "coupling": "hungarian",
    "coupling_window": 8,
    "coupling_ahead": True,
    "timestep_density": "logit_normal",
    # Twice the default, for U-Nets of a hundred thousand parameters; alone it gains little.
    "learning_rate": 4e-3,
}
# By what the network predicts. Under a coupling a network that predicts noise blows up its first errors.
_FAST: Mapping[str, Mapping[str, Any]] = {
    "flow": _PAIRED,
    "sample": _PAIRED,
    "v_prediction": _PAIRED,
    "epsilon": {"snr_gamma": 5.0, "data_scale": 2.0},
}


def fast(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the preset sets beside those that are given; these stay, and what does not go with them goes.

    Args:
        given: options by name, as values or as words. "forward" is by default vp, which then predicts the data and,
            unlike without the preset, not the noise.

    Raises:
        UsageError: nothing was measured for this forward process.
    """
    forward, predicted = given.get("forward", "vp"), given.get("prediction_type", "auto")
    if forward not in FORWARDS:
        raise UsageError(f"--preset fast goes with --forward flow or vp, got {forward}")
    chosen: dict[str, Any] = {}
    if predicted == "auto":
        predicted = "flow" if forward == "flow" else "sample"
        if forward == "vp":
            chosen["prediction_type"] = predicted
    chosen |= _FAST.get(predicted, {})
    without = {name for name in chosen if name in given and name != "prediction_type"}
    if given.get("coupling", "hungarian") != "hungarian":
        without |= {"coupling_window", "coupling_ahead"}
    if "hungarian_pool" in given:
        without.add("coupling_window")
    if given.get("loss_weighting", "none") not in ("none", "min_snr"):
        without.add("snr_gamma")
    if given.get("curriculum", False) is not False:
        without.add("timestep_density")
    return {name: value for name, value in chosen.items() if name not in without}


def with_preset(argv: Sequence[str]) -> list[str]:
    """argv with the flags of its ``--preset``; those that it spells itself stay as they are."""
    given = dict(_spelled(argv))
    if given.get("preset") != "fast" or given.get("forward", "vp") not in FORWARDS:
        return list(argv)  # what is wrong with it the options say
    spelled: list[str] = []
    skip = False
    for argument in argv:
        if skip or argument.startswith("--preset"):
            skip = argument == "--preset"
            continue
        spelled.append(argument)
    denied = {name.removeprefix("no_"): "" for name in given if name.startswith("no_")}
    for name, value in fast(denied | given).items():
        spelled += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return spelled


def _spelled(argv: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of each flag; the value of a flag without one is what follows it."""
    found = []
    for place, argument in enumerate(argv):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            following = argv[place + 1] if place + 1 < len(argv) else ""
            found.append((name.replace("-", "_"), value if equals else following))
    return found
