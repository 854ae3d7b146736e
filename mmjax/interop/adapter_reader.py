"""Reads adapters in PEFT's layout (see `mmjax.interop.adapters`)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.interop.adapters import CONFIG, PREFIX, Place, Specs, factor_key, places
from mmjax.interop.processors import read_json
from mmjax.layers.lora import Rules
from mmjax.layers.parameters import ParameterSpec
from mmjax.types import UserError
from mmjax.weights.safetensors import Tensors
from mmjax.weights.table import Table, report

Config = Mapping[str, Any]

# Settings by which PEFT computes something else, and their harmless values.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),  # others begin by changing the base
}
# A module has one name in files, and others in the memory of transformers 4 and 5; these differences do not count.
SPELLINGS = (
    (r"\bmodel\.", ""),
    (r"\bvision_tower\.vision_model\.", "vision_tower."),
    (r"^language_model\.lm_head\b", "lm_head"),
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter, fitted to our parameters.

    Args:
      rules: for `mmjax.layers.lora.add_lora`.
      factors: `lora_a` and `lora_b` of every rule, by path.
      copies: tensors that take the place of the base's, by the base's key.
    """

    rules: Rules
    factors: dict[str, np.ndarray]
    copies: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A and B of one module, as far as the file has them, with the module's name in the file."""

    module: str
    factors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read(directory: Path, tensors: Tensors, table: Table, specs: Specs) -> Adapter:
    """Reads an adapter.

    Args:
      directory: of the adapter.
      tensors: of its weight file.
      table: of the base model.
      specs: of the base model's parameters.

    Raises:
      UserError: a kind of adapter that is not built, or one report of all that does not fit the base.
    """
    config = read_json(directory / CONFIG)
    for name, harmless in HARMLESS.items():
        if config.get(name, harmless[0]) not in harmless:
            raise UserError(
                f"{directory / CONFIG}: {name}={config[name]!r} is not supported; merge the adapter with PEFT first"
            )
    owners = places(table)
    linears = {key for key, rows in owners.items() if all(_is_linear(place, specs) for place in rows)}
    pairs, copies, unexpected = _sort(tensors, owners)
    if bent := [pair.module for key, pair in pairs.items() if key not in linears]:
        raise UserError(
            f"{directory}: {bent[0]} is no linear layer; adapters of others are not supported, merge it with PEFT first"
        )
    missing, misshapen = _lacking(config, pairs, linears, table), []
    layers: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
    for key, pair in pairs.items():
        rank, scale = _rank_and_scale(config, pair.module)
        if wrong := _misshapen(pair, owners[key][0][0].their_shape(specs[owners[key][0][0].ours]), rank):
            misshapen += wrong
        elif len(pair.factors) == 2:
            for entry, layer in owners[key]:
                stack = layers.setdefault(entry.ours.removesuffix(".kernel"), {})
                stack[layer] = pair.factors["A"].T, entry.view(pair.factors["B"]), scale
    reports = [report("missing", missing, unexpected), report("unexpected", unexpected, missing)]
    reports.append(report("of another shape", misshapen, []))
    if any(reports):
        raise UserError(f"the adapter in {directory} does not fit its base: {'; '.join(filter(None, reports))}")
    rules, factors = [], {}
    for path, stack in layers.items():
        rank, scale, factors[f"{path}.lora_a"], factors[f"{path}.lora_b"] = _stacked(stack, specs[f"{path}.kernel"])
        rules.append((re.escape(f"{path}.kernel"), {"rank": rank, "alpha": scale * rank}))
    return Adapter(rules, factors, copies)


def _sort(tensors: Tensors, owners: Mapping[str, list[Place]]) -> tuple[dict[str, Pair], dict[str, np.ndarray], list[str]]:
    """The factors and the whole tensors of the file by the base's keys, and the keys that the base does not have."""
    names = {_canonical(key): key for key in reversed(list(owners))}  # of several spellings, the first
    pairs: dict[str, Pair] = {}
    copies, unexpected = {}, []
    for key, value in tensors.items():
        module, factor, leaf = _split(key.removeprefix(PREFIX))
        theirs = names.get(_canonical(f"{module}.{leaf}".removeprefix(".")))
        if theirs is None:
            unexpected.append(key)
        elif factor:
            pairs.setdefault(theirs, Pair(module)).factors[factor] = value
        else:
            copies[theirs] = value
    return pairs, copies, unexpected


