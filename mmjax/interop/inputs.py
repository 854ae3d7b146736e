"""The inputs of `hf_forward`: whatever does not fit the model, or one another, is told before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.interop import qformer_inputs
from mmjax.interop.llava_inputs import with_soft_index
from mmjax.interop.placeholders import placeholder_id, placeholder_key
from mmjax.systems.parts import connector_only, part_config, reads_source, soft_tokens
from mmjax.types import UserError

Arrays = dict[str, np.ndarray]
Parts = Mapping[str, Mapping[str, Any]]

IDS = ("input_ids", "decoder_input_ids", "qformer_input_ids", "token_type_ids")
SHAPED_AS = {
    "attention_mask": "input_ids",
    "token_type_ids": "input_ids",
    "decoder_attention_mask": "decoder_input_ids",
    "qformer_attention_mask": "qformer_input_ids",
}


def checked(
    arrays: Arrays, flags: Mapping[str, bool], config: Mapping[str, Any], parts: Parts, *, reads_text: bool = True
) -> Arrays:
    """The inputs of a class, with the placeholders that files of transformers 4 leave out, or as `with_soft_index` makes them.

    Args:
      arrays, flags: as `hf_forward` takes them.
      config: config.json of the class.
      parts: of the model, resolved.
      reads_text: whether the class takes input_ids, where its parts could read them.

    Raises:
      UserError: naming the input, what was expected and what came.
    """
    if connector_only(parts):
        return qformer_inputs.checked(arrays, part_config("connectors.image", parts["connectors.image"]), reads_text=reads_text)
    _check_names(arrays, parts, reads_text)
    _check_pixels(arrays.get("pixel_values"), parts.get("encoders.image"), flags.get("interpolate_pos_encoding", False))
    _check_shapes(arrays, flags, parts)
    _check_lengths(arrays, config, parts)
    placeholder = placeholder_id(config) if "connectors.image" in parts else -1
    if "connectors.image" not in parts or "llm" not in parts:
        _check_ids(arrays, placeholder, parts)
        return arrays
    if _counts_pictures(parts):
        _check_ids(arrays, placeholder, parts)
        return with_soft_index(arrays, config, parts)
    wanted = soft_tokens(parts) * _frames(arrays["pixel_values"])
    arrays = _with_placeholders(arrays, placeholder, wanted)
    _check_ids(arrays, placeholder, parts)
    counts = (arrays["input_ids"] == placeholder).sum(1)
    if (counts != wanted).any():
        raise UserError(
            f"input_ids: expected {wanted} placeholders ({placeholder_key(config)}={placeholder}) in each row, "
            f"got {counts.tolist()}"
        )
    return arrays


def _counts_pictures(parts: Parts) -> bool:
    """Whether pictures are counted through all rows, each of which may have any number of them, as in LLaVA."""
    return parts.get("connectors.image", {}).get("family") == "linear"


def _check_names(arrays: Arrays, parts: Parts, reads_text: bool) -> None:
    """What the model reads is there."""
    connector, llm = parts.get("connectors.image"), parts.get("llm")
    needed = {
        "input_ids": reads_text and (llm or connector or parts.get("encoders.text")),
        "pixel_values": parts.get("encoders.image") and not _counts_pictures(parts),
        "decoder_input_ids": reads_source(parts) and llm and llm["decoder_layers"],
        "qformer_input_ids": llm and connector and connector.get("vocab"),
    }
    if missing := [name for name, reads in needed.items() if reads and name not in arrays]:
        raise UserError(f"inputs lack {' and '.join(missing)}; there are {', '.join(arrays) or 'none'}")


def _check_shapes(arrays: Arrays, flags: Mapping[str, bool], parts: Parts) -> None:
    """Ids are rows of whole numbers, a mask has the shape of its ids, and what belongs together has as many rows."""
    for name in IDS:
        ids = arrays.get(name)
        if ids is not None and (ids.ndim != 2 or ids.dtype.kind not in "iu"):
            raise UserError(f"{name}: expected whole numbers [rows, tokens], got {ids.dtype} {list(ids.shape)}")
    for mask, ids in SHAPED_AS.items():
        if mask in arrays and ids in arrays and arrays[mask].shape != arrays[ids].shape:
            raise UserError(f"{mask}: expected {list(arrays[ids].shape)}, the shape of {ids}, got {list(arrays[mask].shape)}")
    positions = arrays.get("position_ids")
    if positions is not None:
        rows, length = arrays["input_ids"].shape
        if positions.shape not in ((length,), (1, length), (rows, length)):
            raise UserError(f"position_ids: expected {[rows, length]}, the shape of input_ids, got {list(positions.shape)}")
    if "connectors.image" not in parts or ("llm" not in parts and not flags.get("use_image_text_matching_head")):
        return  # encoders: of pictures and of texts there may be different numbers
    rows = {
        name: len(arrays[name])
        for name in ("input_ids", "pixel_values", "decoder_input_ids", "qformer_input_ids")
        if name in arrays and not (name == "pixel_values" and _counts_pictures(parts))
    }
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name}={count}" for name, count in rows.items())
        raise UserError(f"inputs that belong together must have equally many rows, got {counts}")


def _check_pixels(pixels: np.ndarray | None, vision: Mapping[str, Any] | None, resized: bool) -> None:
    """Pictures have the size of the positions, unless these are resized to them."""
    if pixels is None or vision is None:
        return
    side, least = vision["image_size"], vision["patch_size"]
    whole = pixels.ndim in (4, 5) and pixels.shape[-3] == 3
    if not whole or (not resized and pixels.shape[-2:] != (side, side)):
        raise UserError(
            f"pixel_values: expected [b, 3, {side}, {side}], got {list(pixels.shape)}; interpolate_pos_encoding=True takes "
            "pictures of another size"
        )
    if min(pixels.shape[-2:]) < least:
        raise UserError(f"pixel_values: expected pictures of at least one patch, {least} × {least}, got {list(pixels.shape)}")


def _with_placeholders(arrays: Arrays, placeholder: int, count: int) -> Arrays:
    """The inputs with so many placeholders in front of each row, unless a row has some."""
    tokens = arrays["input_ids"]
    if (tokens == placeholder).any():
        return arrays
    slots = np.full((len(tokens), count), placeholder, tokens.dtype)
    arrays = {**arrays, "input_ids": np.concatenate([slots, tokens], 1)}
    if "attention_mask" in arrays:
        mask = arrays["attention_mask"]
        arrays["attention_mask"] = np.concatenate([np.ones_like(slots, mask.dtype), mask], 1)
    return arrays


def _frames(pixels: np.ndarray) -> int:
    """Pictures of a row."""
    return pixels.shape[1] if pixels.ndim == 5 else 1


def _check_ids(arrays: Arrays, placeholder: int, parts: Parts) -> None:
    """Ids have rows in their embedding."""
    connector, llm, text = (parts.get(name) for name in ("connectors.image", "llm", "encoders.text"))
    reader = llm or connector or text or {}
    sizes = {
        "input_ids": reader.get("vocab", 0),
        "decoder_input_ids": reader.get("vocab", 0),
        "qformer_input_ids": connector.get("vocab", 0) if connector else 0,
        "token_type_ids": reader.get("token_types", 0),
    }
    for name, size in sizes.items():
        ids = arrays.get(name)
        if ids is not None and ids.size and not ((ids == placeholder) | ((ids >= 0) & (ids < size))).all():
            raise UserError(f"{name}: expected ids from 0 to {size - 1}, got {ids.min()} … {ids.max()}")


def _check_lengths(arrays: Arrays, config: Mapping[str, Any], parts: Parts) -> None:
    """Texts are not longer than a table of learned positions, where the last one would be read again and again."""
    connector, text = parts.get("connectors.image"), parts.get("encoders.text")
    longest = {}
    if text:
        longest["input_ids"] = part_config("encoders.text", text).max_length
    if "llm" in parts and connector and connector.get("vocab"):
        longest["qformer_input_ids"] = connector["max_positions"]
    elif "llm" not in parts and connector:
        slots = connector["queries"] if config.get("image_token_index") is not None else 0
        longest["input_ids"] = slots + connector["max_positions"]
    for name, most in longest.items():
        if name in arrays and arrays[name].shape[1] > most:
            raise UserError(f"{name}: expected at most {most} tokens in each row, got {arrays[name].shape[1]}")
