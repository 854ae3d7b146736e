"""Images: encoded bytes, a path, a PIL image or an array -> RGB uint8 [height, width, 3], within limits.

The header is checked before a pixel is decoded, because a few kilobytes can declare gigabytes. Addresses are never
fetched: whoever serves requests downloads under its own rules first.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from mmjax.types import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 32_000_000
EXIF = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}  # where an orientation can be said

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF's tag, and its values that exchange height and width
# PIL's decoders answer damage with any of these.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError)

BILINEAR, BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)
FILTERS = tuple(int(resampling) for resampling in Image.Resampling)

Pixels = UInt8[np.ndarray, "height width 3"]


class ImageError(UserError):
    """An image that cannot be used. `reason` is the kind of fault, for counting."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return ImageError, (self.reason, self.args[0])


Encoded = bytes | str | os.PathLike | Image.Image | np.ndarray


def decode_image(data: Encoded, *, name: str = "", max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes one image; of an animation, the first frame.

    Args:
      data: encoded bytes, a path, a PIL image, or decoded uint8 values [height, width, 3].
      name: what messages call it; the path itself by default.
      max_pixels: largest width x height, checked from the header.

    Returns:
      RGB values; EXIF orientation applied, transparency composited on white, 16 bits cut to the upper 8, grey and palettes
      spread, CMYK by PIL's formula, without a colour profile.

    Raises:
      ImageError: unreadable, too large, not an accepted format, an address, or a PIL image of 32 bits a channel.
    """
    if isinstance(data, str | os.PathLike):
        name = name or str(data)
        data = _read(str(data), name)
    name = name or "image"
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3 or not data.size:
            raise ImageError("wrong array", f"{name}: expected uint8 [height, width, 3], got {data.dtype} {list(data.shape)}")
        return data
    try:
        image = data if isinstance(data, Image.Image) else _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError("too large", f"{name}: {width} x {height} pixels, the limit is {max_pixels:,} in all")
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):  # PIL opened PNGs of 16 bits as I once
            raise ImageError("wrong values", f"{name}: 32 bits a pixel, whose range nobody knows; give 8 bits, or 16 (I;16)")
        return _rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too large", f"{name}: {error}") from None
    except Image.UnidentifiedImageError:
        raise ImageError("not an image", f"{name}: {len(data)} bytes that are none of {', '.join(FORMATS)}") from None
    except DAMAGE as error:
        raise ImageError("damaged", f"{name}: damaged or truncated image ({error})") from None


def size_of(data: Encoded) -> tuple[int, int] | None:
    """(height, width) of an image by its header, EXIF orientation applied; None where it has none that can be read."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    try:
        image = data if isinstance(data, Image.Image) else _open(data)
        width, height = image.size
        turned = EXIF & image.info.keys() and image.getexif().get(ORIENTATION, 1) in SIDEWAYS
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *DAMAGE):
        return None
    return (width, height) if turned else (height, width)


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """From a picture of any size to the size that an encoder reads.

    Args:
      resize: (height, width), whatever the aspect ratio, or the length of the shorter side; None = as it is.
      crop: (height, width) cut out of the middle, after the resize; what lies outside of a smaller picture is black.
      resample: number of PIL's filter.
      pad: colour of the margin that makes a square of a picture before all else; None = no margin.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None = None
    resample: int = BICUBIC
    pad: tuple[int, int, int] | None = None


def transform_image(
    image: Pixels, transform: ImageTransform, *, name: str = "image"
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Pads, resizes with PIL's filter, then crops: byte for byte what transformers' image processors make with PIL.

    Args:
      name: what messages call the image.

    Raises:
      ImageError: a strip so long that with its shorter side resized it would be too large.
    """
    if transform.pad is not None:
        image = _padded(image, transform.pad)
    if transform.resize is not None:
        height, width = _resized(image.shape[:2], transform.resize)
        if height * width > MAX_PIXELS:
            given = f"{image.shape[1]} x {image.shape[0]} pixels would become {width} x {height}"
            raise ImageError("too long", f"{name}: {given} by their shorter side, the limit is {MAX_PIXELS:,} in all")
        if (height, width) != image.shape[:2]:
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling(transform.resample)))
    return image if transform.crop is None else _crop(image, *transform.crop)


def _padded(image: Pixels, colour: tuple[int, int, int]) -> UInt8[np.ndarray, "side side 3"]:
    """A picture in the middle of a square; of an odd margin the smaller half comes first.

    One whose square would have more than MAX_PIXELS is made smaller before.
    """
    if max(image.shape) ** 2 > MAX_PIXELS:
        shrink = math.isqrt(MAX_PIXELS) / max(image.shape)
        height, width = (max(int(size * shrink), 1) for size in image.shape[:2])
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), colour, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def _resized(shape: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    if not isinstance(resize, int):
        return resize
    shorter = min(shape)
    height, width = (resize if side == shorter else int(resize * side / shorter) for side in shape)
    return height, width


def _crop(image: Pixels, height: int, width: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """The middle of a picture; odd rests leave one pixel more at the end, odd margins one more at the beginning."""
    rows, columns = image.shape[:2]
    around = [
        (-(-max(wanted - size, 0) // 2), max(wanted - size, 0) // 2) for wanted, size in ((height, rows), (width, columns))
    ]
    padded = np.pad(image, (*around, (0, 0)))
    top, left = max(rows - height, 0) // 2, max(columns - width, 0) // 2
    return padded[top : top + height, left : left + width]


def _open(data: bytes | str | os.PathLike) -> Image.Image:
    """The header of an image in one of the accepted formats."""
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)


def _read(path: str, name: str) -> bytes:
    if "://" in path or path.startswith("data:"):
        raise ImageError("address", f"{name}: expected a local file, got an address; download it first")
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError("no file", f"{name}: {error.strerror or error}") from None


def _rgb(image: Image.Image) -> np.ndarray:
    image.load()
    if EXIF & image.info.keys():  # asking costs more than decoding a small picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a channel: PIL's own conversion would clip to 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "La":  # which PIL turns into nothing else
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
