"""Directories in Hugging Face layout: read into a Model, written from one, and compared with one by `hf_forward`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmjax.interop import processors
from mmjax.interop.registry import ARCHITECTURES, choose, recognise
from mmjax.layers.lora import merge_lora
from mmjax.layers.parameters import Definition, Parameters, define
from mmjax.parallel.axes import shardings
from mmjax.systems.parts import PROVENANCE, build, config_dict, part_config
from mmjax.types import UserError
from mmjax.types.config import suggest
from mmjax.types.model import Model
from mmjax.weights import safetensors, table


@dataclasses.dataclass(frozen=True)
class Export:
    """What `save_pretrained` did.

    Args:
      architecture: the Hugging Face class of the directory.
      files: written.
      left_out: paths of our parameters for which that class has no place.
    """

    architecture: str
    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def from_pretrained(source: str | Path, dtype: Any = None, mesh: Mesh | None = None) -> Model:
    """Reads a directory in Hugging Face layout.

    Args:
      source: holds config.json and safetensors, and tokenizers where the model is to be used with text.
      dtype: of the parameters; None keeps that of the files.
      mesh: each device gets its own slices, straight from the files; None = the default device.

    Returns:
      The model. Parameters that its class does not store (the temperature and captioning head of BLIP-2's stage 1) are drawn
      anew, and config["absent"] names them.

    Raises:
      UserError: no such directory, an unsupported model, or weights that do not fit the config.
    """
    directory = Path(source)
    config = processors.read_json(directory / "config.json")
    name = recognise(config)
    try:
        parts = ARCHITECTURES[name].parts(config)
    except KeyError as error:
        raise UserError(f"{directory / 'config.json'} lacks {error}, which {name} needs") from None
    tensors = safetensors.open_directory(directory)
    parts, transform = processors.with_image_processor(ARCHITECTURES[name].settled(parts, tensors), directory, name)
    definition = define(build(parts))
    placement = None if mesh is None else shardings(definition.specs, mesh)
    parameters = table.read(ARCHITECTURES[name].table(parts), tensors, definition.specs, dtype, placement)
    absent = {path: spec for path, spec in definition.specs.items() if path not in parameters}
    parameters |= _initialised(Definition(definition.graphdef, absent), dtype, placement)
    return Model(
        definition,
        parameters,
        processors.load(directory, config, parts, transform),
        {"parts": parts, "architecture": name, "hf_config": config, "source": str(source), "absent": tuple(absent)},
    )


def _initialised(definition: Definition, dtype: Any, placement: Mapping[str, Any] | None) -> Parameters:
    values = definition.initialise(jax.random.key(0))
    return {
        path: jax.device_put(value if dtype is None else value.astype(dtype), placement and placement[path])
        for path, value in values.items()
    }


def describe(model: Model, architecture: str | None = None) -> tuple[str, dict[str, Any]]:
    """The Hugging Face class of a model and its config.json.

    Args:
      model: read from such a directory, or trained by us.
      architecture: None = the class that it was read as, else the one that computes what its parts compute.

    Raises:
      UserError: no such class.
    """
    parts = resolved_parts(model)
    name = architecture or model.config.get("architecture") or choose(parts)
    if name not in ARCHITECTURES:
        raise UserError(f"architecture={name!r} is not supported{suggest(name, ARCHITECTURES)}")
    original = model.config.get("hf_config", {}) if name == model.config.get("architecture") else {}
    config = _merge(original, ARCHITECTURES[name].config(parts)) | {"architectures": [name]}
    config["dtype"] = str(np.dtype(jnp.result_type(*(value.dtype for value in model.parameters.values()))))
    return name, processors.with_token_ids(config, model.processor)


def resolved_parts(model: Model) -> dict[str, dict[str, Any]]:
    """The model's parts with every field filled in."""
    return {
        name: {**config_dict(part_config(name, part)), **{key: part[key] for key in PROVENANCE if key in part}}
        for name, part in model.config["parts"].items()
    }


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `old`, inside nested mappings too."""
    nested = {
        key: _merge(old[key], value)
        for key, value in new.items()
        if isinstance(value, Mapping) and isinstance(old.get(key), Mapping)
    }
    return {**old, **new, **nested}


def save_pretrained(
    model: Model, directory: str | Path, *, architecture: str | None = None, shard_bytes: int = safetensors.SHARD_BYTES
) -> Export:
    """Writes a directory that `transformers` loads: config, weights, tokenizers, processor.

    Args:
      model: adapters are merged into their weights.
      directory: made where it does not exist.
      architecture: a class of `mmjax.interop.registry.ARCHITECTURES`; None = as `describe` says. A BLIP-2 whose Q-Former
        reads the question is written as InstructBLIP, the class that computes the same.
      shard_bytes: weights above this size are spread over several files.

    Returns:
      The class, the files, and the parameters that the class has no place for.
    """
    directory = Path(directory)
    name, config = describe(model, architecture)
    rows = ARCHITECTURES[name].table(resolved_parts(model))
    parameters = _merged(model)
    files = safetensors.save_directory(
        directory, table.write(rows, parameters, model.definition.specs), shard_bytes=shard_bytes
    )
    files.append(processors.write_json(directory / "config.json", config))
    files += processors.save(directory, name, config, resolved_parts(model), model.processor)
    written = {row.ours for row in rows}
    return Export(name, tuple(files), tuple(path for path in parameters if path not in written))


def _merged(model: Model) -> Parameters:
    adapters = [path for path in model.parameters if path.endswith(".lora_a")]
    if not adapters:
        return dict(model.parameters)
    layer: Any = model.definition.bind(model.parameters)
    for key in adapters[0].split(".")[:-1]:
        layer = layer[int(key)] if key.isdigit() else layer[key] if isinstance(layer, Mapping) else getattr(layer, key)
    return merge_lora(dict(model.parameters), layer.lora_scale * model.parameters[adapters[0]].shape[-1])


def hf_forward(model: Model, inputs: Mapping[str, Any]) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
    """Computes what the model's Hugging Face class computes, from the same inputs.

    Args:
      model: of any supported class.
      inputs: as that class takes them: input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, pixel_values
        [b 3 height width], qformer_input_ids, qformer_attention_mask, use_image_text_matching_head,
        interpolate_pos_encoding, output_hidden_states. Placeholders stand in front of BOS; rows may be padded on either
        side.

    Returns:
      That class's outputs under their names, as float32.

    Raises:
      UserError: an id outside the vocabulary, a row with another number of placeholders than soft tokens, a text or picture
        of a size that the model does not read.
    """
    name, config = describe(model)
    arrays = {key: np.asarray(value) for key, value in inputs.items() if not isinstance(value, bool) and value is not None}
    flags = {key: value for key, value in inputs.items() if isinstance(value, bool)}
    parts = resolved_parts(model)
    _check_inputs(arrays, config, parts)
    _check_pixels(arrays.get("pixel_values"), parts.get("encoders.image"), flags.get("interpolate_pos_encoding", False))

    def forward(parameters: Parameters, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return ARCHITECTURES[name].forward(model.definition.bind(parameters), {**arrays, **flags}, config)

    compiled = model.cache.setdefault(("interop.hf_forward", tuple(sorted(flags.items()))), jax.jit(forward))
    outputs = compiled(model.parameters, arrays)
    return jax.tree.map(lambda value: np.asarray(value, np.float32), jax.device_get(outputs))


def _check_inputs(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    connector, llm, text = (parts.get(name) for name in ("connectors.image", "llm", "encoders.text"))
    placeholder = config.get("image_token_index", -1)
    reader = llm or connector or text or {}
    sizes = {
        "input_ids": reader.get("vocab", 0),
        "decoder_input_ids": reader.get("vocab", 0),
        "qformer_input_ids": connector["vocab"] if connector else 0,
        "token_type_ids": reader.get("token_types", 0),
    }
    for name, size in sizes.items():
        ids = arrays.get(name)
        if ids is not None and ids.size and not ((ids == placeholder) | ((ids >= 0) & (ids < size))).all():
            raise UserError(f"{name}: expected ids from 0 to {size - 1}, got {ids.min()} … {ids.max()}")
    if connector and llm and "input_ids" in arrays:
        counts = (arrays["input_ids"] == placeholder).sum(1)
        if (counts != connector["queries"]).any():
            raise UserError(
                f"input_ids: expected {connector['queries']} placeholders (image_token_index={placeholder}) in each row, "
                f"got {counts.tolist()}"
            )
    if text:
        longest = part_config("encoders.text", text).max_length
        if arrays["input_ids"].shape[1] > longest:
            raise UserError(f"input_ids: expected at most {longest} tokens in each row, got {arrays['input_ids'].shape[1]}")


def _check_pixels(pixels: np.ndarray | None, vision: Mapping[str, Any] | None, resized: bool) -> None:
    """Pictures have the size of the positions, unless these are resized to them."""
    if pixels is None or vision is None or resized:
        return
    side = vision["image_size"]
    if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
        raise UserError(
            f"pixel_values: expected [b, 3, {side}, {side}], got {list(pixels.shape)}; interpolate_pos_encoding=True takes "
            "pictures of another size"
        )
