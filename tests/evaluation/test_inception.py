"""The network of the FID: its architecture, its resize, and its file of weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pydiffaccel._cli import CommandError, UsageError
from pydiffaccel.evaluation import inception
from pydiffaccel.evaluation.features import inception_features
from pydiffaccel.evaluation.measures import title
from pydiffaccel.evaluation.panel import make_panel
from pydiffaccel.trainer.data import TrainData

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under the names of torch-fidelity's file, with the layer that is not needed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = inception.Inception().state_dict()
    path = tmp_path_factory.mktemp("weights") / inception.WEIGHTS_NAME
    torch.save({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_inception_has_the_published_size() -> None:
    """94 convolutions and 23.9 million weights, less the last layer's 2048 x 1008 + 1008."""
    state = inception.Inception().state_dict()
    assert sum(name.endswith("conv.weight") for name in state) == 94
    assert sum(p.numel() for p in inception.Inception().parameters()) == 21_785_568
    assert state["Mixed_6c.branch7x7dbl_3.conv.weight"].shape == (160, 160, 1, 7)
    assert state["Mixed_7b.branch3x3_2b.bn.running_mean"].shape == (384,)


def test_inception_features(weights: Path) -> None:
    features = inception_features(weights)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = features(x)
    assert found.shape == (2, 2048)
    network = inception.load_inception(weights)
    with torch.inference_mode():
        expected = network(((x.expand(-1, 3, -1, -1) + 1) * 127.5).round())
    assert np.array_equal(found, expected.double().numpy())
    near = ((x + 1) * 127.5).round() / 127.5 - 1  # 8-bit images: what rounds to the same is the same
    assert np.array_equal(features(near), found)


def test_inception_agrees_with_torch_fidelity(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its other networks alone use torchvision, which does not go beside a CPU torch.
    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        monkeypatch.setitem(sys.modules, f"torchvision{name}", mock.MagicMock())
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    extractor = theirs.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(weights))
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = extractor(x)[0].double().numpy()
    assert np.allclose(inception_features(weights)(x / 127.5 - 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (32, 32), (40, 13)])
def test_resize_reads_between_two_pixels(size: tuple[int, int]) -> None:
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    found = inception.resize_as_tensorflow(x, 17)[0, 0]
    for i in range(17):
        for j in range(17):
            y, z = i * size[0] / 17, j * size[1] / 17
            a, b = int(y), int(z)
            c, d = min(a + 1, size[0] - 1), min(b + 1, size[1] - 1)
            top = x[0, 0, a, b] * (1 - z + b) + x[0, 0, a, d] * (z - b)
            low = x[0, 0, c, b] * (1 - z + b) + x[0, 0, c, d] * (z - b)
            assert found[i, j] == pytest.approx(float(top * (1 - y + a) + low * (y - a)))


def test_inception_weights_are_looked_for(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CommandError, match=r"weights are not in .*checkpoints/weights-inception-2015-12"):
        inception_features()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.WEIGHTS_NAME).symlink_to(weights)
    assert inception.find_weights(None) == tmp_path / "checkpoints" / inception.WEIGHTS_NAME
    with pytest.raises(CommandError, match=r"no.pth does not exist; --features_weights names"):
        inception.find_weights(tmp_path / "no.pth")


class _Trap:
    """Unpickling it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_weights_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"conv": _Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(CommandError, match=r"trap.pth cannot be read as a state dict"):
        inception.load_inception(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds list, no state dict"),
        ({"a": 3}, "holds dict, no state dict"),
        ({"a": torch.zeros(2)}, "does not hold the Inception network's weights: .*Missing key"),
        (b"text", "cannot be read as a state dict"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, match: str) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CommandError, match=match):
        inception.load_inception(path)
    (tmp_path / "w.safetensors").write_bytes(b"text")
    with pytest.raises(CommandError, match=r"w.safetensors cannot be read"):
        inception.load_inception(tmp_path / "w.safetensors")


def conv(state: State, x: Tensor, name: str, stride: int = 1, same: bool = True) -> Tensor:
    """One named convolution with its normalisation, from the definitions."""
    weight = state[f"{name}.conv.weight"]
    y = functional.conv2d(x, weight, stride=stride, padding=tuple(k // 2 for k in weight.shape[2:]) if same else 0)
    mean, var, scale, shift = (state[f"{name}.bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
    shape = (1, -1, 1, 1)
    y = (y - mean.view(shape)) / (var.view(shape) + 0.001).sqrt() * scale.view(shape) + shift.view(shape)
    return y.clamp(min=0)


def inner_mean(x: Tensor) -> Tensor:
    """Averages of 3 x 3 pixels, at the edge of those that there are."""
    ones = torch.ones_like(x[:1, :1])
    nine = torch.ones(x.shape[1], 1, 3, 3)
    return functional.conv2d(x, nine, padding=1, groups=x.shape[1]) / functional.conv2d(ones, nine[:1], padding=1)


# Figures 5, 10, 6, 10 and 7 of 1512.00567: branches as names of convolutions, "/" halves the sides, ( | ) is a fork.
BLOCKS = {
    "5b": "1x1; 5x5_1 5x5_2; 3x3dbl_1 3x3dbl_2 3x3dbl_3; mean pool",
    "6a": "/3x3; 3x3dbl_1 3x3dbl_2 /3x3dbl_3; max/",
    "6c": "1x1; 7x7_1 7x7_2 7x7_3; 7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5; mean pool",
    "7a": "3x3_1 /3x3_2; 7x7x3_1 7x7x3_2 7x7x3_3 /7x7x3_4; max/",
    "7b": "1x1; 3x3_1 3x3_2a|3x3_2b; 3x3dbl_1 3x3dbl_2 3x3dbl_3a|3x3dbl_3b; mean pool",
    "7c": "1x1; 3x3_1 3x3_2a|3x3_2b; 3x3dbl_1 3x3dbl_2 3x3dbl_3a|3x3dbl_3b; max pool",
}


def stage(state: State, x: Tensor, word: str) -> Tensor:
    if word == "mean":
        return inner_mean(x)
    if word == "max":
        return functional.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2))
    if word == "max/":
        return x.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    if word == "pool":
        return conv(state, x, "branch_pool")
    stride = 2 if word.startswith("/") else 1
    names = [f"branch{part.removeprefix('/')}" for part in word.split("|")]
    return torch.cat([conv(state, x, name, stride, stride == 1) for name in names], 1)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_the_published_ones(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = inception.Inception().get_submodule(f"Mixed_{name}").eval()
        for key, value in block.state_dict().items():
            if "bn" in key and value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
        inputs = block.state_dict()[f"branch{BLOCKS[name].split(';')[0].split()[0].strip('/')}.conv.weight"].shape[1]
        x = torch.randn(2, inputs, 9, 9)
    state = block.state_dict()
    expected = []
    for branch in BLOCKS[name].split(";"):
        y = x
        for word in branch.split():
            y = stage(state, y, word)
        expected.append(y)
    with torch.inference_mode():
        found = block(x)
    assert found.shape[2:] == ((4, 4) if name in ("6a", "7a") else (9, 9))
    assert torch.allclose(found, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)


def test_only_inception_makes_an_fid(weights: Path) -> None:
    features = inception_features(weights)
    assert title("frechet", "frechet_distance", features) == "FID (inception features)"
    assert title("kid", "kernel_distance", features) == "KID (inception features)"
    with pytest.raises(UsageError, match="at least 2,049 samples for a covariance of 2,048 inception features, got"):
        make_panel(TrainData("blank", np.zeros((4000, 1, 8, 8), np.uint8)), ("frechet",), features, num_samples=2000)
