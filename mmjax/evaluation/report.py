"""`report.html`: a run on one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmjax.evaluation.curves import Real, Series, curves, legend, number
from mmjax.evaluation.html import Html, page, table, tag
from mmjax.evaluation.metrics import METRICS
from mmjax.evaluation.pictures import COUNT
from mmjax.evaluation.workdir import Evaluated, Run, read_run
from mmjax.types.files import replace_file

SMALL = 128  # pixels; smaller pictures are enlarged without blurring

_SHARES = "|".join(name for name, metric in METRICS.items() if metric.share)
# Title of a chart, which metrics it shows, and whether they are shares.
CHARTS = (
    ("loss", r"train/(loss(?:/.+)?)", False),
    ("accuracy", rf"(?:train/(.*accuracy)|eval/([^/]+)/(?:{_SHARES}))", True),
    ("CIDEr-D", r"eval/([^/]+)/cider", False),
    ("recall at 1", r"eval/([^/]+/(?:text|image))_recall_at_1", True),
    ("gradient norm", r"train/(gradient_norm)", False),
    ("learning rate", r"train/(learning_rate)", False),
)


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` into a workdir from what it holds so far.

    Args:
      workdir: of a run: config.json, parts.json, metrics.jsonl, eval/.

    Returns:
      The file.
    """
    run = read_run(workdir)
    title = str(run.config.get("name") or Path(workdir).resolve().name)
    sections = (_answers(run), _evaluations(run), _training(run), _time(run), _parts(run), _config(run))
    path = Path(workdir) / "report.html"
    replace_file(path, page(title, tag("h1", title), _headline(run), *sections))
    return path


def percent(value: Real) -> str:
    """A share as "97.8 %"."""
    return f"{100 * value:.1f} %"


def hundredfold(value: Real) -> str:
    """What is no share but printed a hundredfold all the same, CIDEr-D: "117.5"."""
    return f"{100 * value:.1f}"


def _shown(numbers: Mapping[str, Any]) -> Callable[[Real], str]:
    """How the value of an evaluation is printed."""
    return percent if numbers.get("share", True) else hundredfold


def _headline(run: Run) -> Html:
    figures = [
        (f"{one.name}: {one.numbers['metric'].replace('_', ' ')}", _shown(one.numbers)(one.value), _blind(one))
        for one in run.evaluations
    ]
    if seconds := run.seconds():
        figures.append(("time", duration(sum(seconds.values())), f"{len(run.stages)} stages: {', '.join(run.stages)}"))
    if total := run.parts.get("total"):
        figures.append(("parameters", count(total["parameters"]), f"{count(total['trainable'])} trained in the last stage"))
    cards = [
        tag(
            "div",
            tag("div", name, class_="quiet"),
            tag("div", value, class_="figure"),
            tag("div", note, class_="quiet"),
            class_="card",
        )
        for name, value, note in figures
    ]
    return tag("div", cards, class_="grid", style="--least: 13rem; margin-top: 1.25rem")


def _blind(one: Evaluated) -> str:
    questions = f"{one.numbers['questions']:,} questions"
    if one.control is None:
        return questions
    return f"{_shown(one.numbers)(one.control)} with {one.numbers['control']['name']} pictures; {questions}"


def _answers(run: Run) -> Html | None:
    shown = next((one for one in run.evaluations if one.pictures), None)
    if shown is None:
        return None
    return Html(
        tag("h2", "Ten answered pictures" if len(shown.pictures) >= COUNT else "Answered pictures")
        + tag("p", f"From {shown.name}, at equal distances, chosen before they were answered. ",
              "On the right, what the connector looked at stays bright.", class_="quiet")
        + tag("div", map(_answer, shown.pictures[:COUNT]), class_="grid", style="--least: 12.5rem")
    )  # fmt: skip


def _answer(line: Mapping[str, Any]) -> Html:
    width, _ = image_size(line["image"])
    picture = tag("img", src=line["image"], alt=line["id"], class_="pixels" if width <= SMALL else None)
    views = [tag("div", picture, class_="view")]
    if line.get("map"):
        shade = tag("img", src=shade_uri(np.asarray(line["map"], np.float32)), alt="attention")
        views.append(tag("div", picture, shade, class_="view"))
    marks = {True: tag("b", "✓ ", class_="good"), False: tag("b", "✗ ", class_="bad"), None: None}  # None: nobody can say
    mark = marks[line["correct"]]
    truth = None if line["correct"] else tag("div", "truth: ", " / ".join(dict.fromkeys(line["answers"])), class_="quiet")
    told = tag("div", mark, tag("b", line["prediction"] or "(nothing)"))
    name = tag("div", line["id"], class_="quiet")
    return tag("div", tag("div", views, class_="pair"), tag("div", line["question"]), told, truth, name, class_="card")


def _evaluations(run: Run) -> list[Html]:
    return [join_section(f"Evaluation: {one.name}", _evaluation(one.numbers)) for one in run.evaluations]


CONTROLS = {
    "swapped": "Swapped: each question asked about the picture of another example; what is still right needed no picture.",
    "blank": "Blank: each question asked about a picture of one colour; what is still right needed no picture.",
}


