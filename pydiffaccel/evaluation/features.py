"""Features of images: what distances are measured in.

| name | features |
|---|---|
| ``classifier`` | of a small classifier, trained on the labelled data |
| ``rotation`` | of a small network, trained on the data to tell quarter turns of its images (1803.07728) |
| ``pixels`` | the pixels themselves, of images that are reduced to 32 pixels |
| ``inception`` | of the network of the FID, from torch-fidelity's file of weights |
| ``package.module:name`` | of a network of one's own |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pydiffaccel._cli import CommandError
from pydiffaccel.evaluation._arrays import Array
from pydiffaccel.models import FUNCTION, import_attribute, state_hash

if TYPE_CHECKING:
    from pydiffaccel.trainer.data import TrainData

__all__ = ["Features", "inception_features", "module_features", "pixel_features", "reduced", "resize_of"]

REDUCED = 32  # pixels of the shorter side that small networks look at
_AT_ONCE = 512


@dataclass(frozen=True)
class Features:
    """A map from images to features.

    Attributes:
        name: ``classifier``, ``rotation``, ``pixels``, ``inception`` or ``package.module:name``.
        about: what they are, for the user.
        network: images float32 ``[N, C, H, W]`` in [-1, 1], on `device`, to features ``[N, F]``.
        dimension: F.
        resize: what is done to images first, for the recipe.
        hash: ``state_hash`` of the network's weights; None without weights.
        accuracy: share of right answers on images that the network was not trained on; None where it was not trained
            here.
        in_units_of_data: whether references scale them so that the data's variance (trace of the covariance) is 100.
        device: where the network is.
        at_once: images that the network is given in one call, at most.
    """

    name: str
    about: str
    network: Callable[[Tensor], Any]
    dimension: int
    resize: str = "none"
    hash: str | None = None
    accuracy: float | None = None
    in_units_of_data: bool = False
    device: torch.device | str = "cpu"
    at_once: int = _AT_ONCE

    def __call__(self, images: Tensor) -> Array:
        """Features float64 ``[N, F]`` of images ``[N, C, H, W]``; values are clipped to [-1, 1].

        Raises:
            CommandError: images that are not finite, or a network that does not answer with finite features ``[N, F]``.
        """
        bad = ~images.isfinite().flatten(1).all(1)
        if bad.any():
            raise CommandError(f"{int(bad.sum())} of {len(images)} images have values that are not finite")
        parts = [_answer(self, images[first : first + self.at_once]) for first in range(0, len(images), self.at_once)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimension))

    def to_dict(self) -> dict[str, Any]:
        """What the recipe of a figure says about its features."""
        return {
            "name": self.name,
            "about": self.about,
            "dimension": self.dimension,
            "resize": self.resize,
            "hash": self.hash,
            "accuracy": self.accuracy,
        }


def _answer(features: Features, images: Tensor) -> Array:
    found = _call(features.name, features.network, images.clamp(-1, 1).to(features.device))
    if found.shape[1] != features.dimension:
        raise CommandError(f"{features.name} answered with {found.shape[1]} features, before with {features.dimension}")
    values: Array = found.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise CommandError(f"{features.name} answered with features that are not finite")
    return values


def _call(name: str, network: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    """The network's answer, a floating-point tensor ``[N, F]``.

    Raises:
        CommandError: it fails, or answers with something else.
    """
    try:
        with torch.inference_mode():
            found = network(images)
    except CommandError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is the answer to which images it takes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CommandError(f"{name} fails on images {list(images.shape)}: {reason}") from error
    if not isinstance(found, Tensor):
        raise CommandError(f"{name} must answer with a tensor [N, F], got {type(found).__name__}")
    if found.ndim != 2 or len(found) != len(images) or found.shape[1] < 1 or not found.is_floating_point():
        raise CommandError(
            f"{name} must answer images {list(images.shape)} with floating-point features [{len(images)}, F], "
            f"got {list(found.shape)} of {str(found.dtype).removeprefix('torch.')}"
        )
    return found


def reduced(images: Tensor) -> Tensor:
    """Images ``[N, C, H, W]`` with a shorter side of 32 pixels at most: antialiased bilinear where it is larger."""
    height, width = images.shape[-2:]
    shorter = min(height, width)
    if shorter <= REDUCED:
        return images
    size = (round(height * REDUCED / shorter), round(width * REDUCED / shorter))
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def resize_of(shape: tuple[int, ...]) -> str:
    """What ``reduced`` does to images of a shape, in words."""
    height, width = reduced(torch.empty(1, *shape)).shape[-2:]
    return "none" if (height, width) == shape[1:] else f"antialiased bilinear to {height} x {width}"


def pixel_features(shape: tuple[int, ...], device: torch.device | str = "cpu") -> Features:
    """The values of the pixels of images of a shape (C, H, W), ``reduced``.

    Their distances see brightness, colour and layout, and little of what is shown.
    """
    return Features(
        "pixels",
        "the pixels themselves",
        lambda images: reduced(images).flatten(1),
        dimension=reduced(torch.empty(1, *shape)).numel(),
        resize=resize_of(shape),
        in_units_of_data=True,
        device=device,
    )


def module_features(name: str, data: TrainData, device: torch.device | str = "cpu") -> Features:
    """Features of a network of one's own, ``package.module:name``.

    It takes images float32 ``[N, C, H, W]`` in [-1, 1] on `device` and answers with features ``[N, F]``. The name is
    that of a torch module, of a function of images, or of a function without arguments that makes one of these.

    Args:
        data: two of its images show how many features there are.

    Raises:
        CommandError: it cannot be imported, or does not answer with features ``[N, F]``.
    """
    if not FUNCTION.fullmatch(name):
        raise CommandError(f"features are classifier, rotation, pixels, inception or package.module:name, got {name!r}")
    network = import_attribute(name)
    if not isinstance(network, nn.Module) and callable(network) and _needs_nothing(network):
        network = network()
    if not callable(network):
        raise CommandError(f"{name} must be a torch module or a function of images, got {type(network).__name__}")
    module = network if isinstance(network, nn.Module) else None
    if module is not None:
        module.to(device).eval()
    probe = data.batch(np.arange(min(2, len(data))), device)
    return Features(
        name,
        f"{name}, a network of the user's own",
        network,
        dimension=_call(name, network, probe).shape[1],
        hash=None if module is None else state_hash(module),
        device=device,
    )


def _needs_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # ValueError: builtins without a signature
        return False
    return True


def inception_features(weights: Path | None = None, device: torch.device | str = "cpu") -> Features:
    """Features of the FID's network: 2,048 of 8-bit colour images; gray ones are repeated in three channels.

    Args:
        weights: torch-fidelity's file, or its tensors as safetensors; None looks where torch-fidelity keeps it.

    Raises:
        CommandError: there is no such file, or it holds something else. Nothing is downloaded.
    """
    from pydiffaccel.evaluation.inception import DIMENSION, SIDE, find_weights, load_inception

    network = load_inception(find_weights(weights)).to(device)

    def values(images: Tensor) -> Tensor:
        colour = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
        result: Tensor = network(((colour + 1) * 127.5).round())
        return result

    return Features(
        "inception",
        "the Inception network of the FID",
        values,
        DIMENSION,
        resize=f"bilinear as in TensorFlow 1 to {SIDE} x {SIDE}",
        hash=state_hash(network),
        device=device,
        at_once=32,
    )
