"""The Inception network of the FID, for the weights that torch-fidelity converted from TensorFlow's graph of 2015.

It is Inception v3 (1512.00567) with averages that leave the padding out and a last block that takes maxima instead. The
file of weights is no part of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pydiffaccel._cli import CommandError
from pydiffaccel.trainer.checkpoint import read_tensors

__all__ = ["DIMENSION", "WEIGHTS_NAME", "Inception", "find_weights", "load_inception", "resize_as_tensorflow"]

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
DIMENSION = 2048
SIDE = 299


@dataclass(frozen=True)
class _Conv:
    """A convolution under its name in the file; with stride 1 it keeps the image's sides unless padded is False."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True

    def build(self, inputs: int) -> nn.Module:
        keep = self.padded and self.stride == 1
        padding = (self.kernel[0] // 2, self.kernel[1] // 2) if keep else (0, 0)
        return _Convolution(nn.Conv2d(inputs, self.outputs, self.kernel, self.stride, padding, bias=False))


class _Convolution(nn.Module):
    """A convolution with batch normalisation and ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


# Convolutions one after the other; a pair of them stands side by side on the same input.
_Branch = Sequence[_Conv | tuple[_Conv, _Conv]]


class _Block(nn.Module):
    """Branches side by side, the last one behind a pooling of the input.

    Args:
        inputs: channels.
        branches: without the pooling one.
        pool: "average" or "max", over 3 x 3 with stride 1; "halve" is a maximum with stride 2.
        pooled: channels of the convolution ``branch_pool`` behind the pooling; 0 for none.
    """

    def __init__(self, inputs: int, branches: Sequence[_Branch], pool: str, pooled: int) -> None:
        super().__init__()
        self._branches, self._pool, self._pooled = branches, pool, pooled
        self.outputs = pooled or inputs
        for branch in branches:
            channels = inputs
            for stage in branch:
                convs = stage if isinstance(stage, tuple) else (stage,)
                for conv in convs:
                    self.add_module(conv.name, conv.build(channels))
                channels = sum(conv.outputs for conv in convs)
            self.outputs += channels
        if pooled:
            self.add_module("branch_pool", _Conv("branch_pool", pooled).build(inputs))

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch in self._branches:
            y = x
            for stage in branch:
                convs = stage if isinstance(stage, tuple) else (stage,)
                y = torch.cat([self.get_submodule(conv.name)(y) for conv in convs], 1)
            outputs.append(y)
        if self._pool == "average":
            y = functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            y = functional.max_pool2d(x, 3, 2 if self._pool == "halve" else 1, 0 if self._pool == "halve" else 1)
        outputs.append(self.get_submodule("branch_pool")(y) if self._pooled else y)
        return torch.cat(outputs, 1)


def _early(inputs: int, pooled: int) -> _Block:
    """35 x 35, blocks 5b to 5d."""
    branches: list[_Branch] = [
        [_Conv("branch1x1", 64)],
        [_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))],
        [_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, (3, 3)), _Conv("branch3x3dbl_3", 96, (3, 3))],
    ]
    return _Block(inputs, branches, "average", pooled)


def _to_middle(inputs: int) -> _Block:
    """35 x 35 to 17 x 17, block 6a."""
    branches: list[_Branch] = [
        [_Conv("branch3x3", 384, (3, 3), 2)],
        [_Conv("branch3x3dbl_1", 64), _Conv("branch3x3dbl_2", 96, (3, 3)), _Conv("branch3x3dbl_3", 96, (3, 3), 2)],
    ]
    return _Block(inputs, branches, "halve", 0)


def _middle(inputs: int, width: int) -> _Block:
    """17 x 17, blocks 6b to 6e."""
    branches: list[_Branch] = [
        [_Conv("branch1x1", 192)],
        [_Conv("branch7x7_1", width), _Conv("branch7x7_2", width, (1, 7)), _Conv("branch7x7_3", 192, (7, 1))],
        [
            _Conv("branch7x7dbl_1", width),
            _Conv("branch7x7dbl_2", width, (7, 1)),
            _Conv("branch7x7dbl_3", width, (1, 7)),
            _Conv("branch7x7dbl_4", width, (7, 1)),
            _Conv("branch7x7dbl_5", 192, (1, 7)),
        ],
    ]
    return _Block(inputs, branches, "average", 192)


def _to_late(inputs: int) -> _Block:
    """17 x 17 to 8 x 8, block 7a."""
    branches: list[_Branch] = [
        [_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2)],
        [
            _Conv("branch7x7x3_1", 192),
            _Conv("branch7x7x3_2", 192, (1, 7)),
            _Conv("branch7x7x3_3", 192, (7, 1)),
            _Conv("branch7x7x3_4", 192, (3, 3), 2),
        ],
    ]
    return _Block(inputs, branches, "halve", 0)


def _late(inputs: int, pool: str) -> _Block:
    """8 x 8, blocks 7b and 7c."""
    branches: list[_Branch] = [
        [_Conv("branch1x1", 320)],
        [_Conv("branch3x3_1", 384), (_Conv("branch3x3_2a", 384, (1, 3)), _Conv("branch3x3_2b", 384, (3, 1)))],
        [
            _Conv("branch3x3dbl_1", 448),
            _Conv("branch3x3dbl_2", 384, (3, 3)),
            (_Conv("branch3x3dbl_3a", 384, (1, 3)), _Conv("branch3x3dbl_3b", 384, (3, 1))),
        ],
    ]
    return _Block(inputs, branches, pool, 192)


class Inception(nn.Module):
    """The network up to its last average: images ``[N, 3, H, W]`` with values 0 to 255 to features ``[N, 2048]``.

    Names and shapes of the weights are those of torch-fidelity's file, whose last layer (``fc``) is not needed here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv("", 32, (3, 3), 2).build(3)
        self.Conv2d_2a_3x3 = _Conv("", 32, (3, 3), padded=False).build(32)
        self.Conv2d_2b_3x3 = _Conv("", 64, (3, 3)).build(32)
        self.Conv2d_3b_1x1 = _Conv("", 80).build(64)
        self.Conv2d_4a_3x3 = _Conv("", 192, (3, 3), padded=False).build(80)
        channels, blocks = 192, []
        for name, build in (
            ("5b", lambda inputs: _early(inputs, 32)),
            ("5c", lambda inputs: _early(inputs, 64)),
            ("5d", lambda inputs: _early(inputs, 64)),
            ("6a", _to_middle),
            ("6b", lambda inputs: _middle(inputs, 128)),
            ("6c", lambda inputs: _middle(inputs, 160)),
            ("6d", lambda inputs: _middle(inputs, 160)),
            ("6e", lambda inputs: _middle(inputs, 192)),
            ("7a", _to_late),
            ("7b", lambda inputs: _late(inputs, "average")),
            ("7c", lambda inputs: _late(inputs, "max")),
        ):
            block = build(channels)
            self.add_module(f"Mixed_{name}", block)
            blocks.append(f"Mixed_{name}")
            channels = block.outputs
        self._blocks = tuple(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = (resize_as_tensorflow(x, SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name in self._blocks:
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def resize_as_tensorflow(x: Tensor, side: int) -> Tensor:
    """Bilinear resize ``[N, C, H, W]`` to ``[N, C, side, side]`` as in TensorFlow 1: pixel i reads at i * H / side.

    Pixels are points at their index, not squares with a middle, and nothing is smoothed before (``align_corners=False``
    without half-pixel centres, which torch's interpolate does not have).
    """
    rows, columns = (_read_weights(size, side).to(x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _read_weights(size: int, side: int) -> Tensor:
    """Weights ``[side, size]``, two at most in a row."""
    at = torch.arange(side, dtype=torch.float64) * size / side
    low = at.floor().long()
    weights = torch.zeros(side, size, dtype=torch.float64)
    weights.scatter_add_(1, low[:, None], (1 - at + low)[:, None])
    weights.scatter_add_(1, (low + 1).clamp(max=size - 1)[:, None], (at - low)[:, None])
    return weights


def find_weights(given: Path | None) -> Path:
    """The file of weights: the given one, else where torch-fidelity keeps its download (torch's hub folder).

    Raises:
        CommandError: there is none. Nothing is downloaded.
    """
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    if path.is_file():
        return path
    if given is not None:
        raise CommandError(f"{given} does not exist; --features_weights names torch-fidelity's file {WEIGHTS_NAME}")
    raise CommandError(
        f"the Inception network's weights are not in {path}, where torch-fidelity keeps them; name the file with "
        f"--features_weights, or take other --features"
    )


def load_inception(path: Path) -> Inception:
    """The network with the weights of a file (.safetensors or torch.save's state dict), in eval mode on the CPU.

    Raises:
        CommandError: the file holds no such weights.
    """
    if path.suffix == ".safetensors":
        weights = read_tensors(path)
    else:
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip and torch have many ways to refuse a file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CommandError(f"{path} cannot be read as a state dict: {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CommandError(f"{path} holds {type(weights).__name__}, no state dict of tensors")
    network = Inception()
    try:
        network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("fc.")})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CommandError(f"{path} does not hold the Inception network's weights: {reason}") from error
    return network.eval()
