"""Questions asked, answers scored: what `evaluate_model` does for answers, captions and choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmjax.data.segments import Piece, Rendered
from mmjax.decoding.writer import writer_of
from mmjax.evaluation.config import EvaluationOptions
from mmjax.evaluation.metrics import Metric, Scores, find_metric
from mmjax.evaluation.predict import PREDICTORS, Prediction, decoding_options
from mmjax.evaluation.questions import Media, control_media, questions, questions_of
from mmjax.types import Example, Source, UserError
from mmjax.types.model import Model

Lines = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Task:
    """One evaluation of one model.

    Args:
      model: that is asked.
      name: of the evaluation.
      source, count: the examples, and how many of them, from the first on.
      template: renders the prompts.
      options: of the evaluation.
      progress: show a bar, on a terminal.
    """

    model: Model
    name: str
    source: Source
    count: int
    template: str
    options: EvaluationOptions
    progress: bool


def judge(task: Task) -> tuple[dict[str, Any], Lines]:
    """Asks every question and scores what is said, with the right pictures and under the control.

    Returns:
      The numbers, and the prediction lines.

    Raises:
      UserError: a model without a tokenizer or a language model; what questions, templates and metrics refuse.
    """
    options, metric, prompt = task.options, find_metric(task.options.metric), _prompt(task)
    task = dataclasses.replace(task, model=writer_of(task.model))
    asked: list[Example] = []
    said = _said(task, task.name, None, asked)
    references, metas = [question.answers for question in asked], [question.meta for question in asked]
    scores = metric.score([one.text for one in said], references, metas)
    lines = [_line(question, one, score, metric.share) for question, one, score in zip(asked, said, scores.each, strict=True)]

    def by(entry: str, texts: Sequence[str]) -> dict[str, dict[str, Any]]:
        return _table(metric, [str(meta.get(entry, "")) for meta in metas], texts, references, metas)

    def scored(scores: Scores, said: Sequence[Prediction]) -> dict[str, Any]:
        return {options.metric: scores.value, "also": dict(scores.also), "by_kind": by("kind", [one.text for one in said])}

    numbers = {
        "implementation": metric.implementation,
        "share": metric.share,
        **scored(scores, said),
        "tables": {entry: by(entry, [one.text for one in said]) for entry in options.tables},
        "standard_error": float(np.std(scores.each) / np.sqrt(len(scores.each))),
        "questions": len(lines),
        "template": task.template,
        "prompt": prompt,
        "decoding": _decoding(task),
    }
    if options.control:
        blind = _said(task, f"{task.name}, {options.control} pictures", control_media(options.control, task.model), [])
        blind_scores = metric.score([one.text for one in blind], references, metas)
        numbers["control"] = {"name": options.control, **scored(blind_scores, blind)}
        lines = [line | {f"prediction_{options.control}": one.text} for line, one in zip(lines, blind, strict=True)]
    return numbers, lines


def _prompt(task: Task) -> str:
    """What the language model reads first, without its media: shown with the numbers, and a check before anything compiles."""
    processor = task.model.processor
    if not hasattr(processor, "question"):
        what = "came without a tokenizer" if processor is None else "writes no text; encoders are evaluated by task='retrieval'"
        raise UserError(f"evaluation {task.name!r}, task={task.options.task!r}: the model {what}")
    segment = processor.question(next(questions(task.source, 1, task.options)), task.template)
    return "".join(part.text for part in segment.parts if isinstance(part, Piece | Rendered))


def _said(task: Task, label: str, media: Media | None, asked: list[Example]) -> list[Prediction]:
    """All predictions; `asked` gets the questions, without their media."""

    def noted(examples: Iterable[Example]) -> Iterator[Example]:
        for question in examples:
            asked.append(_without_media(question))
            yield question

    stream = noted(questions(task.source, task.count, task.options, media))
    batches = PREDICTORS[task.options.task](task.model, stream, task.options, task.template)
    # A guess, where examples differ in their number of questions.
    total = task.count * len(questions_of(task.source[0], task.options))
    return [one for batch in _shown(batches, label, total, task.progress) for one in batch]


def _without_media(question: Example) -> Example:
    """A question that costs no memory while thousands are answered; its media are empty."""
    return dataclasses.replace(
        question, media=tuple(dataclasses.replace(medium, data=b"", sha256="") for medium in question.media)
    )


def _line(question: Example, said: Prediction, score: float, share: bool) -> dict[str, Any]:
    """What `<name>.jsonl` says of one question."""
    line = {
        "id": question.id,
        "kind": str(question.meta.get("kind", "")),
        "question": question.turns[-1].text if question.turns else "",
        "answers": list(question.answers),
        "prediction": said.text,
        "correct": score >= 0.5 if share else None,
        "score": score,
        "logprob": said.logprob,
    }
    ids = {entry: question.meta[entry] for entry in ("question_id", "image_id") if entry in question.meta}
    return line | ids | ({"choices": list(map(list, said.choices))} if said.choices else {})


def _table(
    metric: Metric, kinds: Sequence[str], texts: Sequence[str], references: Sequence[Any], metas: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """The metric over the questions of each kind alone, kinds in alphabetical order; those without a kind are left out."""
    table = {}
    for kind in sorted(set(kinds) - {""}):
        rows = [index for index, one in enumerate(kinds) if one == kind]
        scores = metric.score(*([column[row] for row in rows] for column in (texts, references, metas)))
        table[kind] = {"mean": scores.value, "questions": len(rows), **({"also": dict(scores.also)} if scores.also else {})}
    return table


def _decoding(task: Task) -> dict[str, Any]:
    if task.options.task == "rank":
        return {"ranked by": "summed log-probability", "end token": "counted" if task.options.rank_end else "left out"}
    fields = (
        "max_new_tokens",
        "min_new_tokens",
        "num_beams",
        "do_sample",
        "length_penalty",
        "repetition_penalty",
        "eos_token_id",
    )
    decoding = decoding_options(task.model, task.options)
    return {field: getattr(decoding, field) for field in fields}


def _shown(batches: Iterable[list[Prediction]], label: str, total: int, shown: bool) -> Iterator[list[Prediction]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    hidden = not shown or not console.is_terminal or jax.process_index() != 0
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=total)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