def _canonical(key: str) -> str:
    for pattern, replacement in SPELLINGS:
        key = re.sub(pattern, replacement, key)
    return key


def _split(key: str) -> tuple[str, str, str]:
    """'a.q_proj.lora_A.weight' -> ('a.q_proj', 'A', 'weight'); of whole tensors the second is empty."""
    if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", key):
        return match[1], match[2], "weight"
    module, _, leaf = re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", key).rpartition(".")
    return module, "", leaf


def _is_linear(place: Place, specs: Specs) -> bool:
    """Whether a row is the matrix of a linear layer, seen as [inputs, outputs] in a tensor [outputs, inputs]."""
    entry, _ = place
    if entry.ours is None or entry.duplicate or not entry.ours.endswith(".kernel"):
        return False
    return len(entry.their_shape(specs[entry.ours])) == 2


def _lacking(config: Config, pairs: Mapping[str, Pair], linears: set[str], table: Table) -> list[str]:
    """Keys that the file should have: the other half of a pair, and the modules that the config names."""
    first = {spellings[0] for entry in table for spellings in entry.keys()}
    missing = [factor_key(pair.module, factor) for pair in pairs.values() for factor in "AB" if factor not in pair.factors]
    named = {key.removesuffix(".weight") for key in (linears & first) - set(pairs)}
    return missing + [factor_key(module, factor) for module in sorted(named) if _targeted(config, module) for factor in "AB"]


def _targeted(config: Config, module: str) -> bool:
    """Whether the config puts an adapter on a module: by full or last names, or by one regular expression.

    "all-linear" depends on the classes of the base's modules: what it meant is what the file holds.
    """
    targets, layers = config.get("target_modules") or (), config.get("layers_to_transform")
    whole = [rf"(.*\.)?{name}(\..*)?" for name in config.get("modules_to_save") or ()]
    if _named(module, config.get("exclude_modules") or ()) or any(re.fullmatch(pattern, module) for pattern in whole):
        return False
    if targets == "all-linear" or not _named(module, targets):
        return False
    if isinstance(targets, str) or module in targets or layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    numbers = [re.match(rf"(?:.*?\.)?{p}\.(\d+)\.", module) for p in ([patterns] if isinstance(patterns, str) else patterns)]
    number = next((int(match[1]) for match in numbers if match), None)
    return number in ([layers] if isinstance(layers, int) else layers)


def _named(module: str, names: str | Iterable[str]) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _rank_and_scale(config: Config, module: str) -> tuple[int, float]:
    def setting(name: str, by_pattern: str) -> Any:
        patterns = (config.get(by_pattern) or {}).items()
        given = (value for key, value in patterns if re.fullmatch(rf"(.*\.)?({key.removeprefix('^')})", module))
        return next(given, config.get(name, 8))

    rank, alpha = setting("r", "rank_pattern"), setting("lora_alpha", "alpha_pattern")
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _misshapen(pair: Pair, whole: tuple[int, ...], rank: int) -> list[str]:
    expected = {"A": (rank, whole[1]), "B": (whole[0], rank)}
    return [
        f"{factor_key(pair.module, name)} (expected {expected[name]}, got {value.shape})"
        for name, value in pair.factors.items()
        if value.shape != expected[name]
    ]


def _stacked(
    layers: Mapping[int, tuple[np.ndarray, np.ndarray, float]], spec: ParameterSpec
) -> tuple[int, float, np.ndarray, np.ndarray]:
    """Rank, scale, A and B of one adapter for a stack of layers: of the largest rank and the first scale.

    What a layer has less of is zero in A and in B: it computes nothing, and training leaves it so.
    """
    rank = max(a.shape[1] for a, _, _ in layers.values())
    scale = next(iter(layers.values()))[2]
    dtype = jnp.result_type(*(factor.dtype for a, b, _ in layers.values() for factor in (a, b)))
    inputs, outputs = spec.unstacked_shape
    depth = spec.shape[0] if spec.stacked else 1
    down, up = np.zeros((depth, inputs, rank), dtype), np.zeros((depth, rank, outputs), dtype)
    for layer, (a, b, own) in layers.items():
        down[layer, :, : a.shape[1]] = a
        up[layer, : b.shape[0], : b.shape[1]] = b if own == scale else b.astype(np.float32) * (own / scale)
    return (rank, scale, down, up) if spec.stacked else (rank, scale, down[0], up[0])
