"""What is compared: one cell per way of training, each with its control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ["DIGITS", "ON_IMAGES", "SPOKEN", "Cell", "cells_of"]


@dataclass(frozen=True)
class Cell:
    """One way of training.

    Attributes:
        name: of the cell and its file: the objective first, as "flow-hungarian".
        about: in plain words, for the page.
        control: the cell that this one is compared with; its own name for the plain ones.
        flags: options of ``pydiffaccel.train`` beyond those of the data set.
        method: the heading of the page that it belongs to.
        center: whether --coupling knn ranks by the image less the mean of all images.
        log_snr_shift: c where the noise levels are those of vp with all signal-to-noise ratios times c^2.
    """

    name: str
    about: str
    control: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    method: str = "plain"
    center: bool = False
    log_snr_shift: float = 1.0


OBJECTIVES: dict[str, Mapping[str, Any]] = {
    "flow": {"forward": "flow"},
    "eps": {"forward": "vp", "prediction_type": "epsilon"},
    "v": {"forward": "vp", "prediction_type": "v_prediction"},
    "x": {"forward": "vp", "prediction_type": "sample"},
}
_WORDS = {
    "flow": "flow matching",
    "eps": "DDPM, predicts the noise",
    "v": "DDPM, predicts v",
    "x": "DDPM, predicts the data",
}
SPOKEN = {"flow": "flow", "eps": "epsilon", "v": "v", "x": "data"}  # what is predicted
BATCH = 128


def _cell(objective: str, name: str, about: str, method: str, *, control: str = "", **rest: Any) -> Cell:
    fields = {key: rest.pop(key) for key in ("center", "log_snr_shift") if key in rest}
    return Cell(
        f"{objective}-{name}",
        about,
        f"{objective}-{control or 'plain'}",
        {**OBJECTIVES[objective], **rest},
        method,
        **fields,
    )


def _plain(objective: str) -> Cell:
    return _cell(objective, "plain", f"{_WORDS[objective]}, independent noise", "plain")


def _hungarian(objective: str) -> Cell:
    return _cell(objective, "hungarian", "Hungarian coupling", "hungarian", coupling="hungarian")


def _batches(objective: str, sizes: tuple[int, ...]) -> list[Cell]:
    """Hungarian against independent at the same batch; as many images in all as the others see."""
    cells = []
    for size in sizes:
        cells.append(
            _cell(
                objective,
                f"plain-b{size}",
                f"independent noise, batch {size}",
                "batch",
                control=f"plain-b{size}",
                train_batch_size=size,
            )
        )
        cells.append(
            _cell(
                objective,
                f"hungarian-b{size}",
                f"Hungarian coupling, batch {size}",
                "batch",
                control=f"plain-b{size}",
                train_batch_size=size,
                coupling="hungarian",
            )
        )
    return cells


def _knn(objective: str, k: int, metric: str = "l2", center: bool = False) -> Cell:
    name = f"knn-{metric}{k}" + ("-centred" if center else "")
    about = f"nearest of {k} noises ({metric}{', centred' if center else ''})"
    return _cell(objective, name, about, "knn", coupling="knn", knn_k=k, knn_metric=metric, center=center)


def _scaled(objective: str, factor: float) -> Cell:
    return _cell(objective, f"scaled{factor:g}", f"data times {factor:g}", "scaled", data_scale=factor)


def _shifted(objective: str, factor: float) -> Cell:
    about = f"noise levels shifted by 2 log {factor:g}, data as it is"
    return _cell(objective, f"shifted{factor:g}", about, "scaled", log_snr_shift=factor)


def _curriculum(objective: str, width: float, importance: bool = False) -> Cell:
    weights = ", importance weights" if importance else ""
    return _cell(
        objective,
        f"curriculum{width:g}" + ("-importance" if importance else ""),
        f"curriculum of width {width:g}{weights}",
        "curriculum",
        curriculum=True,
        curriculum_width=width,
        curriculum_importance=importance,
    )


def _momentum(objective: str) -> list[Cell]:
    words = {
        "both": "momentum decay with its learning rate",
        "lr_only": "its learning rate alone",
        "beta_only": "its beta_1 alone",
    }
    return [
        _cell(objective, f"momentum-{part}", about, "momentum", momentum_decay=part) for part, about in words.items()
    ]


def _kl(objective: str, terms: int) -> list[Cell]:
    """KL diffusion with as many network evaluations per step as the others: batch / terms images."""
    batch = max(1, round(BATCH / terms))
    common = {"forward": "kl", "kl_terms": terms, "train_batch_size": batch}
    cells = [
        _cell(
            objective,
            f"noises{terms}",
            f"{terms} independent noises per image, batch {batch}",
            "kl",
            **{**common, "kl_weights": "uniform"},
        ),
        _cell(objective, f"kl{terms}", f"KL, {terms} terms, batch {batch}", "kl", control=f"noises{terms}", **common),
    ]
    for draws in ("antithetic", "orthogonal"):
        about = f"KL, {terms} terms, {draws} draws, batch {batch}"
        name, control = f"kl{terms}-{draws}", f"noises{terms}"
        cells.append(_cell(objective, name, about, "kl", control=control, **{**common, "kl_draws": draws}))
    partial = {**common, "kl_partial": 1, "train_batch_size": BATCH}
    cells.append(_cell(objective, f"kl{terms}-partial", f"KL, 1 of {terms} terms, batch {BATCH}", "kl", **partial))
    return cells


def _weights(objective: str) -> Cell:
    return _cell(objective, "minsnr", "min-SNR weights, gamma 5", "weights", snr_gamma=5.0)


def _windowed(objective: str) -> Cell:
    about = "Hungarian coupling, 8 batches as one"
    return _cell(objective, "hungarian-window", about, "hungarian", coupling="hungarian", coupling_window=8)


def _late(objective: str) -> Cell:
    about = "Hungarian coupling after a third of the steps"
    return _cell(objective, "hungarian-late", about, "hungarian", coupling="hungarian", coupling_start_step=200)


def _logit_normal(objective: str) -> Cell:
    return _cell(objective, "logit", "logit-normal times", "times", timestep_density="logit_normal")


_FAST = {"coupling": "hungarian", "coupling_window": 8, "timestep_density": "logit_normal"}
_QUICK = {"learning_rate": 4e-3}  # twice the default, and twice what a data set sets instead (cells_of)


def _fast(objective: str) -> Cell:
    return _cell(objective, "fast", "Hungarian over 8 batches and logit-normal times", "combined", **_FAST)


def _preset(objective: str) -> Cell:
    about = "--preset fast: Hungarian over 8 batches, logit-normal times, twice the learning rate"
    return _cell(objective, "preset", about, "combined", **_FAST, **_QUICK)


def _best_of_noise(objective: str) -> Cell:
    """What helps noise prediction, at once."""
    about = "data times 2 and min-SNR weights"
    return _cell(objective, "scaled2-minsnr", about, "combined", data_scale=2.0, snr_gamma=5.0)


def _quick(objective: str) -> Cell:
    about = "independent noise at twice the learning rate"
    return _cell(objective, "plain-lr", about, "combined", **_QUICK)


DIGITS: tuple[Cell, ...] = (
    # What matters most comes first: a run that is cut off has answered that.
    *(_plain(objective) for objective in OBJECTIVES),
    *(_hungarian(objective) for objective in OBJECTIVES),
    *(_windowed(objective) for objective in ("flow", "v")),
    *(_preset(objective) for objective in ("flow", "v", "x")),
    _fast("flow"),
    *(_quick(objective) for objective in ("flow", "x")),
    *(_logit_normal(objective) for objective in ("flow", "v")),
    *(_knn("flow", 4, "l2", center) for center in (False, True)),
    *(_knn("eps", 4, "l2", center) for center in (False, True)),
    _curriculum("eps", 0.3),
    *_momentum("eps"),
    _weights("eps"),
    *_kl("eps", 3),
    *_batches("flow", (64, 256, 512)),
    *(_knn("flow", k) for k in (2, 8)),
    *(_knn("flow", 4, "dot", center) for center in (False, True)),
    _knn("eps", 8),
    _knn("v", 4),
    *(cell for factor in (2.0, 4.0) for cell in (_scaled("eps", factor), _shifted("eps", factor))),
    *(_curriculum("eps", width) for width in (0.2, 0.5)),
    *(_curriculum("eps", width, importance=True) for width in (0.2, 0.3, 0.5)),
    _curriculum("v", 0.3),
    *_kl("eps", 10),
    _weights("v"),
    _late("eps"),
    _best_of_noise("eps"),
    *(_knn("flow", k, "dot", center) for k in (2, 8) for center in (False, True)),
    *(_knn("flow", k, "l2", center=True) for k in (2, 8)),
    *(_knn(objective, 4, "dot", center) for objective in ("eps", "v") for center in (False, True)),
    _knn("v", 4, "l2", center=True),
    *(cell for factor in (2.0, 4.0) for cell in (_scaled("v", factor), _shifted("v", factor))),
)
# On images a cell costs more: by data set, what the digits leave open. At 16 x 16 all of it is hours of two cores.
_IMAGES = (
    *(f"flow-{name}" for name in ("plain", "hungarian", "hungarian-window", "preset", "knn-l24", "logit")),
    *(f"v-{name}" for name in ("plain", "hungarian", "preset")),
    *(f"x-{name}" for name in ("plain", "preset")),
    *(f"eps-{name}" for name in ("plain", "hungarian")),
)
_FEW = ("flow-plain", "flow-hungarian", "flow-knn-l24")
_COLOUR = (
    *("eps-minsnr", "v-knn-l24", "eps-knn-l24", "eps-curriculum0.3", "eps-momentum-both", "eps-noises3", "eps-kl3"),
    *("flow-plain-lr", "flow-plain-b512", "flow-hungarian-b512"),
)
_BY_NAME = {cell.name: cell for cell in DIGITS}


def _slower(cell: Cell) -> Cell:
    """The cell on colour images, where plain training has a tenth of the default learning rate."""
    rate = cell.flags.get("learning_rate")
    return cell if rate is None else replace(cell, flags={**cell.flags, "learning_rate": rate / 10})


ON_IMAGES = {
    "cifar16": tuple(_BY_NAME[name] for name in _IMAGES),
    "cifar8": tuple(_BY_NAME[name] for name in _FEW),
    "cifar32": tuple(_slower(_BY_NAME[name]) for name in _IMAGES + _COLOUR),
}


def cells_of(name: str) -> tuple[Cell, ...]:
    """The cells of a data set."""
    return ON_IMAGES.get(name, DIGITS)
