"""What every coupling promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import (
    KNN,
    Coupling,
    Distributed,
    Hungarian,
    Independent,
    Scaled,
    Sinkhorn,
    Standardized,
    WarmUp,
    coupling_from_dict,
)
from tests.coupling.samples import DTYPES, data

COUPLINGS = [
    Independent(),
    Hungarian(),
    Hungarian(pool=96),
    KNN(4),
    KNN(4, "dot"),
    KNN(3, center="mean"),
    Hungarian(project=1, projection="random"),
    Sinkhorn(),
    Sinkhorn(0.1, iterations=5, output="sampled", project=1, projection="random"),
    Scaled(2.0, Hungarian()),
    Standardized(KNN(4)),
    Distributed(Hungarian(pool=96)),
    WarmUp(1, Hungarian()),
    WarmUp(1, Scaled(2.0, KNN(4))),
]
SHAPES = [(6, 3, 4, 4), (5, 7, 2), (8, 5), (4, 1), (1, 3, 4, 4), (0, 3, 4, 4), (0, 2)]


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_is_like_the_data(coupling: Coupling, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x = data(*shape, dtype=dtype)
        noise = coupling(x, seed=1, step=2)
        assert noise.shape == x.shape
        assert noise.dtype == dtype
        assert noise.device == x.device
        assert bool(torch.isfinite(noise).all())


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_no_gradient_and_generators_untouched(coupling: Coupling) -> None:
    x = data(6, 5).requires_grad_()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    noise = coupling(x, seed=3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert not noise.requires_grad
    assert torch.is_grad_enabled()


def test_no_coupling_runs_under_autograd() -> None:
    recorded = []

    class Recording(Independent):
        def _draw(self, x: Tensor, *arguments: object) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return x

        def _pair(self, x: Tensor, noise: Tensor, *arguments: object) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return noise

    Recording()(data(2, 3))
    Recording().pair(data(2, 3), data(2, 3))
    assert recorded == [False, False]


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_a_draw_depends_on_seed_step_and_sample(coupling: Coupling) -> None:
    x = data(6, 40)
    noise = coupling(x, seed=3, step=4, first_sample=8)
    assert torch.equal(noise, coupling(x.clone(), seed=3, step=4, first_sample=8))
    for other in ({"seed": 4}, {"step": 5}, {"first_sample": 14}):
        assert not torch.equal(noise, coupling(x, **({"seed": 3, "step": 4, "first_sample": 8} | other)))


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_strided_data_gives_the_same_noise(coupling: Coupling) -> None:
    x = data(6, 4, 5, 3)
    strided = x.to(memory_format=torch.channels_last)
    assert torch.equal(coupling(x, seed=3), coupling(strided, seed=3))
    assert torch.equal(coupling(x[::2], seed=3), coupling(x[::2].contiguous(), seed=3))


@pytest.mark.parametrize("coupling", [Independent(), KNN(4), KNN(4, "dot"), KNN(3, center=torch.full((5,), 0.3))])
def test_rows_are_independent_of_the_batch_split(coupling: Coupling) -> None:
    x = data(9, 5)
    mask = data(9, 5, seed=1) > -0.5
    for options in ({}, {"mask": mask}):
        whole = coupling(x, seed=1, step=2, first_sample=10, **options)
        parts = [
            coupling(x[a:b], seed=1, step=2, first_sample=10 + a, **{k: m[a:b] for k, m in options.items()})
            for a, b in ((0, 4), (4, 5), (5, 9))
        ]
        assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize(
    "coupling",
    [*COUPLINGS, Hungarian("across", pool=9), KNN(2, "dot", center=torch.tensor([[0.1, 1 / 3], [0.7, 2.0]]))],
    ids=repr,
)
def test_description_survives_a_round_trip(coupling: Coupling) -> None:
    again = coupling_from_dict(coupling.to_dict())
    assert again == coupling
    assert hash(again) == hash(coupling)
    if not (isinstance(coupling, KNN) and isinstance(coupling.center, Tensor)):
        assert coupling != KNN(17)
    x = data(8, 2, 2)
    assert torch.equal(again(x, seed=5), coupling(x, seed=5))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_the_gpu_draws_what_the_cpu_draws(coupling: Coupling) -> None:
    x, labels = data(24, 6, 3), torch.arange(24) % 5
    mask = torch.arange(6) < torch.arange(24).remainder(6).add(1).unsqueeze(1)
    for options in ({}, {"labels": labels}, {"mask": mask}):
        host = coupling(x, seed=1, step=2, **options)
        device = coupling(x.cuda(), seed=1, step=2, **{key: value.cuda() for key, value in options.items()})
        assert device.is_cuda
        assert torch.allclose(device.cpu(), host, atol=1e-4)
