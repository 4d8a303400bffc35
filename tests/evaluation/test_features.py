"""Features of images, references made of them, and the panel of measures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.evaluation import frechet_between
from pydiffaccel.evaluation.classifier import LARGE, SMALL, Recipe, classifier_features, recipe_for, rotation_features
from pydiffaccel.evaluation.features import (
    Features,
    module_features,
    pixel_features,
    reduced,
)
from pydiffaccel.evaluation.measures import MEASURES, Settings
from pydiffaccel.evaluation.panel import make_features, make_panel
from pydiffaccel.evaluation.reference import make_reference
from pydiffaccel.trainer.data import TrainData, load_digits

QUICK = Recipe((16, 32, 32), 16, 150)


def images(n: int, shape: tuple[int, int, int] = (1, 8, 8), *, classes: int = 0) -> TrainData:
    pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = np.arange(n) % classes if classes else None
    return TrainData("noise", pixels, labels=labels, classes=tuple("abcd"[:classes]))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module `mine` that tests put their features in."""
    found = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "mine", found)
    return found


# --- trained here


def test_classifier_knows_digits_from_noise() -> None:
    data = load_digits()
    reference = make_reference(data, recipe=QUICK)
    assert reference.accuracy > 0.9
    assert f"right on {reference.accuracy:.1%} of unseen images of UCI optical digits" in reference.features.about
    assert reference.values.shape == (1797, 16)
    assert reference.values.var(0, ddof=1).sum() == pytest.approx(100)
    digits = data.batch(np.arange(0, 1797, 2))
    blurred = torch.nn.functional.avg_pool2d(digits, 3, 1, 1)
    noise = torch.randn(900, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    distances = [reference.distance(x) for x in (digits, blurred, noise)]
    assert distances[0] < 2
    assert min(distances[1:]) > 10
    again = make_reference(data, recipe=QUICK)
    assert np.array_equal(again.values, reference.values)
    assert again.features.hash == reference.features.hash


def test_a_kept_classifier_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, keep = images(300, classes=3), tmp_path / "there" / "classifier.safetensors"
    recipe = Recipe((8,), 4, 5)
    first = classifier_features(data, recipe=recipe, keep=keep)
    plain = classifier_features(data, recipe=recipe)
    assert (first.hash, first.accuracy) == (plain.hash, plain.accuracy)
    other = classifier_features(data, seed=1, recipe=recipe, keep=tmp_path / "other.safetensors")
    assert other.hash != first.hash
    with monkeypatch.context() as patched:
        patched.setattr("pydiffaccel.evaluation.classifier._train", None)
        again = classifier_features(data, recipe=recipe, keep=keep)
        with pytest.raises(TypeError):
            classifier_features(data, seed=1, recipe=recipe, keep=keep)  # it holds another seed's
    assert (again.hash, again.accuracy, again.about) == (first.hash, first.accuracy, first.about)
    x = torch.rand(4, 1, 8, 8)
    assert np.array_equal(again(x), first(x))
    keep.write_bytes(b"damaged")
    assert classifier_features(data, recipe=recipe, keep=keep).hash == first.hash


def test_rotation_features_need_no_labels() -> None:
    digits = load_digits()
    data = TrainData("plain", digits.values, max_value=digits.max_value)
    features = rotation_features(data, recipe=QUICK)
    assert features.accuracy is not None
    assert features.accuracy > 0.8  # by chance 0.25
    assert features.name == "rotation"
    rng_state = torch.get_rng_state()
    other = rotation_features(data, recipe=QUICK, seed=1)
    assert other.hash != features.hash
    assert torch.equal(torch.get_rng_state(), rng_state)


def test_rotation_examples_are_the_images_turned() -> None:
    from pydiffaccel.evaluation.classifier import _Examples

    data = images(120)
    plain, turned = (_Examples(data, 3, turned=turned) for turned in (False, True))
    assert (turned.count, turned.trained_on) == (480, 432)
    found, turns = turned.at(torch.arange(8), "cpu")
    assert turns.tolist() == [0, 1, 2, 3] * 2
    for row in range(8):
        image = torch.from_numpy(np.rot90(turned._images[row // 4], row % 4, (1, 2)).copy())
        assert torch.equal(found[row], image)
    assert torch.equal(turned._images, plain._images)


def test_accuracy_is_on_unseen_images() -> None:
    """Labels without a pattern are learnt by heart, and that does not count."""
    data = images(300, classes=2)
    features = classifier_features(data, recipe=Recipe((32, 32), 16, 200))
    assert features.accuracy is not None
    assert 0.2 < features.accuracy < 0.8


def test_recipes_follow_the_size() -> None:
    assert recipe_for((1, 8, 8)) == recipe_for((3, 16, 64)) == SMALL
    assert recipe_for((3, 32, 32)) == LARGE
    features = classifier_features(images(120, (3, 40, 48), classes=2), recipe=Recipe((8, 16), 7, 2, 1e-3, True, True))
    assert features.dimension == 7
    assert features.resize == "antialiased bilinear to 32 x 38"
    assert features(torch.zeros(3, 3, 40, 48)).shape == (3, 7)


@pytest.mark.parametrize(
    ("make", "data", "match"),
    [
        (classifier_features, images(120), "noise has no classes"),
        (classifier_features, images(120, classes=1), "noise has no classes"),
        (classifier_features, images(9, classes=2), "noise has 9 images; a small classifier needs at least 100"),
        (rotation_features, images(120, (1, 8, 6)), "images of 8 x 6; quarter turns need square ones"),
        (rotation_features, images(99), "noise has 99 images; .* needs at least 100"),
    ],
)
def test_data_that_cannot_be_trained_on(make: Callable[[TrainData], Features], data: TrainData, match: str) -> None:
    with pytest.raises(CommandError, match=match):
        make(data)


# --- pixels


def test_pixels_are_the_pixels() -> None:
    x = torch.rand(5, 2, 8, 6) * 2 - 1
    features = pixel_features((2, 8, 6))
    assert np.array_equal(features(x), x.flatten(1).double().numpy())
    assert features.resize == "none"
    assert np.array_equal(features(3 * x), (3 * x).clamp(-1, 1).flatten(1).double().numpy())


def test_large_images_are_averaged() -> None:
    x = torch.zeros(1, 3, 64, 128)
    x[..., ::2] = 1  # the mean of any smooth average is a half
    assert reduced(x).shape == (1, 3, 32, 64)
    assert torch.allclose(reduced(x)[..., 4:-4], torch.tensor(0.5), atol=0.05)
    assert pixel_features((3, 64, 128)).dimension == 3 * 32 * 64


# --- a network of one's own


@pytest.mark.parametrize("kind", ["module", "function", "factory"])
def test_own_network(module: SimpleNamespace, kind: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 5))
    mine: dict[str, object] = {"module": network, "function": lambda x: network.eval()(x), "factory": lambda: network}
    module.net = mine[kind]
    features = module_features("mine:net", images(12))
    x = torch.rand(7, 1, 8, 8)
    expected = network.eval()(x).detach().double().numpy()
    assert features.dimension == 5
    assert np.allclose(features(x), expected)
    assert (features.hash is None) == (kind == "function")
    reference = make_reference(images(12), features)
    assert reference.scale == 1


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (lambda x: x, r"mine:net must answer images \[2, 1, 8, 8\] with .* \[2, F\], got \[2, 1, 8, 8\] of float32"),
        (lambda x: x.sum(), r"got \[\] of float32"),
        (lambda x: x.flatten(1)[:1], r"got \[1, 64\]"),
        (lambda x: x.flatten(1).long(), "got .* of int64"),
        (lambda x: [x], r"must answer with a tensor \[N, F\], got list"),
        (lambda x: x @ torch.zeros(3), r"mine:net fails on images \[2, 1, 8, 8\]: "),
        (3, "mine:net must be a torch module or a function of images, got int"),
        (lambda: "text", "mine:net must be a torch module or a function of images, got str"),
    ],
)
def test_own_network_that_is_none(module: SimpleNamespace, net: object, match: str) -> None:
    module.net = net
    with pytest.raises(CommandError, match=match):
        module_features("mine:net", images(12))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nonsense", "features are classifier, .* or package.module:name, got 'nonsense'"),
        ("no_such_module_here:net", "cannot be imported: No module named"),
        ("mine:other", "the module mine has no 'other'"),
    ],
)
def test_names_of_no_network(module: SimpleNamespace, name: str, match: str) -> None:
    with pytest.raises(CommandError, match=match):
        module_features(name, images(12))


