"""The inputs of `hf_forward` for a Q-Former that stands alone: its queries and what they read come from outside."""

from __future__ import annotations

import numpy as np

from mmjax.connectors.qformer import QFormerConfig
from mmjax.types import UserError

Arrays = dict[str, np.ndarray]

KNOWN = ("query_embeds", "encoder_hidden_states", "input_ids", "attention_mask", "encoder_attention_mask")


def checked(arrays: Arrays, config: QFormerConfig, *, reads_text: bool) -> Arrays:
    """The inputs as they came.

    Args:
      arrays: query_embeds [b q d] with encoder_hidden_states [b p e], input_ids [b u], or both; attention_mask [b q+u] of
        all that is read, encoder_attention_mask [b p].
      config: of the Q-Former. One with the heads of stage 1 reads texts alone.
      reads_text: whether the class takes input_ids.

    Raises:
      UserError: naming the input, what was expected and what came.
    """
    takes = KNOWN if reads_text else [name for name in KNOWN if name != "input_ids"]
    takes = ("input_ids", "attention_mask") if config.stage1 else takes
    if unknown := [name for name in arrays if name not in takes]:
        raise UserError(f"{unknown[0]} is not read; there are {', '.join(takes)}")
    if not {"query_embeds", "input_ids"} & arrays.keys():
        raise UserError(f"inputs lack {takes[0]}; there are {', '.join(arrays) or 'none'}")
    if ("query_embeds" in arrays) != ("encoder_hidden_states" in arrays):
        raise UserError(f"query_embeds and encoder_hidden_states go together; there are {', '.join(arrays)}")
    widths = {"query_embeds": config.width, "encoder_hidden_states": config.encoder_width}
    for name, width in widths.items():
        if name in arrays and (arrays[name].ndim != 3 or arrays[name].shape[2] != width):
            raise UserError(f"{name}: expected [rows, length, {width}], got {list(arrays[name].shape)}")
    _check_text(arrays.get("input_ids"), config)
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name}={count}" for name, count in rows.items())
        raise UserError(f"inputs that belong together must have equally many rows, got {counts}")
    _check_masks(arrays)
    return arrays


def _check_text(tokens: np.ndarray | None, config: QFormerConfig) -> None:
    """Ids have rows in the word embedding, and texts no more tokens than there are positions."""
    if tokens is None:
        return
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise UserError(f"input_ids: expected whole numbers [rows, tokens], got {tokens.dtype} {list(tokens.shape)}")
    if tokens.shape[1] > config.max_positions:
        raise UserError(f"input_ids: expected at most {config.max_positions} tokens in each row, got {tokens.shape[1]}")
    if tokens.size and not (0 <= tokens.min() and tokens.max() < config.vocab):
        raise UserError(f"input_ids: expected ids from 0 to {config.vocab - 1}, got {tokens.min()} … {tokens.max()}")


def _check_masks(arrays: Arrays) -> None:
    """Masks fit what they mask, and hide nothing but text."""
    lengths = {name: arrays[name].shape[1] if name in arrays else 0 for name in KNOWN[:3]}
    queries, features, text = lengths.values()
    for name, length, hideable in (("attention_mask", queries + text, text), ("encoder_attention_mask", features, 0)):
        mask = arrays.get(name)
        if mask is None:
            continue
        if mask.ndim != 2 or mask.shape[1] != length:
            raise UserError(f"{name}: expected {length} columns, one for each position, got {list(mask.shape)}")
        if not mask[:, : length - hideable].all():
            raise UserError(f"{name}: the first {length - hideable} columns, queries or image features, cannot be hidden")
