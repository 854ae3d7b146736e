"""`evaluate`: all evaluations of an experiment on a trained run, with its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmjax
from mmjax.data.cleaning import Cleaned
from mmjax.data.records import open_source
from mmjax.evaluation.config import EvaluationConfig
from mmjax.evaluation.evaluate import evaluate_model
from mmjax.evaluation.report import write_report
from mmjax.evaluation.summary import print_summary
from mmjax.types import UserError
from mmjax.types.config import from_config
from mmjax.types.model import Model


def evaluate(config: Any, workdir: str | Path) -> dict[str, dict[str, float]]:
    """Runs every evaluation of a config on the model that a run has trained.

    Args:
      config: an Experiment, or the mapping that a config file's `get_config` gives.
      workdir: of the run; gets `eval/<name>.json`, `.jsonl` and a new `report.html`.

    Returns:
      The results of each evaluation, as `evaluate_model` gives them.

    Raises:
      UserError: no evaluations, a missing data set, an unusable run.
    """
    tasks = evaluations_of(config)
    if not tasks:
        raise UserError("the config names no evaluation; add one to --config.evaluations")
    model = mmjax.from_pretrained(workdir)
    results = {name: evaluate_one(model, name, task, workdir=workdir) for name, task in tasks.items()}
    write_report(workdir)
    print_summary(workdir)
    return results


def evaluations_of(config: Any) -> dict[str, EvaluationConfig]:
    """The evaluations of an Experiment, or of the mapping that describes one, by name."""
    found = config.get("evaluations", {}) if hasattr(config, "get") else config.evaluations
    return {
        name: task if isinstance(task, EvaluationConfig) else from_config(EvaluationConfig, task, f"config.evaluations.{name}")
        for name, task in found.items()
    }


def evaluate_one(
    model: Model,
    name: str,
    config: EvaluationConfig,
    *,
    workdir: str | Path | None = None,
    limit: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """One evaluation.

    Args:
      model: a Model. One that shares its `cache` with the model of an earlier evaluation compiles nothing again.
      name: of the evaluation.
      config: says which examples, metric and decoding.
      workdir: where the files go; None writes none.
      limit: overrides the config's, when above 0.
    """
    source = config.source
    examples = open_source(*source.place)
    limit = limit or config.limit
    return evaluate_model(
        model,
        name,
        Cleaned(examples) if source.cleaning else examples,
        template=source.template,
        workdir=workdir,
        data={"path": source.path, "split": source.split, "limit": limit},
        progress=progress,
        **{**config.options(), "limit": limit},
    )
