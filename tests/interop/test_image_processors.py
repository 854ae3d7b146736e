"""Pictures are prepared as the PIL image processors of transformers prepare them, from the same preprocessor_config.json."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from mmjax.data.media.image import ImageTransform, decode_image, transform_image
from mmjax.encoders.vit import HALF, OPENAI_MEAN
from mmjax.interop import image_processors
from mmjax.types import UserError

SHAPES = [(30, 30), (37, 61), (61, 37), (5, 90), (200, 31)]
CASES = [
    (ViTImageProcessorPil, {}),
    (ViTImageProcessorPil, {"size": {"height": 31, "width": 17}, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}),
    (ViTImageProcessorPil, {"size": 33, "do_normalize": False}),
    (ViTImageProcessorPil, {"size": {"shortest_edge": 20}, "resample": 0}),
    (CLIPImageProcessorPil, {}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 33}, "crop_size": {"height": 33, "width": 33}}),
    (CLIPImageProcessorPil, {"size": 32, "crop_size": 29}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 20}, "crop_size": {"height": 31, "width": 50}}),  # beyond the picture
    (CLIPImageProcessorPil, {"do_resize": False, "crop_size": {"height": 32, "width": 45}}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 25}, "do_center_crop": False}),
    (CLIPImageProcessorPil, {"size": {"height": 25, "width": 40}, "do_center_crop": False, "rescale_factor": 1 / 127.5}),
    (SiglipImageProcessorPil, {}),
    (SiglipImageProcessorPil, {"size": {"height": 38, "width": 38}, "resample": 2, "do_rescale": False}),
    (LlavaImageProcessorPil, {"size": {"shortest_edge": 29}, "crop_size": {"height": 29, "width": 29}}),
    (LlavaImageProcessorPil, {"size": {"shortest_edge": 29}, "crop_size": {"height": 29, "width": 29}, "do_pad": True}),
    (LlavaImageProcessorPil, {"size": 20, "do_center_crop": False, "do_pad": True, "image_mean": [0.1, 0.2, 0.3]}),
    (BlipImageProcessorPil, {"size": {"height": 22, "width": 22}}),
]


def picture(height, width):
    draw = np.random.default_rng(height * 1000 + width)
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("cls", "settings"), CASES)
def test_pixels_are_those_of_transformers(cls, settings):
    theirs = cls(**settings)
    transform, mean, std = image_processors.read(theirs.to_dict(), "ViTModel")
    for shape in SHAPES:
        expected = theirs(Image.fromarray(picture(*shape)), return_tensors="np")["pixel_values"][0]
        pixels = transform_image(picture(*shape), transform)
        assert pixels.dtype == np.uint8
        got = (pixels.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
        np.testing.assert_allclose(got.transpose(2, 0, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("cls", "settings"), CASES)
def test_what_is_written_is_read_by_both(cls, settings, tmp_path):
    name = cls.__name__.removesuffix("Pil")
    transform, mean, std = image_processors.read(cls(**settings).to_dict(), "ViTModel")
    written = image_processors.write(name, transform, mean, std)
    again, *statistics = image_processors.read(written, "ViTModel")
    assert again == transform
    np.testing.assert_allclose(statistics, [mean, std], rtol=1e-12)
    expected, got = (
        processor(Image.fromarray(picture(37, 61)), return_tensors="np") for processor in (cls(**settings), cls(**written))
    )
    np.testing.assert_allclose(got["pixel_values"], expected["pixel_values"], rtol=1e-4, atol=1e-5)


def test_tiles_are_those_of_transformers():
    """Also the numbers of a file that says (height, width) and of one that leaves the grids to config.json."""
    grids = [[20, 40], [40, 20], [40, 40]]
    size = {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}, "resample": 2}
    theirs = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=grids)
    for settings in (theirs.to_dict(), {**theirs.to_dict(), "image_grid_pinpoints": None}):
        tiling = image_processors.read_tiling(settings, "LlavaNextForConditionalGeneration", grids, 20, 2)
        _, mean, std = image_processors.read(settings, "LlavaNextForConditionalGeneration")
        for shape in SHAPES:
            expected = theirs(Image.fromarray(picture(*shape)), return_tensors="np")["pixel_values"][0]
            got = (tiling.cut(picture(*shape)).astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
            np.testing.assert_allclose(got.transpose(0, 3, 1, 2), expected, rtol=1e-5, atol=1e-5)
    assert image_processors.read_tiling({}, "LlavaForConditionalGeneration", None, 20, 2) is None
    with pytest.raises(UserError, match=r"tiles of size=20 and crop_size=\(20, 20\), the encoder reads 28"):
        image_processors.read_tiling(theirs.to_dict(), "LlavaNextForConditionalGeneration", grids, 28, 2)


@pytest.mark.parametrize(
    ("settings", "architecture", "transform", "mean"),
    [
        # As old releases wrote them: plain numbers, feature extractors, no class at all.
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 36},
            "CLIPModel", ImageTransform(40, (36, 36)), OPENAI_MEAN,
        ),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 40}, "ViTModel", ImageTransform((40, 40), None, 2), HALF),
        (
            {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 9, "width": 9}},
            "SiglipModel", ImageTransform((9, 9)), HALF,
        ),
        ({"size": {"height": 8, "width": 8}}, "InstructBlipForConditionalGeneration", ImageTransform((8, 8)), OPENAI_MEAN),
        (
            {"size": {"shortest_edge": 8, "longest_edge": None}},
            "CLIPVisionModel", ImageTransform(8, (224, 224)), OPENAI_MEAN,
        ),
    ],
)  # fmt: skip
def test_files_of_all_releases(settings, architecture, transform, mean):
    got = image_processors.read(settings, architecture)
    assert got[:2] == (transform, mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "ConvNextImageProcessor"}, "'ConvNextImageProcessor' is not supported; there are ViT"),
        ({"do_pad": True}, "do_pad=true"),
        ({"size": {"longest_edge": 30}}, "size of {'longest_edge': 30} is not supported"),
        ({"resample": 9}, "resample=9 is no filter"),
    ],
)
def test_what_is_not_built_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        image_processors.read(settings, "CLIPModel")


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16"])
def test_pictures_of_other_modes_are_made_rgb_first(mode):
    image = Image.fromarray(picture(40, 30)[..., 0] if mode == "L" else picture(40, 30))
    image = Image.fromarray(picture(40, 30)[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    pixels = transform_image(decode_image(image), ImageTransform((9, 7)))
    assert pixels.shape == (9, 7, 3) and pixels.dtype == np.uint8 and pixels.std() > 1
    if mode not in ("I;16",):
        expected = ViTImageProcessorPil(size={"height": 9, "width": 7}, do_normalize=False, resample=3)(image.convert("RGB"))
        np.testing.assert_allclose(pixels.transpose(2, 0, 1) / 255, expected["pixel_values"][0], atol=1e-5)
