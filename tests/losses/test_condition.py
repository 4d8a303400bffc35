"""What a network is told beside x_t and the time goes with its sample, in every mode and micro-batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel import FlowProcess, KLProcess, VPProcess, diffusion_loss, kl_loss
from pydiffaccel.losses import kl_loss_parts
from tests.losses.networks import SCHEDULE, Network, batch

ROWS, TERMS, TIMES, MICROBATCH = 8, 3, 2, 7
LABELS = torch.arange(ROWS) % 4
DATA = batch(4, 5, seed=3, dtype=torch.float64)  # one point for each label
MODES: list[dict[str, Any]] = [
    {"mode": "component"},
    {"mode": "component", "partial": 2},
    {"mode": "component", "draws": "antithetic"},
    {"mode": "schedule"},
    {"mode": "recombined"},
    {"mode": "path"},
]


def perfect(process: VPProcess | KLProcess) -> Any:
    """A network that finds the data by its label alone, and so the noise: wrong labels are a wrong answer."""

    def network(x: Tensor, time: Tensor, *, label: Tensor) -> Tensor:
        assert len(label) == len(x)
        alpha, sigma = process.levels(time.long())
        return (x - alpha[:, None] * DATA[label]) / sigma[:, None]

    return network


def times(mode: str) -> Tensor:
    t = torch.arange(ROWS * TIMES).view(ROWS, TIMES) % (SCHEDULE.num_train_timesteps or 1)
    return t if mode == "path" else t[:, 0]


@pytest.mark.parametrize("microbatch", [None, MICROBATCH])
@pytest.mark.parametrize("settings", MODES, ids=lambda settings: "-".join(map(str, settings.values())))
def test_every_evaluation_of_a_sample_gets_its_label(settings: dict[str, Any], microbatch: int | None) -> None:
    process = KLProcess(SCHEDULE, TERMS)

    def loss(labels: Tensor) -> float:
        parts = kl_loss_parts(
            perfect(process),
            DATA[LABELS],
            times(settings["mode"]),
            process=process,
            microbatch=microbatch,
            condition={"label": labels},
            **settings,
        )
        return float(sum(parts))

    assert loss(LABELS) < 1e-20
    assert loss(LABELS.flip(0)) > 1e-2


def test_plain_loss_gets_labels() -> None:
    process = VPProcess(schedule=SCHEDULE)

    def loss(labels: Tensor) -> float:
        x = DATA[LABELS]
        noise = batch(*x.shape, seed=5, dtype=x.dtype)
        condition = {"label": labels}
        return float(
            diffusion_loss(perfect(process), x, times("one"), process=process, noise=noise, condition=condition)
        )

    assert loss(LABELS) < 1e-20
    assert loss(LABELS.flip(0)) > 1e-2


def test_one_row_is_for_all_and_other_values_pass() -> None:
    seen: dict[str, Any] = {}

    def network(x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        seen.update(condition)
        return x

    x = batch(ROWS, 4)
    condition = {"text": torch.ones(1, 3), "scale": torch.tensor(2.0), "mode": "fast"}
    process = KLProcess(SCHEDULE, TERMS)
    kl_loss(network, x, times("one"), process=process, condition=condition)
    assert seen["text"].shape == (ROWS * TERMS, 3)
    assert seen["scale"].dim() == 0
    assert seen["mode"] == "fast"


def test_no_condition_is_the_call_without_one() -> None:
    x, t, process = batch(ROWS, 4), torch.rand(ROWS), FlowProcess()
    noise = batch(ROWS, 4, seed=1)
    plain = diffusion_loss(Network(), x, t, process=process, noise=noise)
    assert torch.equal(diffusion_loss(Network(), x, t, process=process, noise=noise, condition={}), plain)


@pytest.mark.parametrize(
    ("condition", "error", "match"),
    [
        ([LABELS], TypeError, "condition must be a mapping of the model's keyword arguments, got list"),
        ({"label": LABELS[:3]}, ValueError, "the condition 'label' holds 3 rows for a batch of 8"),
        ({"label": LABELS.repeat(2)}, ValueError, "the condition 'label' holds 16 rows for a batch of 8"),
    ],
)
def test_refuses(condition: Any, error: type[Exception], match: str) -> None:
    x, process = DATA[LABELS], KLProcess(SCHEDULE, TERMS)
    with pytest.raises(error, match=match):
        kl_loss_parts(perfect(process), x, times("one"), process=process, microbatch=4, condition=condition)
    plain = VPProcess(schedule=SCHEDULE)
    with pytest.raises(error, match=match):
        diffusion_loss(perfect(plain), x, times("one"), process=plain, noise=x, condition=condition)