def test_answers_are_checked_each_time(module: SimpleNamespace) -> None:
    module.net = lambda x: x.flatten(1)[:, : 3 if len(x) < 4 else 4]
    features = module_features("mine:net", images(12))
    with pytest.raises(CommandError, match="mine:net answered with 4 features, before with 3"):
        features(torch.zeros(4, 1, 8, 8))
    module.net = lambda x: x.flatten(1) / x.flatten(1).abs().sum()
    features = module_features("mine:net", images(12))
    with pytest.raises(CommandError, match="mine:net answered with features that are not finite"):
        features(torch.zeros(4, 1, 8, 8))


def test_images_must_be_finite() -> None:
    x = torch.zeros(4, 1, 8, 8)
    x[1, 0, 2, 3], x[3, 0, 0, 0] = float("nan"), float("inf")
    with pytest.raises(CommandError, match="2 of 4 images have values that are not finite"):
        pixel_features((1, 8, 8))(x)


# --- references and panels


def test_floor_keeps_images_apart() -> None:
    data = images(100)
    reference = make_reference(data, pixel_features(data.shape), num_images=60, num_spare=30)
    assert (len(reference.values), len(reference.spare)) == (60, 30)
    whole = np.concatenate([reference.values, reference.spare])
    assert len(np.unique(whole, axis=0)) == 90
    for n, sizes in ((30, (30, 60)), (10, (10, 60)), (40, (40, 50)), (1000, (45, 45))):
        held, others = reference.floor(n)
        assert (len(held), len(others)) == sizes
        assert len(np.unique(np.concatenate([held, others]), axis=0)) == sum(sizes)
    assert reference.halves == frechet_between(reference.values[:30], reference.values[30:])


