"""Models of the Hugging Face hub, by their id: downloaded once, then found in the local cache."""

from __future__ import annotations

import re
from pathlib import Path

from mmjax.types import UserError

ADAPTER = "adapter_config.json"  # a directory that holds it is an adapter of another model
WANTED = ("*.json", "*.jinja", "*.txt", "model*.safetensors", "adapter_model.safetensors")
PICKLED = ("pytorch_model*.bin", "adapter_model.bin")


def is_hub_id(source: str | Path) -> bool:
    """Whether a source has the form of a hub id, "owner/name", and is nothing on this machine."""
    word = r"[A-Za-z0-9][\w.-]*"
    return re.fullmatch(f"{word}/{word}", str(source)) is not None and not Path(source).exists()


def local_directory(source: str | Path, *, pickle: bool = False) -> Path:
    """The directory of a source.

    Args:
      source: a path, which is given back, or a hub id, whose configs, tokenizers and weights are downloaded unless the cache
        has them (HF_HUB_OFFLINE=1 looks there only).
      pickle: also download pickled weights.

    Raises:
      UserError: the hub has no such model, or cannot be reached.
    """
    if not is_hub_id(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[*WANTED, *(PICKLED if pickle else ())]))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source} is no directory here, and cannot be had from the Hugging Face hub: {reason}") from None
