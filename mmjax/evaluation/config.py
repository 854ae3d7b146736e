"""What a run says of one evaluation."""

from __future__ import annotations

import dataclasses

from mmjax.data.config import SourceConfig
from mmjax.evaluation.metrics import find_metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """One evaluation.

    Args:
      source: the examples, with the template that renders the prompts.
      metric: an entry of `mmjax.evaluation.metrics.METRICS`.
      limit: first examples only; 0 = all.
      batch_size: rows decoded at once.
      max_new_tokens, num_beams: of decoding.
      control: also score with the pictures of other examples ("swapped"), to show how much is answered blindly; "" = no.
    """

    source: SourceConfig
    metric: str = "exact_match"
    limit: int = 0
    batch_size: int = 64
    max_new_tokens: int = 8
    num_beams: int = 1
    control: str = ""

    def __post_init__(self):
        find_metric(self.metric)
        for name, low in (("limit", 0), ("batch_size", 1), ("max_new_tokens", 1), ("num_beams", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be {low} or more, got {getattr(self, name)}")
        if self.control not in ("", "swapped"):
            raise ValueError(f"control must be '' or 'swapped', got {self.control!r}")
