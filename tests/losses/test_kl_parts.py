"""Micro-batches, autocast and compilation: the same loss, carried out otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pydiffaccel import Hungarian, coupled_noises, kl_loss, kl_loss_parts
from pydiffaccel.forward import KLProcess
from pydiffaccel.noise import gaussian_noise
from pydiffaccel.schedule import ContinuousVPSchedule
from tests.losses.networks import SCHEDULE, Network, batch

PLACE: dict[str, Any] = {"seed": 3, "step": 2, "first_sample": 5}
SETTINGS: list[dict[str, Any]] = [
    {"mode": "component"},
    {"mode": "component", "weights": "uniform"},
    {"mode": "component", "draws": "antithetic"},
    {"mode": "component", "draws": "orthogonal"},
    {"mode": "component", "partial": 2},
    {"mode": "component", "partial": 2, "partial_probabilities": "uniform"},
    {"mode": "schedule"},
    {"mode": "recombined"},
    {"mode": "path"},
]
ROWS, TERMS, TIMES = 7, 3, 2


def arguments(settings: dict[str, Any], source: str = "drawn") -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x0, t and options of a batch under the settings."""
    process, x0 = KLProcess(SCHEDULE, TERMS), batch(ROWS, 4)
    path = settings["mode"] == "path"
    t = process.sample_timesteps(ROWS * TIMES, seed=1, step=0).view(ROWS, TIMES)
    options = {"process": process, "weight": batch(ROWS, seed=5).abs(), **settings, **PLACE}
    if source == "coupled":
        noise = coupled_noises(Hungarian(), x0, TERMS, **PLACE)
        options["noise"] = noise[:, 0] if settings["mode"] == "schedule" else noise
    return x0, t if path else t[:, 0], options


def evaluations(settings: dict[str, Any]) -> int:
    return {"schedule": 1, "path": TIMES}.get(settings["mode"], settings.get("partial") or TERMS)


def cases() -> list[tuple[dict[str, Any], str]]:
    couplable = [settings for settings in SETTINGS if settings.get("draws", "iid") == "iid"]
    return [(settings, "drawn") for settings in SETTINGS] + [(settings, "coupled") for settings in couplable]


def gradient(network: Network) -> Tensor:
    assert network.weight.grad is not None
    return network.weight.grad


