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


def raw_png(depth: int, colour: int, channels: int) -> tuple[bytes, np.ndarray]:
    """A PNG of 16 bits, which PIL reads but does not write, and its upper 8 bits."""
    values = np.random.default_rng(1).integers(0, 1 << 16, (3, 4, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 4, 3, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(
        b"IEND", b""
    ), values >> 8


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_of_every_kind_are_cut_to_eight(colour, channels):
    data, upper = raw_png(16, colour, channels)
    opaque = upper[..., :-1] if channels in (2, 4) else upper
    alpha = upper[..., -1:] / 255 if channels in (2, 4) else 1.0
    expected = np.broadcast_to(opaque * alpha + 255 * (1 - alpha), (3, 4, 3))
    np.testing.assert_allclose(decode_image(data), expected, atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "pil"])
def test_cmyk_is_converted_as_by_pil(kind):
    image = Image.fromarray(pixels(16, 16)).convert("CMYK")
    data = encode(image, "JPEG", quality=100) if kind == "JPEG" else image
    opened = Image.open(io.BytesIO(data)) if kind == "JPEG" else image
    assert opened.mode == "CMYK"
    np.testing.assert_array_equal(decode_image(data), np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_every_kind_of_transparency_is_composited_on_white(mode):
    grey, palette = Image.fromarray(np.array([[[0, 255], [0, 0], [0, 128]]], np.uint8), "LA"), Image.new("PA", (3, 1))
    palette.putpalette([0, 0, 0])
    palette.putdata([(0, 255), (0, 0), (0, 128)])
    image = {"PA": palette, "RGBa": grey.convert("RGBA").convert("RGBa")}.get(mode) or grey.convert(mode)
    np.testing.assert_allclose(decode_image(image)[0, :, 0], [0, 255, 127], atol=1)
    if mode == "LA":
        np.testing.assert_array_equal(decode_image(encode(image, "PNG")), decode_image(image))


def test_orientation_of_a_photograph():
    """The three turns of a camera."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # white where the picture begins
    for orientation, turn in {3: 2, 6: 1, 8: 3}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(Image.fromarray(np.rot90(upright, turn)), "JPEG", exif=exif, quality=95)
        np.testing.assert_allclose(decode_image(data).astype(int), upright, atol=12)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(mode):
    with pytest.raises(ImageError, match="x.png: 32 bits a pixel, whose range nobody knows; give 8 bits, or 16") as error:
        decode_image(Image.new(mode, (3, 2), 1), name="x.png")
    assert error.value.reason == "wrong values"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(decode_image(data)[0, 0], [255, 0, 0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (1, 40), (2, 3)])
@pytest.mark.parametrize("transform", [((8, 8), None), (8, (8, 8)), (8, None)])
def test_strips_keep_their_size_or_are_told(shape, transform):
    image, (resize, crop) = np.full((*shape, 3), 9, np.uint8), transform
    resized = transform_image(image, ImageTransform(resize, crop))
    wanted = (8, 8) if crop or resize == (8, 8) else tuple(8 * side // min(shape) for side in shape)
    assert resized.shape == (*wanted, 3) and (resized == 9).all()


def test_a_strip_that_would_fill_the_memory_is_told():
    for shape in ((1, 100_000), (100_000, 1)):
        with pytest.raises(
            ImageError, match="strip.png: .* pixels would become .* by their shorter side, the limit is 32,0"
        ) as error:
            transform_image(np.zeros((*shape, 3), np.uint8), ImageTransform(224, (224, 224)), name="strip.png")
        assert error.value.reason == "too long"


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares any size."""
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
