"""Decoding: what is accepted comes out as RGB, what is not is refused with one line."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmjax.data.media.image import ImageError, ImageTransform, decode_image, transform_image
from mmjax.types import UserError


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(height=5, width=7, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_come_back_exactly(kind):
    values = pixels()
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(values), kind, **options)), values)


def test_path_pil_and_array_are_accepted(tmp_path):
    values = pixels()
    file = tmp_path / "a.png"
    file.write_bytes(encode(Image.fromarray(values), "PNG"))
    for data in (file, str(file), Image.fromarray(values), values):
        np.testing.assert_array_equal(decode_image(data), values)


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    np.testing.assert_array_equal(decode_image(encode(image, "PNG")), [[[255, 0, 0], [255, 255, 255]]])


def test_transparent_palette_is_composited_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG", transparency=1)), [[[10, 20, 30], [255, 255, 255]]])


def test_orientation_is_applied():
    image = Image.fromarray(pixels(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    decoded = decode_image(encode(image, "PNG", exif=exif))
    np.testing.assert_array_equal(decoded, np.rot90(np.asarray(image), -1))


def test_sixteen_bits_are_scaled():
    image = Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16))
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"))[0, :, 0], [0, 128, 255])


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(data)[0, 0], [255, 0, 0])


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares any size."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [6000, 11000, 16000])  # below, between and above PIL's own two limits
def test_size_is_refused_from_the_header(side):
    with pytest.raises(ImageError, match="x.png") as caught:
        decode_image(bomb(side, side), name="x.png")
    assert caught.value.reason == "too large"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"<html>404</html>", "not an image"),
        (encode(Image.fromarray(pixels()), "TIFF"), "not an image"),
        (encode(Image.fromarray(pixels(64, 64)), "PNG")[:2000], "damaged"),
        (encode(Image.fromarray(pixels(64, 64)), "JPEG")[:900], "damaged"),
        ("https://example.org/a.png", "address"),
        ("file:///etc/passwd", "address"),
        ("/no/such/file.png", "no file"),
        (np.zeros((3, 3), np.uint8), "wrong array"),
    ],
)
def test_refusals_name_the_reason(data, reason):
    with pytest.raises(UserError) as caught:
        decode_image(data, name="holiday.png")
    assert caught.value.reason == reason
    assert "holiday.png" in str(caught.value) and "\n" not in str(caught.value)


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(ImageError("damaged", "x: damaged")))
    assert (error.reason, str(error)) == ("damaged", "x: damaged")


def test_resize_is_bicubic_and_square():
    values, square = pixels(5, 9), ImageTransform((4, 4))
    expected = np.asarray(Image.fromarray(values).resize((4, 4), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(transform_image(values, square), expected)
    assert transform_image(expected, square) is expected
