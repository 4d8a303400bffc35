"""Image files to uint8 pixels; whatever a damaged or hostile file does ends as a `BadImage` with the reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pydiffaccel._cli import CommandError

__all__ = ["BadImage", "DataError", "UInt8", "decode", "guarded", "read_header", "resize_and_crop", "shown"]

DECODER = 1  # changes with the pixels that `decode` makes of a file
MAX_PIXELS = 2**28  # of an image that is resized
_GRAY_MODES = frozenset({"1", "L", "LA", "I;16", "I;16L", "I;16B"})
_COLOUR_MODES = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV"})

UInt8 = NDArray[np.uint8]
Result = TypeVar("Result")


class DataError(CommandError):
    """The data cannot be used; the message says which part and what to do."""


class BadImage(Exception):
    """One image that cannot be used; the message is the reason."""


def shown(name: str) -> str:
    """A name from foreign data in quotes: one line of printable characters."""
    clean = "".join(c if c.isprintable() else "?" for c in name)
    return f"'{clean if len(clean) <= 120 else '...' + clean[-117:]}'"


def guarded(action: Callable[[], Result]) -> Result:
    """action's result; everything a damaged file can raise becomes a BadImage with the reason."""
    try:
        return action()
    except BadImage:
        raise
    except Image.DecompressionBombError as error:  # raised on the header, before memory is taken
        raise BadImage(str(error).split(",", 1)[0]) from error
    except Exception as error:  # OSError, SyntaxError, ValueError, struct.error, zlib.error, ...: Pillow has them all
        text = str(error).split(" <", 1)[0] or type(error).__name__
        raise BadImage(text) from error


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.mode not in _GRAY_MODES | _COLOUR_MODES:
        raise BadImage(f"pixel mode {image.mode} is not supported")
    return image


def decode(data: bytes, resolution: int | None = None) -> UInt8:
    """An image file's pixels, uint8 ``[H, W, 1]`` (gray) or ``[H, W, 3]`` (colour).

    Transparent pixels are put on white; 16-bit gray is reduced to 8 bits; the camera's orientation tag is applied.

    Args:
        data: the file's bytes.
        resolution: where given, the shorter side is resized to it and the centre square cut out.

    Raises:
        BadImage: the bytes are no readable image.
    """

    def action() -> UInt8:
        image = ImageOps.exif_transpose(_open(data))
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        if image.mode in ("LA", "RGBA", "PA") or "transparency" in image.info:
            layer = image.convert("RGBA")
            white = Image.new("RGBA", layer.size, "white")
            image = Image.alpha_composite(white, layer).convert("L" if image.mode in ("L", "LA") else "RGB")
        image = image.convert("L" if image.mode in _GRAY_MODES else "RGB")
        pixels = np.asarray(resize_and_crop(image, resolution) if resolution else image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    return guarded(action)


def read_header(data: bytes) -> tuple[int, int, int]:
    """(H, W, C) after `decode`, from the header alone; the pixels are not read."""

    def action() -> tuple[int, int, int]:
        image = _open(data)
        width, height = image.size
        # Where no tag stands before the pixels of a PNG, Pillow would decode all of them to look behind.
        turned = (image.format != "PNG" or "exif" in image.info) and image.getexif().get(0x0112, 1) >= 5
        channels = 1 if image.mode in _GRAY_MODES else 3
        return (width, height, channels) if turned else (height, width, channels)  # orientations 5 to 8 swap the sides

    return guarded(action)


def resize_and_crop(image: Image.Image, resolution: int) -> Image.Image:
    """The shorter side resized to `resolution` (Lanczos), then the centre square.

    Raises:
        BadImage: the whole image resized would have more than MAX_PIXELS pixels.
    """
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    if width * height > MAX_PIXELS:  # a thin strip within Pillow's limit would take all memory
        raise BadImage(f"{image.width} x {image.height} pixels are too elongated for a resolution of {resolution}")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return image if image.size == (resolution,) * 2 else image.crop((left, top, left + resolution, top + resolution))
