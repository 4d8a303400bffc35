"""Networks for images: diffusers' UNet2DModel, sized to the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydiffaccel._cli import CommandError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NetworkConfig", "build_network", "default_network", "import_unet"]


@dataclass(frozen=True)
class NetworkConfig:
    """A U-Net for images ``[B, C, H, W]`` that takes a float32 time ``[B]`` and answers in the shape of its input.

    Attributes:
        shape: (C, H, W) of one image; H and W are divisible by 2 to the power of the number of levels less one.
        channels: of each level, from full resolution down; multiples of 8.
        layers_per_block: residual layers per level.
        attention: self-attention at the lowest resolution.
        num_classes: the network also takes ``class_labels`` int64 ``[B]``, 0 .. num_classes - 1, or num_classes itself
            for no class; None is without.

    Raises:
        ValueError: sizes that do not fit together.
    """

    shape: tuple[int, int, int]
    channels: tuple[int, ...]
    layers_per_block: int = 1
    attention: bool = False
    num_classes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "channels", tuple(self.channels))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be (C, H, W), got {self.shape}")
        if not self.channels or any(width < 8 or width % 8 for width in self.channels):
            raise ValueError(f"channels must be multiples of 8, at least one, got {self.channels}")
        if self.layers_per_block < 1:
            raise ValueError(f"layers_per_block must be at least 1, got {self.layers_per_block}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        possible = _levels(self.shape)
        if len(self.channels) > possible:
            raise ValueError(
                f"images of {self.shape[1]} x {self.shape[2]} can be halved for at most {possible} levels, "
                f"got {len(self.channels)}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; num_classes is left out where there are none."""
        values = dataclasses.asdict(self)
        if self.num_classes is None:
            values.pop("num_classes")
        return {"name": "UNet2DModel", **values}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> NetworkConfig:
        """What ``to_dict`` described.

        Raises:
            ValueError: another network, or fields that do not fit.
            TypeError: missing or unknown fields.
        """
        values = dict(d)
        if values.pop("name", None) != "UNet2DModel":
            raise ValueError(f"unknown network {d.get('name')!r}; known: UNet2DModel")
        return cls(**values)


def _levels(shape: Sequence[int]) -> int:
    """How many levels images of this shape allow: one more than both sides can be halved without a rest."""
    side = math.gcd(shape[1], shape[2])
    return (side & -side).bit_length()


def default_network(
    shape: tuple[int, int, int],
    channels: Sequence[int] = (),
    layers_per_block: int = 1,
    num_classes: int | None = None,
) -> NetworkConfig:
    """A modest network for images (C, H, W): some 200 k parameters for 8 x 8, a million for 32 x 32."""
    side = min(shape[1:])
    if not channels:
        if side <= 8:
            wanted: tuple[int, ...] = (24, 32)
        elif side <= 16:
            wanted = (32, 64)
        elif side <= 32:
            wanted = (32, 64, 64)
        else:  # down to 8 pixels or so
            wanted = (32, 64, 96, *(128,) * max(1, round(math.log2(side / 8)) - 2))
        channels = wanted[: _levels(shape)]
    lowest = (shape[1] * shape[2]) >> 2 * (len(channels) - 1)
    attention = side > 8 and lowest <= 256
    return NetworkConfig(shape, tuple(channels), layers_per_block, attention, num_classes)


def import_unet() -> Any:
    """diffusers' UNet2DModel class.

    Raises:
        CommandError: diffusers cannot be imported.
    """
    try:
        from diffusers import UNet2DModel
    except Exception as error:  # a broken neighbour of diffusers raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CommandError(
            f"diffusers cannot be imported ({reason}); install the networks with: pip install 'pydiffaccel[train]'"
        ) from error
    return UNet2DModel


def build_network(config: NetworkConfig, *, seed: int = 0) -> nn.Module:
    """A freshly initialised network on the CPU; its weights are a function of (config, seed), torch's generators stay.

    Raises:
        CommandError: diffusers cannot be imported.
    """
    import torch

    from pydiffaccel.noise import derive_seed

    unet = import_unet()
    channels, height, width = config.shape
    levels = len(config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        network: nn.Module = unet(
            sample_size=height if height == width else (height, width),
            in_channels=channels,
            out_channels=channels,
            layers_per_block=config.layers_per_block,
            block_out_channels=config.channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=8,
            attention_head_dim=32 if config.channels[-1] % 32 == 0 else 8,
            add_attention=config.attention,
            num_class_embeds=None if config.num_classes is None else config.num_classes + 1,
        )
    return network
