"""Hugging Face's preprocessor_config.json <-> how pictures are resized, cropped and normalised."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.data.media.image import BICUBIC, BILINEAR, FILTERS, ImageTransform
from mmjax.data.media.tiles import Tiling
from mmjax.encoders.vit import HALF, OPENAI_MEAN, OPENAI_STD
from mmjax.types import UserError

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """A class of image processors, by its defaults.

    Args:
      size: side of the pictures.
      resample: number of PIL's filter.
      mean, std: of the pixels.
      square: whether one number as size means a square, not the shorter side.
      crop: whether the middle is cut out of a picture resized by its shorter side.
      do_pad: what do_pad=true asks for: "square", a margin of the mean colour; "tiles", nothing here, since it is about
        batches; "" = it is not supported.
    """

    size: int
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: bool = True
    crop: bool = False
    do_pad: str = ""


_CLIP = ImageProcessor(224, BICUBIC, OPENAI_MEAN, OPENAI_STD, square=False, crop=True)
_BLIP = ImageProcessor(384, BICUBIC, OPENAI_MEAN, OPENAI_STD)
VIDEO = "InstructBlipVideoVideoProcessor"  # does to each frame what BLIP's does to pictures
PROCESSORS: dict[str, ImageProcessor] = {
    "ViTImageProcessor": ImageProcessor(224, BILINEAR, HALF, HALF),
    "CLIPImageProcessor": _CLIP,
    "LlavaImageProcessor": dataclasses.replace(_CLIP, do_pad="square"),
    "LlavaNextImageProcessor": dataclasses.replace(_CLIP, do_pad="tiles"),
    "SiglipImageProcessor": ImageProcessor(224, BICUBIC, HALF, HALF, square=False),
    "BlipImageProcessor": _BLIP,
    "InstructBlipVideoImageProcessor": _BLIP,  # its name in transformers 4
    VIDEO: _BLIP,
}


def processor_of(architecture: str) -> str:
    """The image processor that goes with a Hugging Face class, for directories that name none."""
    stems = {
        "ViT": "ViTImageProcessor",
        "CLIP": "CLIPImageProcessor",
        "Siglip": "SiglipImageProcessor",
        "LlavaNext": "LlavaNextImageProcessor",
        "Llava": "LlavaImageProcessor",
    }
    return next((name for stem, name in stems.items() if architecture.startswith(stem)), "BlipImageProcessor")


def default_transform(name: str, size: int) -> ImageTransform:
    """What a class of PROCESSORS does to reach pictures of this size."""
    kind = PROCESSORS[name]
    return ImageTransform(size, (size, size), kind.resample) if kind.crop else ImageTransform((size, size), None, kind.resample)


def read(settings: Settings, architecture: str) -> tuple[ImageTransform, tuple[float, ...], tuple[float, ...]]:
    """What a preprocessor_config.json asks for.

    Args:
      settings: the file, of any release of transformers.
      architecture: the model's class, which decides where the file does not name a processor.

    Returns:
      The transform, and the mean and deviation of pixels on the scale 0…1, into which another rescale_factor is folded.

    Raises:
      UserError: another class of processors, or a step that is not built.
    """
    kind = PROCESSORS[named(settings, architecture)]
    mean, std = (settings.get(f"image_{key}") or default for key, default in (("mean", kind.mean), ("std", kind.std)))
    transform, pads = _transform(settings, kind), settings.get("do_pad")
    if pads and not kind.do_pad:
        raise UserError("preprocessor_config.json: do_pad=true is not supported")
    if pads and kind.do_pad == "square":
        transform = dataclasses.replace(transform, pad=tuple(int(255 * value) for value in mean))
    return transform, *_statistics(settings, mean, std)


def named(settings: Settings, architecture: str) -> str:
    """The entry of PROCESSORS that a preprocessor_config.json names; arguments and errors as of `read`."""
    kinds = (settings.get(f"{what}_type") for what in ("image_processor", "video_processor", "feature_extractor"))
    name = next(filter(None, kinds), None) or processor_of(architecture)
    stem = name.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if stem not in PROCESSORS:
        raise UserError(
            f"preprocessor_config.json: image_processor_type={name!r} is not supported; there are {', '.join(PROCESSORS)}"
        )
    return stem


def read_tiling(settings: Settings, architecture: str, grids: Any, side: int, patches: int) -> Tiling | None:
    """How pictures are cut into tiles; None where the processor is not one that does.

    Args:
      settings, architecture: as of `read`.
      grids: of the model's config, for a file that names none.
      side: of the pictures that the encoder reads, in pixels.
      patches: soft tokens along the side of a tile.

    Raises:
      UserError: the tiles are not of this side.
    """
    if PROCESSORS[named(settings, architecture)].do_pad != "tiles":
        return None
    transform, _, _ = read(settings, architecture)
    if transform.resize not in (side, (side, side)) or transform.crop not in (None, (side, side)):
        raise UserError(
            f"preprocessor_config.json: tiles of size={transform.resize} and crop_size={transform.crop}, the encoder reads "
            f"{side}"
        )
    grids = settings.get("image_grid_pinpoints") or grids
    try:
        return Tiling(tuple((int(height), int(width)) for height, width in grids), side, patches, transform.resample)
    except (TypeError, ValueError) as error:
        raise UserError(f"image_grid_pinpoints: {error}") from None


def _transform(settings: Settings, kind: ImageProcessor) -> ImageTransform:
    square = settings.get("default_to_square")
    resize = _size(settings.get("size") or kind.size, kind.square if square is None else square)
    resample = settings.get("resample")
    resample = kind.resample if resample is None else resample
    if resample not in FILTERS:
        raise UserError(f"preprocessor_config.json: resample={resample!r} is no filter of PIL; there are {list(FILTERS)}")
    crop = _size(settings.get("crop_size") or kind.size, True)
    return ImageTransform(
        resize=resize if settings.get("do_resize", True) else None,
        crop=crop if settings.get("do_center_crop", kind.crop) else None,
        resample=int(resample),
    )


def _size(size: Any, square: bool) -> tuple[int, int] | int:
    """(height, width), or one number: the length of the shorter side."""
    if isinstance(size, int):
        return (size, size) if square else size
    if isinstance(size, list | tuple) and len(size) == 2:
        return tuple(size)
    if isinstance(size, Mapping):
        named = {key for key, value in size.items() if value is not None}
        if named == {"height", "width"}:
            return size["height"], size["width"]
        if named == {"shortest_edge"}:
            return size["shortest_edge"]
    raise UserError(
        f"preprocessor_config.json: a size of {size!r} is not supported; expected height and width, or shortest_edge"
    )


def _statistics(settings: Settings, mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation m, s such that (x / 255 − m) / s is what the processor makes of a value x of 0…255."""
    scale = 255 * (settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0)
    if not settings.get("do_normalize", True):
        mean, std = 0.0, 1.0
    mean, std = ([value] * 3 if isinstance(value, int | float) else value for value in (mean, std))
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def write(name: str, transform: ImageTransform, mean: Any, std: Any) -> dict[str, Any]:
    """The preprocessor_config.json of a class of PROCESSORS."""
    settings: dict[str, Any] = {
        "image_processor_type": name,
        "do_convert_rgb": True,
        "do_resize": transform.resize is not None,
        "resample": transform.resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if transform.resize is not None:
        shorter = isinstance(transform.resize, int)
        settings["size"] = {"shortest_edge": transform.resize} if shorter else _named(transform.resize)
    if transform.crop is not None or PROCESSORS[name].crop:
        settings["do_center_crop"] = transform.crop is not None
    if transform.crop is not None:
        settings["crop_size"] = _named(transform.crop)
    if PROCESSORS[name].do_pad == "square":
        settings["do_pad"] = transform.pad is not None
        if transform.pad not in (None, wanted := tuple(int(255 * value) for value in mean)):
            raise UserError(f"{name} pads with the mean colour {wanted}, not with {transform.pad}")
    elif transform.pad is not None:
        raise UserError(f"{name} does not make squares by a margin")
    return settings


def _named(size: Any) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}
