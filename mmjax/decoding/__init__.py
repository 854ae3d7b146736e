"""From prompts to answers: search with a key-value cache, `generate`, `score`."""

from mmjax.decoding.generate import Answer, generate
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.scoring import score

__all__ = ["Answer", "DecodingOptions", "generate", "score"]
