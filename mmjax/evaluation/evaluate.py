"""One evaluation: everything asked of every example, scored, and written down with how it was done."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax.evaluation.config import EvaluationOptions
from mmjax.evaluation.judge import Task, judge
from mmjax.evaluation.pictures import answered_pictures
from mmjax.evaluation.retrieval import retrieve
from mmjax.types import Source, UserError
from mmjax.types.config import from_config
from mmjax.types.files import replace_file
from mmjax.types.model import Model


def evaluate_model(
    model: Model,
    name: str,
    source: Source,
    *,
    template: str = "question_answer",
    workdir: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, float]:
    """Evaluates a model on a data set.

    Args:
      model: a Model; compiled functions are kept in its cache.
      name: of the evaluation; names its files.
      source: the examples.
      template: renders the prompts.
      workdir: where `eval/<name>.json` (numbers and how they came about), `.jsonl` (every prediction) and `.pictures.json`
        (ten answered pictures for the report) go; None writes nothing.
      data: what the numbers file says of the source: path, split.
      progress: show a bar, on a terminal.
      **options: fields of EvaluationOptions: task, metric, limit, batch_size, max_new_tokens, control, …

    Returns:
      {metric: value, "<metric>/<kind>": value, "<control>/<metric>": value} and the metric's further numbers by name.

    Raises:
      UserError: an unknown option, template or metric; a question without an answer; a control without other pictures.
    """
    chosen = from_config(EvaluationOptions, options, "evaluation")
    began = time.monotonic()
    count = min(chosen.limit, len(source)) if chosen.limit else len(source)
    if not count:
        raise UserError(f"evaluation {name!r} has no examples")
    task = Task(model, name, source, count, template, chosen, progress)
    if chosen.task == "retrieval":
        numbers, lines = retrieve(model, source, count, batch_size=chosen.batch_size, rerank=chosen.rerank)
        shown = []
    else:
        numbers, lines = judge(task)
        shown = answered_pictures(model, source, count, lines, chosen, template) if workdir is not None else []
    numbers = {"evaluation": name, "task": chosen.task, "metric": chosen.metric, **numbers, "examples": count}
    numbers |= {"data": dict(data or {}), "seconds": time.monotonic() - began}
    if workdir is not None and jax.process_index() == 0:
        folder = Path(workdir) / "eval"
        replace_file(folder / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        replace_file(folder / f"{name}.pictures.json", json.dumps(shown, ensure_ascii=False))
        replace_file(folder / f"{name}.json", json.dumps(numbers, ensure_ascii=False, indent=2) + "\n")
    return results_of(numbers)


def results_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation that a training run logs."""
    metric = numbers["metric"]
    results = {metric: numbers[metric], **numbers["also"]}
    results |= {f"{metric}/{kind}": row["mean"] for kind, row in numbers["by_kind"].items()}
    control = numbers.get("control")
    return results | ({f"{control['name']}/{metric}": control[metric]} if control else {})
