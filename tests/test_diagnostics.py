"""The figures of a batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pydiffaccel.coupling import KNN, Coupling, Hungarian, Independent, Scaled, WarmUp, diagnose
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import data, total


@pytest.mark.parametrize("coupling", [Independent(), Hungarian(), Hungarian(pool=90), KNN(8), KNN(8, "dot")], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_figures_are_what_they_say(coupling: Coupling, dtype: torch.dtype, masked: bool) -> None:
    x, mask = data(60, 40, 7, dtype=dtype), data(60, 40, seed=3) > -0.5 if masked else None
    options = {} if mask is None else {"mask": mask}
    noise, figures = coupling.measured(x, seed=1, step=2, first_sample=5, **options)
    assert torch.equal(noise, coupling(x, seed=1, step=2, first_sample=5, **options))
    real = torch.ones_like(x, dtype=torch.float64) if mask is None else mask.double().unsqueeze(-1).expand(x.shape)
    plain = gaussian_noise(x, 1, 2, 5)
    values = figures.to_dict()
    expected = 100 * (1 - total(x, noise, real) / total(x, plain, real))
    assert values["cost_reduction"] == pytest.approx(expected, abs=1e-3)
    mean_square = float((noise.double().square() * real).sum() / real.sum())
    assert values["noise_mean_square"] == pytest.approx(mean_square, rel=1e-5)
    assert values["coupling_ms"] > 0
    if not coupling.is_plain(2):
        assert values["cost_reduction"] > 2


def test_plain_noise_reduces_nothing() -> None:
    x = data(50, 30)
    for coupling in (Independent(), KNN(1), WarmUp(9, Hungarian())):
        assert coupling.measured(x, seed=1, step=2)[1].to_dict()["cost_reduction"] == 0


def test_long_batches_are_added_up_well() -> None:
    x = data(300, 3072) + 1
    noise, figures = Hungarian().measured(x)
    expected = 100 * (1 - total(x, noise) / total(x, gaussian_noise(x, 0)))
    assert figures.to_dict()["cost_reduction"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float32, 1e20), (torch.float32, 1e36), (torch.float64, 1e300)])
def test_large_data_have_figures(dtype: torch.dtype, large: float) -> None:
    x = data(50, 30, dtype=dtype)
    figures = Hungarian().measured(large * x, seed=1)[1].to_dict()
    assert figures["cost_reduction"] == pytest.approx(0, abs=1e-10)
    assert figures["noise_mean_square"] == pytest.approx(1, abs=0.1)


def test_empty_batches_and_rows_of_padding() -> None:
    empty = Hungarian().measured(torch.empty(0, 4))[1].to_dict()
    assert (empty["cost_reduction"], empty["noise_mean_square"]) == (0, 0)
    nothing = KNN(2).measured(data(3, 4), mask=torch.zeros(3, 1, dtype=torch.bool))[1].to_dict()
    assert (nothing["cost_reduction"], nothing["noise_mean_square"]) == (0, 0)


def test_figures_of_scaled_data_are_those_of_what_is_diffused() -> None:
    coupling = Scaled(2.0, Hungarian())
    x = coupling.scale_data(data(40, 20))
    figures = coupling.measured(x, seed=1)[1]
    assert torch.equal(figures.cost_reduction, Hungarian().measured(x, seed=1)[1].cost_reduction)
    with pytest.raises(dataclasses.FrozenInstanceError):
        figures.mean_square = torch.zeros(())  # type: ignore[misc]


def test_figures_without_a_clock_and_of_another_shape() -> None:
    x = data(4, 3)
    assert set(diagnose(x, x).to_dict()) == {"cost_reduction", "noise_mean_square"}
    with pytest.raises(ValueError, match=r"noise must have the shape of x, \(4, 3\), got \(3, 3\)"):
        diagnose(x, x[:3])
    with pytest.raises(TypeError, match="x must be a floating-point tensor, got list"):
        Hungarian().measured([1.0])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_figures_on_a_gpu_wait_for_nothing() -> None:
    x = data(64, 100).cuda()
    Hungarian().measured(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, figures = Hungarian().measured(x, seed=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    host = Hungarian().measured(x.cpu(), seed=1)[1].to_dict()
    values = figures.to_dict()
    assert values["cost_reduction"] == pytest.approx(host["cost_reduction"], abs=1e-3)
    assert values["coupling_ms"] > 0
