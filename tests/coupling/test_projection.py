"""Hungarian(project=d): the search in a cheaper space."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydiffaccel.coupling import (
    Hungarian,
    coupling_from_dict,
)
from pydiffaccel.noise import gaussian_noise
from tests.coupling.samples import DTYPES, data, rows, total


@pytest.mark.parametrize("projection", ["pool", "random"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_projection_that_saves_nothing_is_the_exact_search(projection: str, dtype: torch.dtype) -> None:
    x, labels = data(24, 3, 4, 6, dtype=dtype), torch.arange(24) % 3
    for pool in (None, 50):
        for options in ({}, {"labels": labels}):
            exact = Hungarian(pool=pool)(x, seed=1, step=2, **options)
            for project in (72, 1000):
                cheap = Hungarian(pool=pool, project=project, projection=projection)
                assert torch.equal(cheap(x, seed=1, step=2, **options), exact)


def test_pooling_is_the_assignment_of_the_projections() -> None:
    x, noise = data(20, 2, 4, 6), data(20, 2, 4, 6, seed=1)
    means = torch.nn.functional.avg_pool2d
    # 48 numbers, pooled 2 by 2 to 12.
    for project in (12, 47):
        paired = Hungarian(project=project).pair(x, noise)
        order = [rows(noise).index(tuple(row)) for row in paired.flatten(1).tolist()]
        same = Hungarian().pair(means(x, 2), means(noise, 2))
        assert [rows(noise).index(tuple(row)) for row in _by_means(noise, same).flatten(1).tolist()] == order
    assert torch.equal(Hungarian(project=12).pair(x.double(), noise.double()).float(), paired)


def _by_means(noise: Tensor, means: Tensor) -> Tensor:
    """The noises that have the means."""
    table = torch.nn.functional.avg_pool2d(noise, 2).flatten(1)
    return noise[torch.stack([(table - mean).abs().sum(1).argmin() for mean in means.flatten(1)])]


def test_images_that_are_constant_in_windows_lose_nothing_by_pooling() -> None:
    x = data(30, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for options in ({}, {"labels": torch.arange(30) % 4}):
        for pool in (None, 70):  # the length of the whole noise counts
            exact, cheap = Hungarian(pool=pool), Hungarian(pool=pool, project=48)
            assert torch.equal(cheap(x, seed=1, **options), exact(x, seed=1, **options))


@pytest.mark.parametrize("projection", ["pool", "random"])
def test_a_cheaper_space_keeps_some_of_the_gain(projection: str) -> None:
    coarse = data(64, 3, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = coarse + 0.3 * data(64, 3, 8, 8, seed=1)
    plain, exact = gaussian_noise(x, 1), Hungarian()(x, seed=1)
    cheap = Hungarian(project=48, projection=projection)(x, seed=1)
    assert rows(cheap) == rows(plain)
    share = (total(x, plain) - total(x, cheap)) / (total(x, plain) - total(x, exact))
    assert (0.9 if projection == "pool" else 0.1) < share < 1


def test_a_random_projection_is_the_same_in_every_call() -> None:
    x = data(40, 30)
    coupling = Hungarian(project=10, projection="random")
    assert torch.equal(coupling(x, seed=1), coupling_from_dict(coupling.to_dict())(x.clone(), seed=1))


def test_descriptions_of_before_projections_are_read() -> None:
    assert Hungarian().to_dict() == {"name": "hungarian", "labels": "within", "pool": None}
    assert coupling_from_dict({"name": "hungarian", "labels": "within", "pool": None}) == Hungarian()
    assert Hungarian(project=9).to_dict() == {
        "name": "hungarian",
        "labels": "within",
        "pool": None,
        "project": 9,
        "projection": "pool",
    }
    assert Hungarian(project=9) != Hungarian()
    with pytest.raises(ValueError, match="a hungarian description has the fields"):
        coupling_from_dict({"name": "hungarian", "labels": "within", "pool": None, "speed": 3})