def test_images_without_difference_are_refused() -> None:
    flat = TrainData("flat", np.zeros((20, 1, 8, 8), np.uint8))
    with pytest.raises(CommandError, match="20 images of flat do not differ in their pixels features"):
        make_reference(flat, pixel_features(flat.shape))


def test_panel_of_all_measures() -> None:
    data = images(400)
    panel = make_panel(data, tuple(MEASURES), pixel_features(data.shape), num_samples=150, num_reference=250)
    found = panel.figures([panel.references[0].embed(data.batch(np.arange(150)))])
    floor = panel.floor(150)
    assert (floor.pop("num_samples"), floor.pop("num_reference")) == (150, 250)
    assert set(found) == set(floor) == set(panel.titles())
    assert panel.titles()["frechet_distance"] == "Frechet distance (pixels)"
    recipe = panel.recipe(150)
    assert recipe["measures"]["kid"]["subset_size"] == 75
    assert recipe["measures"]["precision_recall"] == {"k": 3}
    assert recipe["features"]["data_variance"] == pytest.approx(100)
    table = panel.table({"NFE 4": found, "real": floor}).splitlines()
    assert table[0].split() == ["NFE", "4", "real"]
    shown = [f"{column['frechet_distance']:.4g}" for column in (found, floor)]
    assert table[1].split() == ["Frechet", "distance", "(pixels)", *shown]


def test_pixels_stand_beside_features(module: SimpleNamespace) -> None:
    module.net = lambda x: x.flatten(1)[:, :3].abs()
    data = images(240)
    features = module_features("mine:net", data)
    panel = make_panel(data, ("sliced_wasserstein", "sliced_wasserstein_pixels"), features, num_samples=120)
    x = data.batch(np.arange(120))
    found = panel.figures([reference.embed(x) for reference in panel.references])
    alone = make_panel(data, ("sliced_wasserstein",), pixel_features(data.shape), num_samples=120)
    on_pixels = alone.figures([alone.references[0].embed(x)])
    assert found["sliced_wasserstein_pixels"] == pytest.approx(on_pixels["sliced_wasserstein"])
    assert found["sliced_wasserstein"] != found["sliced_wasserstein_pixels"]
    assert list(panel.titles().values()) == [
        "sliced Wasserstein distance (mine:net features)",
        "sliced Wasserstein distance (pixels)",
    ]


