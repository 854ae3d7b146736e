"""Directories in Hugging Face layout: read into a Model, written from one, and compared with one by `hf_forward`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmjax.interop import adapter_reader, adapter_writer, adapters, hub, processors
from mmjax.interop import inputs as inputs_of_class
from mmjax.interop.registry import ARCHITECTURES, choose, recognise
from mmjax.interop.vocabulary import grow, with_room
from mmjax.layers.lora import add_lora, is_factor, lora_scales, merge_lora
from mmjax.layers.parameters import Definition, Parameters, define
from mmjax.parallel.axes import shardings
from mmjax.systems.parts import PROVENANCE, build, config_dict, part_config
from mmjax.types import UserError
from mmjax.types.config import suggest
from mmjax.types.model import Model
from mmjax.weights import pickles, safetensors, table
from mmjax.weights.safetensors import Tensors

log = logging.getLogger(__name__)


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


def from_pretrained(
    source: str | Path,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    base: str | Path | None = None,
    pickle: bool = False,
    part: str = "",
) -> Model:
    """Reads a directory in Hugging Face layout, or a PEFT adapter and its base.

    Args:
      source: directory or hub id. It holds config.json and safetensors, and tokenizers where the model is to be used with
        text; or adapter_config.json and the adapter's weights, which stay adapters in the model.
      dtype, mesh, base, pickle: as of `mmjax.from_pretrained`; each device gets its own slices, straight from the files.
      part: read the weights of this part alone, where the model has it, as the source of another model's; "" = all.

    Returns:
      The model. Parameters that its class does not store (the temperature and captioning head of BLIP-2's stage 1) are drawn
      anew, and config["absent"] names them.

    Raises:
      UserError: no such directory, an unsupported model, or weights that do not fit the config.
    """
    directory = given = hub.local_directory(source, pickle=pickle)
    is_adapter = (directory / adapters.CONFIG).is_file()
    if is_adapter:
        directory = hub.local_directory(base or adapters.base_of(directory), pickle=pickle)
        if not directory.is_dir():
            raise UserError(
                f"the adapter {source} is for {directory}, which is not here; give its directory, as base= or --base"
            )
    elif base is not None:
        raise UserError(f"{source} holds no {adapters.CONFIG}, so that it adapts nothing: leave base={base} out")
    config = processors.read_json(directory / "config.json")
    name = recognise(config)
    config |= {key: value for key, value in ARCHITECTURES[name].defaults.items() if config.get(key) is None}
    try:
        parts = ARCHITECTURES[name].parts(config)
    except KeyError as error:
        raise UserError(f"{directory / 'config.json'} lacks {error}, which {name} needs") from None
    tensors = open_weights(directory, pickle=pickle)
    parts, fit = processors.with_image_processor(ARCHITECTURES[name].settled(parts, tensors), directory, name, config)
    rows, system, adapter = ARCHITECTURES[name].table(parts), build(parts), None
    if is_adapter:
        adapter = adapter_reader.read(given, open_weights(given, pickle=pickle, adapter=True), rows, define(system).specs)
        tensors = Tensors(directory, {**tensors, **adapter.copies})
        add_lora(system, adapter.rules)
    definition = define(system)
    placement = None if mesh is None else shardings(definition.specs, mesh)
    prefix = f"{part}." if part in parts else ""
    parameters = table.read(rows, tensors, definition.specs, dtype, placement, prefixes=(prefix,))
    if adapter is not None:
        parameters |= _placed(adapter.factors, dtype, placement)
    stored = {row.ours for row in rows} | parameters.keys()
    absent = {path: spec for path, spec in definition.specs.items() if path.startswith(prefix) and path not in stored}
    parameters |= _placed(Definition(definition.graphdef, absent).initialise(jax.random.key(0)), dtype, placement)
    details = {"parts": parts, "architecture": name, "hf_config": config, "source": str(source), "absent": tuple(absent)}
    details["unread"] = table.unread(rows, tensors)
    if adapter is not None:
        details["base"] = str(directory)
    tokenizers = given if (given / "tokenizer.json").is_file() else directory
    return Model(definition, parameters, processors.load(tokenizers, config, parts, fit), details)


def open_weights(directory: Path, *, pickle: bool, adapter: bool = False) -> Tensors:
    """The tensors of a directory, of a model or of an adapter; pickled ones on request, where there are no others."""
    if pickle and not any(directory.glob("*.safetensors")):
        return pickles.open_directory(directory, adapters.STEM if adapter else "pytorch_model")
    return safetensors.open_directory(directory, adapters.STEM if adapter else "model")


def _placed(values: Mapping[str, Any], dtype: Any, placement: Mapping[str, Any] | None) -> Parameters:
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
    parts = with_room(resolved_parts(model), model.processor)
    name = architecture or model.config.get("architecture") or choose(parts)
    if name not in ARCHITECTURES:
        raise UserError(f"architecture={name!r} is not supported{suggest(name, ARCHITECTURES)}")
    original = model.config.get("hf_config", {}) if name == model.config.get("architecture") else {}
    config = _merge(original, ARCHITECTURES[name].config(parts)) | {"architectures": [name]}
    weights = [value.dtype for path, value in model.parameters.items() if not is_factor(path)]
    config["dtype"] = str(np.dtype(jnp.result_type(*weights)))
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
    model: Model,
    directory: str | Path,
    *,
    architecture: str | None = None,
    shard_bytes: int = safetensors.SHARD_BYTES,
    base: str | Path | None = None,
) -> Export:
    """Writes a directory that `transformers` or `peft` loads: config, weights, tokenizers, processor.

    Args:
      model: read or trained.
      directory: made where it does not exist.
      architecture: a class of `mmjax.interop.registry.ARCHITECTURES`; None = as `describe` says. A BLIP-2 whose Q-Former
        reads the question is written as InstructBLIP, the class that computes the same.
      shard_bytes: weights above this size are spread over several files.
      base: None = the whole model, its adapters merged into their weights. A directory in Hugging Face layout, or hub id =
        a PEFT adapter of it: the LoRA adapters together with every other weight that differs from the base's.

    Returns:
      The class, the files, and the parameters that the class has no place for.

    Raises:
      UserError: no such class, or a base of another one.
    """
    directory = Path(directory)
    name, config = describe(model, architecture)
    parts, specs = with_room(resolved_parts(model), model.processor), model.definition.specs
    grows = parts != resolved_parts(model)
    vision = parts.get("encoders.image", {})
    if vision.get("final_eps") != vision.get("eps"):
        log.warning(
            "%s has one layer_norm_eps, %g is written; the norm after the vision tower had %g (LAVIS's ln_vision)",
            name, vision["eps"], vision["final_eps"],
        )  # fmt: skip
    rows, scales = ARCHITECTURES[name].table(parts), lora_scales(model.definition)
    if base is None:
        parameters = merge_lora(dict(model.parameters), scales)
        if grows:
            parameters, specs = grow(parameters, specs, parts["llm"]["vocab"])
        files = safetensors.save_directory(directory, table.write(rows, parameters, specs), shard_bytes=shard_bytes)
        files.append(processors.write_json(directory / "config.json", config))
    elif grows:
        raise UserError("the image placeholder needs a row that the base's vocabulary lacks: write the whole model (--to=hf)")
    else:
        parameters = {path: value for path, value in model.parameters.items() if not is_factor(path)}
        folder = hub.local_directory(base)
        if (other := recognise(processors.read_json(folder / "config.json"))) != name:
            raise UserError(f"the base {base} is of the class {other}, the model of {name}: it cannot be its adapter")
        task = "CAUSAL_LM" if name.endswith("ForCausalLM") else None
        weights = safetensors.open_directory(folder)
        files = adapter_writer.write(directory, str(base), weights, rows, dict(model.parameters), specs, scales, task)
    files += processors.save(directory, name, config, parts, model.processor)
    written = {row.ours for row in rows}
    return Export(name, tuple(files), tuple(path for path in parameters if path not in written))


def base_of(model: Model) -> str | None:
    """The directory or hub id that a model is an adaptation of: of the adapter that it was read from, else of all its parts."""
    first, *others = (part.get("source") for part in model.config["parts"].values())
    alone = isinstance(first, str) and all(other == first for other in others)
    return model.config.get("base") or (first if alone else None)


def hf_forward(model: Model, inputs: Mapping[str, Any]) -> dict[str, np.ndarray | tuple[np.ndarray, ...]]:
    """Computes what the model's Hugging Face class computes, from the same inputs.

    Args:
      model: of any supported class.
      inputs: as that class takes them: input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, pixel_values
        [b 3 height width], of videos [b frames 3 height width], of LLaVA [pictures 3 height width], of LLaVA-NeXT
        [pictures tiles 3 height width] with image_sizes [pictures 2], qformer_input_ids, qformer_attention_mask,
        use_image_text_matching_head, interpolate_pos_encoding, output_hidden_states. BLIP-2's placeholders stand in front of
        BOS; where no row has any, as for transformers 4, they are put before everything. LLaVA's stand anywhere, those of the
        first picture first. Rows may be padded on either side.

    Returns:
      That class's outputs under their names, as float32.

    Raises:
      UserError: inputs that are missing or do not belong together, an id outside the vocabulary, a row with another number of
        placeholders than soft tokens, a text or picture of a size that the model does not read.
    """
    name, config = describe(model)
    arrays = {key: np.asarray(value) for key, value in inputs.items() if not isinstance(value, bool) and value is not None}
    flags = {key: value for key, value in inputs.items() if isinstance(value, bool)}
    arrays = inputs_of_class.checked(arrays, flags, config, resolved_parts(model), reads_text=ARCHITECTURES[name].reads_text)

    def forward(parameters: Parameters, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return ARCHITECTURES[name].forward(model.definition.bind(parameters), {**arrays, **flags}, config)

    compiled = model.cache.setdefault(("interop.hf_forward", tuple(sorted(flags.items()))), jax.jit(forward))
    outputs = compiled(model.parameters, arrays)
    return jax.tree.map(lambda value: np.asarray(value, np.float32), jax.device_get(outputs))
