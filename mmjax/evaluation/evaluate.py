"""One evaluation: every question of every example, answered, scored, and written down with how it was done."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmjax.data.templates import Piece, single_questions
from mmjax.data.templates import template as find_template
from mmjax.decoding.generate import Answer, answer_batches, make_options
from mmjax.evaluation.metrics import by_kind, find_metric, mean
from mmjax.evaluation.pictures import answered_pictures
from mmjax.types import Example, Medium, Source, UserError
from mmjax.types.files import replace_file
from mmjax.types.model import Model

CONTROLS = ("", "swapped")


def evaluate_model(
    model: Model,
    name: str,
    source: Source,
    *,
    template: str = "question_answer",
    metric: str = "exact_match",
    limit: int = 0,
    batch_size: int = 64,
    max_new_tokens: int = 8,
    num_beams: int = 1,
    control: str = "",
    workdir: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Asks a model all questions of a data set.

    Args:
      model: a Model; compiled functions are kept in its cache.
      name: of the evaluation; names its files.
      source: the examples. Each user turn of an example is a question of its own, answered by the assistant turn after it.
      template: renders the prompts.
      metric: an entry of METRICS.
      limit: the first examples only; 0 = all.
      batch_size: questions decoded at once.
      max_new_tokens, num_beams: of decoding.
      control: "swapped" asks again with the pictures of other examples: what is answered as well then needs no picture.
      workdir: where `eval/<name>.json` (numbers and how they came about), `.jsonl` (every prediction) and `.pictures.json`
        (ten answered pictures for the report) go; None writes nothing.
      data: what the numbers file says of the source: path, split.
      progress: show a bar, on a terminal.

    Returns:
      {metric: mean, "<metric>/<kind>": mean, "swapped/<metric>": mean}, each in 0…1.

    Raises:
      UserError: an unknown metric, template or control; a question without an answer; a control without other pictures.
    """
    chosen, render = find_metric(metric), find_template(template)
    if control not in CONTROLS:
        raise UserError(f"control must be '' or 'swapped', got {control!r}")
    options = make_options(model, {"max_new_tokens": max_new_tokens, "num_beams": num_beams})
    began = time.monotonic()
    count = min(limit, len(source)) if limit else len(source)
    if not count:
        raise UserError(f"evaluation {name!r} has no examples")
    total = count * len(single_questions(source[0]))  # a guess, where examples differ in their number of questions

    def answers(asked: Iterable[Example], label: str) -> list[Answer]:
        batches = answer_batches(model, asked, options, template=template, rows=batch_size)
        return list(itertools.chain.from_iterable(_shown(batches, label, total, progress)))

    lines: list[dict[str, Any]] = []
    for line, answer in zip(lines, answers(_noted(questions(source, count), lines), name), strict=True):
        score = chosen.score(answer, line["answers"])
        line |= {"prediction": str(answer), "correct": score >= 0.5, "score": score, "logprob": float(np.sum(answer.logprobs))}
    scores, kinds = [line["score"] for line in lines], [line["kind"] for line in lines]
    numbers = {
        "evaluation": name,
        "metric": metric,
        "implementation": chosen.implementation,
        metric: mean(scores),
        "standard_error": float(np.std(scores) / np.sqrt(len(scores))),
        "by_kind": _table(scores, kinds),
        "questions": len(lines),
        "examples": count,
        "data": dict(data or {}),
        "template": template,
        "prompt": "".join(
            part.text for part in render.prompt(single_questions(source[0])[0], 0).parts if isinstance(part, Piece)
        ),
        "decoding": {
            field: getattr(options, field) for field in ("max_new_tokens", "num_beams", "do_sample", "length_penalty")
        },
    }
    if control:
        blind = answers(questions(source, count, swapped=True), f"{name}, pictures swapped")
        blind_scores = [chosen.score(answer, line["answers"]) for answer, line in zip(blind, lines, strict=True)]
        numbers["control"] = {"name": control, metric: mean(blind_scores), "by_kind": _table(blind_scores, kinds)}
        lines = [line | {f"prediction_{control}": str(answer)} for line, answer in zip(lines, blind, strict=True)]
    numbers["seconds"] = time.monotonic() - began

    if workdir is not None:
        folder = Path(workdir) / "eval"
        shown = answered_pictures(model, source, count, lines, template=template)
        if jax.process_index() == 0:
            replace_file(folder / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            replace_file(folder / f"{name}.pictures.json", json.dumps(shown, ensure_ascii=False))
            replace_file(folder / f"{name}.json", json.dumps(numbers, ensure_ascii=False, indent=2) + "\n")
    results = {metric: numbers[metric]}
    results |= {f"{metric}/{kind}": row["mean"] for kind, row in numbers["by_kind"].items()}
    return results | ({f"{control}/{metric}": numbers["control"][metric]} if control else {})


def questions(source: Source, count: int, *, swapped: bool = False) -> Iterator[Example]:
    """Every question of the first `count` examples; with `swapped` under the media of the next example whose media differ.

    Raises:
      UserError: a question without an answer, or nothing to swap with.
    """
    for index in range(count):
        example = source[index]
        if swapped:
            example = dataclasses.replace(example, media=_other_media(source, index, count))
        for question in single_questions(example):
            if not question.answers:
                raise UserError(
                    f"example {question.id!r} has no answer to compare with; give it an assistant turn or `answers`"
                )
            yield question


def _other_media(source: Source, index: int, count: int) -> tuple[Medium, ...]:
    own = source[index]
    for step in range(1, count):
        other = source[(index + step) % count].media
        if len(other) == len(own.media) > 0 and [_bytes(medium) for medium in other] != [
            _bytes(medium) for medium in own.media
        ]:
            return other
    raise UserError(f"example {own.id!r}: no other example has other media to swap with; set control=''")


def _bytes(medium: Medium) -> bytes:
    return medium.data if isinstance(medium.data, bytes) else medium.data.tobytes()


def _noted(asked: Iterable[Example], lines: list[dict[str, Any]]) -> Iterator[Example]:
    """Passes questions on and keeps of each what its prediction line says of it, not its media."""
    for question in asked:
        kind, text = str(question.meta.get("kind", "")), question.turns[-1].text
        lines.append({"id": question.id, "kind": kind, "question": text, "answers": list(question.answers)})
        yield question


def _table(scores: list[float], kinds: list[str]) -> dict[str, dict[str, float]]:
    return {kind: {"mean": value, "questions": number} for kind, (value, number) in by_kind(scores, kinds).items()}


def _shown(batches: Iterable[list[Answer]], label: str, total: int, shown: bool) -> Iterator[list[Answer]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    hidden = not shown or not console.is_terminal or jax.process_index() != 0
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=total)
        for batch in batches:
            bar.advance(task, len(batch))
            yield batch