@pytest.mark.parametrize(("settings", "source"), cases(), ids=str)
def test_parts_add_up_to_the_loss(settings: dict[str, Any], source: str) -> None:
    x0, t, options = arguments(settings, source)
    whole = Network()
    loss = kl_loss(whole, x0, t, **options)
    loss.backward()
    count = evaluations(settings)
    for samples, microbatch in ((1, count), (2, 2 * count), (2, 3 * count - 1), (ROWS, 1000)):
        network = Network()
        total, parts = 0.0, 0
        for part in kl_loss_parts(network, x0, t, microbatch=microbatch, **options):
            part.backward()
            total, parts = total + part.item(), parts + 1
        assert parts == -(-ROWS // samples)
        assert max(shape[0] for shape in network.calls) == samples * count
        assert total == pytest.approx(loss.item(), rel=1e-5)
        assert torch.allclose(gradient(network), gradient(whole), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("settings", "source"), cases(), ids=str)
def test_without_a_microbatch_it_is_the_loss_bit_for_bit(settings: dict[str, Any], source: str) -> None:
    x0, t, options = arguments(settings, source)
    whole, network = Network(), Network()
    loss = kl_loss(whole, x0, t, **options)
    loss.backward()
    for microbatch in (None, ROWS * evaluations(settings)):
        network.zero_grad()
        (part,) = kl_loss_parts(network, x0, t, microbatch=microbatch, **options)
        part.backward()
        assert torch.equal(part, loss)
        assert torch.equal(gradient(network), gradient(whole))


def test_memory_falls_with_the_microbatch() -> None:
    """Elements that autograd keeps for backward, at the most at one time."""
    x0, t, options = arguments({"mode": "component"})
    kept = {"now": 0, "most": 0}

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept["now"] += tensor.numel()
            kept["most"] = max(kept.values())

        def __del__(self) -> None:
            kept["now"] -= self.tensor.numel()

    most = {}
    for microbatch in (None, 12, 3):
        kept.update(now=0, most=0)
        network = Network()
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            for part in kl_loss_parts(network, x0, t, microbatch=microbatch, **options):
                part.backward()
                del part
        most[microbatch] = kept["most"]
    assert most[12] < 0.7 * most[None]
    assert most[3] < 0.3 * most[None]


@pytest.mark.parametrize(("settings", "source"), cases(), ids=str)
def test_autocast_changes_the_network_alone(settings: dict[str, Any], source: str) -> None:
    x0, t, options = arguments(settings, source)
    network, seen = Network(), []

    def watching(x: Tensor, time: Tensor) -> Tensor:
        seen.append((x, time))
        return network(x, time)

    full = kl_loss(watching, x0, t, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = kl_loss(watching, x0, t, **options)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    assert half.item() != full.item()
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    # An error that is 0 stays 0, and targets are not rounded to half precision on the way.
    exact = {**options, "process": KLProcess(SCHEDULE, TERMS, prediction_type="sample")}
    rows = x0.repeat_interleave(evaluations(settings), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kl_loss(lambda x, time: rows, x0, t, **exact).item() == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_inside_a_compiled_step(settings: dict[str, Any]) -> None:
    agrees_compiled(*arguments(settings))


@pytest.mark.parametrize("mode", ["component", "path"])
def test_truncated_levels_inside_a_compiled_step(mode: str) -> None:
    process = KLProcess(ContinuousVPSchedule.linear(), TERMS, "haar", renormalise=False)
    x0, t, options = arguments({"mode": mode})
    t = process.sample_timesteps(ROWS * TIMES, seed=1, step=0).view(ROWS, TIMES)
    agrees_compiled(x0, t if mode == "path" else t[:, 0], {**options, "process": process})


def agrees_compiled(x0: Tensor, t: Tensor, options: dict[str, Any]) -> None:
    """One graph gives the loss and the gradient of the step as it is."""
    weight = options.pop("weight")
    place = {key: options.pop(key) for key in PLACE}
    network = Network()

    def step(x0: Tensor, t: Tensor, weight: Tensor, number: int) -> Tensor:
        where = {**place, "step": number}
        return kl_loss(lambda x, time: x @ network.weight, x0, t, weight=weight, **options, **where)

    torch.compiler.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for number in (2, 3):  # the second makes the step a symbol of the graph
        network.zero_grad()
        expected = step(x0, t, weight, number)
        expected.backward()
        grad = gradient(network).clone()
        network.zero_grad()
        found = compiled(x0, t, weight, number)
        found.backward()
        assert torch.allclose(found, expected, rtol=1e-6)
        assert torch.allclose(gradient(network), grad, rtol=1e-5, atol=1e-7)


def test_split_batches_have_the_noises_of_the_whole() -> None:
    """What ranks of a distributed run rely on."""
    for settings in SETTINGS:
        x0, t, options = arguments(settings)
        weight = options.pop("weight")
        whole = kl_loss(Network(), x0, t, weight=weight, reduction="none", **options)
        later = {**options, "first_sample": PLACE["first_sample"] + 3}
        rows = kl_loss(Network(), x0[3:], t[3:], weight=weight[3:], reduction="none", **later)
        assert torch.allclose(rows, whole[3:], rtol=1e-6)


@pytest.mark.parametrize(
    ("microbatch", "error", "sentence"),
    [
        (2, ValueError, "microbatch must be at least 3, the network evaluations of one sample, got 2"),
        (0, ValueError, "microbatch must be at least 3, the network evaluations of one sample, got 0"),
        (6.0, TypeError, "microbatch must be an int, got float"),
        (True, TypeError, "microbatch must be an int, got bool"),
    ],
)
def test_bad_microbatch(microbatch: Any, error: type[Exception], sentence: str) -> None:
    x0, t, options = arguments({"mode": "component"})
    with pytest.raises(error, match=sentence):
        kl_loss_parts(Network(), x0, t, microbatch=microbatch, **options)


def test_bad_input_is_found_before_the_first_part() -> None:
    x0, t, options = arguments({"mode": "component"})
    for changes, sentence in (({"mode": "magic"}, "mode must be"), ({"noise": gaussian_noise(x0, 1)}, "noise must be")):
        with pytest.raises(ValueError, match=sentence):
            kl_loss_parts(Network(), x0, t, **{**options, **changes})
    with pytest.raises(ValueError, match="at least one sample"):
        kl_loss_parts(Network(), x0[:0], t[:0], **{**options, "weight": None})
