"""The token in input_ids whose place a soft token takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]


def placeholder_key(config: Config) -> str:
    """The setting of a config.json that names the placeholder of soft tokens: of frames, or of pictures."""
    return "video_token_index" if config["model_type"] == "instructblipvideo" else "image_token_index"


def placeholder_id(config: Config) -> int:
    """The id in input_ids whose place soft tokens take; −1, which no text has, where files of transformers 4 name none."""
    found = (config.get(key) for key in ("image_token_id", placeholder_key(config)))
    return next((token for token in found if token is not None), -1)