def _evaluation(numbers: Mapping[str, Any]) -> list[Html]:
    metric, control, show = numbers["metric"], numbers.get("control"), _shown(numbers)
    everything = {"mean": numbers[metric], "questions": numbers["questions"]}
    blind = {**control["by_kind"], "all": {"mean": control[metric]}} if control else {}
    head = ["kind", metric.replace("_", " "), *([f"pictures {control['name']}"] if control else []), "questions", ""]
    rows = [
        [
            kind,
            show(row["mean"]),
            *([show(blind[kind]["mean"])] if control else []),
            f"{row['questions']:,}",
            bar(row["mean"]) if show is percent else "",
        ]
        for kind, row in {**numbers["by_kind"], "all": everything}.items()
    ]
    further = [
        table([entry.replace("_", " "), metric.replace("_", " "), "questions"],
              [[value, show(row["mean"]), f"{row['questions']:,}"] for value, row in rows.items()])
        for entry, rows in numbers.get("tables", {}).items()
    ]  # fmt: skip
    return [table(head, rows), *further, *(tag("p", text, class_="quiet") for text in _told(numbers))]


def _told(numbers: Mapping[str, Any]) -> list[str]:
    """How the numbers of an evaluation came about, as sentences."""
    told = [f"Metric: {numbers['implementation']}."]
    if "standard_error" in numbers:
        told.append(f"Standard error {_shown(numbers)(numbers['standard_error'])}.")
    if also := numbers.get("also"):
        told.append(
            "Also: " + ", ".join(f"{name.replace('_', ' ')} {hundredfold(value)}" for name, value in also.items()) + "."
        )
    if data := numbers.get("data"):
        told.append("Data: " + ", ".join(f"{key} {value}" for key, value in data.items() if value) + ".")
    told.append(f"{numbers['examples']:,} examples.")
    if "prompt" in numbers:
        told.append(f"Prompt: “{numbers['prompt']}”.")
    if decoding := numbers.get("decoding"):
        told.append("Decoding: " + ", ".join(f"{key} {value}" for key, value in decoding.items()) + ".")
    if control := numbers.get("control"):
        told.append(CONTROLS[control["name"]])
    return told


def _training(run: Run) -> Html | None:
    if not run.lines:
        return None
    stages = [_stage(stage, [line for line in run.lines if line["stage"] == stage]) for stage in run.stages]
    return Html(tag("h2", "Training") + "".join(stages))


def _stage(stage: str, lines: list[dict[str, Any]]) -> Html:
    cards = []
    for title, pattern, share in CHARTS:
        names = [name for name in dict.fromkeys(key for line in lines for key in line) if re.fullmatch(pattern, name)]
        series = []
        for name in names:
            points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
            found = re.fullmatch(pattern, name)
            label = next(group for group in found.groups() if group)
            series.append(Series(label.replace("_", " "), *map(list, zip(*points, strict=True)), dots=name.startswith("eval/")))
        if series:
            drawn = curves(series, label=f"{title} of stage {stage}", unit_range=share)
            cards.append(tag("div", tag("h3", title), drawn, class_="card"))
    steps = max(line["step"] for line in lines)
    return Html(
        tag("h3", f"{stage}, {steps:,} steps", style="margin: 1.25rem 0 .5rem")
        + tag("div", cards, class_="grid", style="--least: 15.5rem")
    )


def _time(run: Run) -> Html | None:
    seconds = {account: value for account, value in run.seconds().items() if value > 0}
    if not seconds:
        return None
    total = sum(seconds.values())
    colours = {account: f"var(--c{index})" for index, account in enumerate(seconds)}
    pieces = [
        tag("i", style=f"width:{100 * value / total:.2f}%;background:{colours[account]}") for account, value in seconds.items()
    ]
    entries = [
        (f"{account} {duration(value)} ({percent(value / total)})", colours[account]) for account, value in seconds.items()
    ]
    return join_section("Where the time went", [tag("div", pieces, class_="stack"), legend(entries)])


def _parts(run: Run) -> Html | None:
    if not run.parts:
        return None
    head = [
        "part",
        "parameters",
        "trainable",
        "weights, bytes",
        "optimizer, bytes",
        "forward FLOP/step",
        "backward FLOP/step",
        "dtype",
    ]
    fields = ("parameters", "trainable", "weight_bytes", "optimizer_bytes", "forward_flops", "backward_flops")
    rows = [
        [name, *(count(part.get(field, 0)) for field in fields), ", ".join(part.get("dtypes", ()))]
        for name, part in run.parts.items()
    ]
    return join_section("Parts, in the last stage", [table(head, rows)])


def _config(run: Run) -> Html | None:
    if not run.config:
        return None
    text = tag("pre", json.dumps(run.config, indent=2, ensure_ascii=False))
    return join_section("Config", [tag("details", tag("summary", "the resolved config"), text)])


def join_section(title: str, children: list[Html]) -> Html:
    """A heading and a card."""
    return Html(tag("h2", title) + tag("div", children, class_="card"))


def bar(share: Real) -> Html:
    """A share as a bar."""
    return tag("span", tag("i", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%"), class_="bar")


def count(value: Real) -> str:
    """A large number with its power of a thousand: 1.23 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return number(value)


def duration(seconds: Real) -> str:
    """Seconds as "42 s", "3 min 5 s", "2 h 7 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shade_uri(weights: np.ndarray, size: int = 128) -> str:
    """A PNG data URI that darkens a picture where the weights (rows of 0…1) are small."""
    alpha = Image.fromarray(np.uint8(np.round(255 * 0.78 * (1 - np.clip(weights, 0, 1)))))
    shade = Image.new("RGBA", (size, size), (18, 14, 40, 0))
    shade.putalpha(alpha.resize((size, size), Image.Resampling.BICUBIC))
    file = io.BytesIO()
    shade.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def image_size(uri: str) -> tuple[int, int]:
    """Width and height of a PNG data URI."""
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size