@pytest.mark.parametrize(
    ("metrics", "n", "m", "match"),
    [
        (("kid",), 99, 400, "--metrics kid needs at least 100 samples, got 99; --force takes fewer"),
        (("precision_recall",), 200, 50, "precision_recall needs at least 100 images of the data, got 50"),
        (("frechet",), 192, 400, "at least 193 samples for a covariance of 192 pixels features, got 192"),
        (("frechet",), 193, 192, "at least 193 images of the data .*, got 192"),
        (("fid",), 200, 400, "measures are frechet, kid, .*, got fid"),
        ((), 200, 400, "measures are .*, got none"),
    ],
)
def test_too_few_images(metrics: tuple[str, ...], n: int, m: int, match: str) -> None:
    data = images(m, (3, 8, 8))
    features = pixel_features(data.shape)
    with pytest.raises(UsageError, match=match):
        make_panel(data, metrics, features, num_samples=n)


def test_force_measures_what_exists() -> None:
    data = images(12)
    panel = make_panel(data, ("frechet",), pixel_features(data.shape), num_samples=5, force=True)
    assert panel.floor(5)["num_samples"] == 5
    panel = make_panel(data, ("precision_recall",), pixel_features(data.shape), num_samples=3, force=True)
    with pytest.raises(CommandError, match=r"--metrics precision_recall: .* at least 4 rows, got 3"):
        panel.figures([panel.references[0].embed(data.batch(np.arange(3)))])


@pytest.mark.parametrize(
    "data",
    [
        TrainData("moves", np.zeros((200, 7, 3), np.float32), kind="latents"),
        TrainData("codes", np.zeros((200, 4, 8, 8), np.float32), kind="latents"),
    ],
)
def test_only_images_are_measured(data: TrainData) -> None:
    with pytest.raises(CommandError, match=f"only images can be measured, and the data is {data.name}: 200 latents"):
        make_features("auto", data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (images(120, classes=2), "classifier"),
        (images(120), "rotation"),
        (images(120, (1, 8, 6)), "pixels"),
        (images(120, (1, 8, 6), classes=2), "classifier"),
    ],
)
def test_features_follow_the_data(monkeypatch: pytest.MonkeyPatch, data: TrainData, name: str) -> None:
    import pydiffaccel.evaluation.classifier as module

    monkeypatch.setattr(module, "SMALL", Recipe((4,), 4, 1))
    assert make_features("auto", data).name == name


def test_settings_reach_the_measures() -> None:
    data = images(400)
    names = ("kid", "precision_recall", "density_coverage", "sliced_wasserstein")
    x = data.batch(np.arange(150)) * 0.5

    def figures(settings: Settings) -> dict[str, float]:
        panel = make_panel(data, names, pixel_features(data.shape), num_samples=150, settings=settings)
        recipe = panel.recipe(150)["measures"]
        assert recipe["kid"]["subsets"] == settings.subsets
        assert recipe["sliced_wasserstein"]["directions"] == settings.directions
        return panel.figures([panel.references[0].embed(x)])

    plain, other = figures(Settings()), figures(Settings(subsets=3, subset_size=20, k=9, dense_k=2, directions=7))
    assert all(plain[key] != other[key] for key in plain if key not in ("precision", "recall", "coverage"))


def test_networks_see_images_between_minus_one_and_one() -> None:
    seen: list[Tensor] = []
    features = Features("mine", "", lambda x: (seen.append(x), x.flatten(1))[1], 64, at_once=3)
    features(5 * torch.randn(8, 1, 8, 8))
    assert [len(x) for x in seen] == [3, 3, 2]
    assert max(x.abs().max() for x in seen) == 1
