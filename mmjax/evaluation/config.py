"""What a run says of one evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.data.config import SourceConfig
from mmjax.evaluation.metrics import METRICS, find_metric

# What a model can be asked to do, and the metric that each is measured by unless the config names another.
TASKS = {"answer": "exact_match", "rank": "exact_match", "caption": "cider", "retrieval": "recall_at_1"}
CONTROLS = ("", "swapped", "blank")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is asked, how it is decoded and how it is scored.

    Args:
      task: "answer" decodes an answer to every question; "rank" takes the likeliest of given choices; "caption" decodes a
        caption of every picture; "retrieval" looks for each picture's captions among all and for each caption's picture.
      metric: an entry of `mmjax.evaluation.metrics.METRICS`; "" = the task's own (`TASKS`), the only one for retrieval.
      prompt: asked of every example instead of its own questions, for example "a photo of".
      choices: that "rank" chooses among; empty = each example's `meta["choices"]`.
      rank_end: whether the end token counts in the likelihood of a choice.
      rerank: of "retrieval" with a BLIP-2: the first candidates of each search that its matching head scores again; 0 = none.
      limit: first examples only; 0 = all.
      batch_size: rows decoded at once.
      max_new_tokens, min_new_tokens, num_beams, length_penalty, repetition_penalty: of decoding.
      eos_token_id: tokens that end an answer; empty = the tokenizer's. BLIP-2 ends those of OPT at a line break, 50118.
      control: also score without the right pictures, to show how much is answered blindly: "swapped" = with those of other
        examples, "blank" = with pictures of one colour, the mean that the encoder subtracts; "" = no.
      tables: entries of `meta` by whose values further tables are made, beside `kind`.
    """

    task: str = "answer"
    metric: str = ""
    prompt: str = ""
    choices: tuple[str, ...] = ()
    rank_end: bool = True
    rerank: int = 128
    limit: int = 0
    batch_size: int = 64
    max_new_tokens: int = 8
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    eos_token_id: tuple[int, ...] = ()
    control: str = ""
    tables: tuple[str, ...] = ()

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        own = TASKS[self.task]
        if not self.metric:
            object.__setattr__(self, "metric", own)
        if own in METRICS:
            find_metric(self.metric)
        elif self.metric != own:
            raise ValueError(f"task={self.task!r} is measured by {own}, not by {self.metric!r}")
        low = {"limit": 0, "batch_size": 1, "max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1, "rerank": 0}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.control not in CONTROLS:
            raise ValueError(f"control must be '', 'swapped' or 'blank', got {self.control!r}")
        if self.control and self.task == "retrieval":
            raise ValueError(f"control={self.control!r} is for answers; a retrieval by chance is known: set control=''")
        if self.choices and self.task != "rank":
            raise ValueError(f"choices are ranked with task='rank', got task={self.task!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(EvaluationOptions):
    """One evaluation.

    Args:
      source: the examples, with the template that renders the prompts.
    """

    source: SourceConfig

    def options(self) -> dict[str, Any]:
        """Everything but the source."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(EvaluationOptions)}
