"""Rotary positions in Hugging Face's config.json <-> the fields `rope_base` and `rope_scaling` of our language models.

transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 writes both as `rope_parameters`. Both are read, and both
are written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmjax.layers.positions import SCALINGS, yarn_attention_factor
from mmjax.types import UserError

Config = Mapping[str, Any]
log = logging.getLogger(__name__)

# ours -> theirs
_NAMES = {
    "type": "rope_type",
    "factor": "factor",
    "original_positions": "original_max_position_embeddings",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "truncate": "truncate",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
    "attention_factor": "attention_factor",
}
# The parameters of each type, beside its type itself.
_PARAMETERS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_positions", "low_frequency_factor", "high_frequency_factor"),
    "yarn": ("factor", "original_positions", "beta_fast", "beta_slow", "truncate", "attention_factor"),
    "longrope": ("factor", "original_positions", "short_factors", "long_factors", "attention_factor"),
}
_OPTIONAL = ("beta_fast", "beta_slow", "truncate", "attention_factor")


def read_rotary(config: Config, what: str, default_base: float = 10000.0) -> dict[str, Any]:
    """The fields `rope_base` and `rope_scaling` of a part.

    Args:
      config: a (nested) text config.
      what: its model type, for messages.
      default_base: what the Hugging Face class assumes of a config without a base.

    Raises:
      UserError: a kind of rotary positions that is not built.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default" and kind not in SCALINGS:
        raise UserError(f"{what}: config.json has the rotary type {kind!r}; there are default, {', '.join(SCALINGS)}")
    for name, plain in (("partial_rotary_factor", 1.0), ("mrope_section", None)):
        value = rope.get(name, config.get(name))
        if value not in (None, plain):
            raise UserError(f"{what}: config.json has {name}={value!r} in its rotary positions, which is not supported")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise UserError(f"{what}: config.json has rotary positions by type of layer, which is not supported")
    base = rope.get("rope_theta") or config.get("rope_theta")
    if base is None:
        base = default_base
        log.warning("%s: config.json gives no rope_theta; the class's default %g is used", what, base)
    return {"rope_base": float(base), "rope_scaling": None if kind == "default" else _scaling(kind, rope, config)}


def _scaling(kind: str, rope: Config, config: Config) -> dict[str, Any]:
    given = {ours: rope[_NAMES[ours]] for ours in _PARAMETERS[kind] if rope.get(_NAMES[ours]) is not None}
    longest = config["max_position_embeddings"]
    if kind == "dynamic":  # it begins to stretch where the config's positions end
        given["original_positions"] = longest
    elif kind != "linear":
        given["original_positions"] = config.get("original_max_position_embeddings") or given.get("original_positions", longest)
    if kind in ("yarn", "longrope"):
        given.setdefault("factor", longest / given["original_positions"])
    if missing := [_NAMES[name] for name in _PARAMETERS[kind] if name not in given and name not in _OPTIONAL]:
        raise UserError(f"config.json has the rotary type {kind!r} without its {missing[0]}")
    if kind == "yarn" and rope.get("mscale") and rope.get("mscale_all_dim"):
        strength, divisor = (yarn_attention_factor(given["factor"], rope[name]) for name in ("mscale", "mscale_all_dim"))
        given.setdefault("attention_factor", strength / divisor)
    return {"type": kind, **given}


def write_rotary(part: Config) -> dict[str, Any]:
    """The rotary fields of config.json, as transformers 4 and 5 name them."""
    base, scaling = part["rope_base"], part["rope_scaling"]
    if scaling is None:
        return {"rope_theta": base, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": base}}
    names = ("type", *_PARAMETERS[scaling["type"]])
    written = {_NAMES[name]: scaling[name] for name in names if scaling[name] is not None}
    return {"rope_theta": base, "rope_scaling": written, "rope_parameters": {**written, "rope_theta": base}}
