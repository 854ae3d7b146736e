"""PEFT's layout of an adapter: low-rank updates of a base model, together with whole copies of what else was trained.

`adapter_config.json` says which modules of the base have adapters and how they are scaled. `adapter_model.safetensors` holds
`base_model.model.<module>.lora_A.weight` [r, inputs] and `.lora_B.weight` [outputs, r]; any other tensor of the file takes
the place of the base's. `adapter_reader` and `adapter_writer` go through the base's weight table in either direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmjax.interop import hub
from mmjax.interop.processors import read_json
from mmjax.layers.parameters import ParameterSpec
from mmjax.types import UserError
from mmjax.weights.table import Entry, Table

CONFIG, STEM, PREFIX = hub.ADAPTER, "adapter_model", "base_model.model."

Specs = Mapping[str, ParameterSpec]
Place = tuple[Entry, int]  # a row of the weight table, and which of its layers


def base_of(directory: Path) -> str:
    """The base model that an adapter names.

    Raises:
      UserError: it names none.
    """
    named = read_json(directory / CONFIG).get("base_model_name_or_path")
    if not named:
        raise UserError(f"{directory / CONFIG} names no base model; give its directory, as base= or --base")
    return named


def places(table: Table) -> dict[str, list[Place]]:
    """Every spelling of their keys -> the rows of the table that are its parts, in order."""
    found: dict[str, list[Place]] = {}
    for entry in sorted(table, key=lambda entry: entry.part):
        for layer, spellings in enumerate(entry.keys()):
            for key in spellings:
                found.setdefault(key, []).append((entry, layer))
    return found


def factor_key(module: str, factor: str) -> str:
    """The key of A or B of a module."""
    return f"{PREFIX}{module}.lora_{factor}.weight"
