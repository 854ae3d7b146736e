"""Writes adapters in PEFT's layout (see `mmjax.interop.adapters`): all that a model has beyond its base, in one file."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.interop.adapters import CONFIG, PREFIX, STEM, Place, Specs, factor_key, places
from mmjax.interop.processors import write_json
from mmjax.layers.parameters import Parameters
from mmjax.types import UserError
from mmjax.weights.safetensors import Tensor, Tensors, save_file
from mmjax.weights.table import Entry, Table
from mmjax.weights.table import write as write_table


@dataclasses.dataclass(frozen=True)
class Factors:
    """What PEFT keeps of one module: scale · B A is added to its weight.

    Args:
      a: [r inputs].
      b: [outputs r].
      scale: of the product.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def alpha(self) -> int | float:
        """What PEFT divides by the rank to have the scale."""
        alpha = self.scale * self.rank
        return int(alpha) if alpha == int(alpha) else alpha


def write(
    directory: Path,
    name: str,
    base: Tensors,
    table: Table,
    parameters: Parameters,
    specs: Specs,
    scales: Mapping[str, float],
    task: str | None = None,
) -> list[Path]:
    """Writes adapters, and every other tensor whose bits are not the base's.

    Args:
      directory: to write.
      name: of the base, for whoever loads the adapter.
      base: weights of the base.
      table, parameters, specs: of the model.
      scales: of its adapters, from `mmjax.layers.lora.lora_scales`.
      task: PEFT's task_type.

    Returns:
      The files.

    Raises:
      UserError: the model has no adapters, or a tensor is larger or smaller than the base's.
    """
    if not scales:
        raise UserError("the model has no LoRA adapters; save all of it, without a base")
    factors = _factors(table, parameters, specs, scales)
    theirs, rows = write_table(table, parameters, specs), places(table)
    tied = {entry.ours for entry in table if entry.duplicate}
    copies: dict[str, Tensor] = {}
    whole: set[str] = set()
    for key, tensor in theirs.items():
        if not _differs(key, tensor, base, rows[key][0]):
            continue
        module, _, leaf = key.rpartition(".")
        if module in factors:
            copies[f"{PREFIX}{module}.base_layer.{leaf}"] = tensor
        elif leaf in ("weight", "bias") and rows[key][0][0].ours not in tied:
            whole.add(module)
        else:  # no module of its own, or shared with the head: PEFT sets it in the base itself
            copies[PREFIX + key] = tensor
    # Of a module in `modules_to_save` PEFT makes a copy, for which it wants all tensors.
    copies |= {PREFIX + key: tensor for key, tensor in theirs.items() if key.rpartition(".")[0] in whole}
    for module, pair in factors.items():
        copies |= {factor_key(module, "A"): _tensor(pair.a), factor_key(module, "B"): _tensor(pair.b)}
    weights = save_file(directory / f"{STEM}.safetensors", dict(sorted(copies.items())))
    return [weights, write_json(directory / CONFIG, _config(name, factors, sorted(whole), task))]


def _tensor(value: np.ndarray) -> Tensor:
    return Tensor(value.shape, value.dtype, lambda: value)


def _differs(key: str, tensor: Tensor, base: Tensors, place: Place) -> bool:
    """Whether a tensor is not the base's, cast to its dtype: a frozen part in bfloat16 is still its float32 source."""
    entry, layer = place
    stored = next((base[spelling] for spelling in entry.keys()[layer] if spelling in base), None)
    if stored is None:
        return True
    if stored.shape != tensor.shape:
        raise UserError(
            f"{key} is {list(tensor.shape)} here and {list(stored.shape)} in {base.source}; name a base of the same sizes, or "
            "save all of the model, without a base"
        )
    return stored.astype(tensor.dtype).tobytes() != tensor.load().tobytes()


def _factors(table: Table, parameters: Parameters, specs: Specs, scales: Mapping[str, float]) -> dict[str, Factors]:
    """The factors of every module of theirs that has an adapter, without the columns that compute nothing."""
    found: dict[str, list[tuple[Entry, Factors]]] = {}
    for entry in table:
        path = (entry.ours or "").removesuffix(".kernel")
        if entry.duplicate or path == entry.ours or path not in scales:
            continue
        spec = specs[entry.ours]
        down, up = (np.asarray(parameters[f"{path}.lora_{name}"]) for name in "ab")
        for i, spellings in enumerate(entry.keys()):
            a, b = (down[i], up[i]) if spec.stacked else (down, up)
            used = np.flatnonzero(a.any(0) | b.any(1))
            if used.size:
                rank, outputs = used[-1] + 1, entry.shape(spec)[-1]
                pair = Factors(a[:, :rank].T, entry.transform.write(b[:rank, :outputs]), scales[path])
                found.setdefault(spellings[0].removesuffix(".weight"), []).append((entry, pair))
    return {module: _joined(parts) for module, parts in found.items()}


def _joined(parts: list[tuple[Entry, Factors]]) -> Factors:
    """One pair for a fused tensor: the parts' B above each other, on a common A or each on a block of its own."""
    first = parts[0][1]
    count, rows = parts[0][0].part[1], first.b.shape[0]
    if count == 1:
        return first
    common = all(np.array_equal(pair.a, first.a) for _, pair in parts)
    a = first.a if common else np.concatenate([pair.a for _, pair in parts])
    b = np.zeros((count * rows, a.shape[0]), first.b.dtype)
    column = 0
    for entry, pair in parts:
        row = entry.part[0] * rows
        b[row : row + rows, column : column + pair.rank] = pair.b * (pair.scale / first.scale)
        column += 0 if common else pair.rank
    return Factors(a, b, first.scale)


def _config(name: str, factors: Mapping[str, Factors], whole: list[str], task: str | None) -> dict[str, Any]:
    """Rank and scale that most modules have, and the exceptions by name."""
    (rank, alpha), _ = Counter((pair.rank, pair.alpha) for pair in factors.values()).most_common(1)[0]
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": name,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: pair.rank for module, pair in factors.items() if pair.rank != rank},
        "alpha_pattern": {module: pair.alpha for module, pair in factors.items() if pair.alpha != alpha},
        "target_modules": sorted(factors),
        "modules_to_save": whole or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
