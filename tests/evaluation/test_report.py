"""The report: one page, nothing from outside, nothing unescaped, right figures."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mmjax.evaluation.html import VOID, tag
from mmjax.evaluation.report import count, duration, shade_uri, write_report
from mmjax.evaluation.summary import print_summary
from mmjax.evaluation.workdir import read_run


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of turn."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, name, attributes):
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name


@pytest.fixture
def workdir(tmp_path):
    """Two sessions of a run, an evaluation, and a last line that a kill cut short."""
    lines = [
        {"stage": "lm", "step": 10, "train/loss": 3.0, "seconds/step": 5.0, "seconds/compile": 5.0},
        {"stage": "lm", "step": 20, "train/loss": 1.0, "seconds/step": 9.0, "seconds/compile": 5.0},
        {
            "stage": "vqa",
            "step": 10,
            "train/loss": 2.0,
            "train/token_accuracy": 0.5,
            "seconds/step": 3.0,
            "seconds/compile": 1.0,
        },
        {"stage": "vqa", "step": 20, "train/loss": None, "eval/test/exact_match": 0.75, "eval/test/exact_match/colour": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "vqa", "st')
    (tmp_path / "config.json").write_text(json.dumps({"name": "</title><script>x</script>"}))
    part = {"parameters": 1234567, "trainable": 1000, "dtypes": ["float32"]}
    (tmp_path / "parts.json").write_text(json.dumps({"llm": part, "total": part}))
    folder = tmp_path / "eval"
    folder.mkdir()
    numbers = {
        "metric": "exact_match", "implementation": "equal", "exact_match": 0.75, "standard_error": 0.1, "questions": 4,
        "by_kind": {"<i>": {"mean": 0.5, "questions": 2}}, "examples": 2, "data": {"split": "test"}, "prompt": "Question:",
        "decoding": {"num_beams": 1}, "control": {"name": "swapped", "exact_match": 0.25, "by_kind": {"<i>": {"mean": 0.1}}},
    }  # fmt: skip
    (folder / "test.json").write_text(json.dumps(numbers))
    picture = {
        "id": "a#0", "kind": "<i>", "question": "How <many>?", "prediction": "<3", "answers": ["2", "2"], "correct": False,
        "image": shade_uri(np.zeros((2, 2))), "map": [[0, 1], [0.5, 0.25]],
    }  # fmt: skip
    (folder / "test.pictures.json").write_text(json.dumps([picture]))
    return tmp_path


def test_a_report_stands_alone_and_escapes_all_text(workdir):
    html = write_report(workdir).read_text()
    Balanced().feed(html)
    assert "<script" not in html and "<i>" not in html.replace("<i></i>", "") and "How &lt;many&gt;?" in html
    addresses = re.findall(r'(?:src|href)="([^"]*)"|url\(([^)]*)\)|@import', html)
    assert addresses and all(source.startswith("data:image/png;base64,") for source, _ in addresses)


def test_a_report_has_the_figures(workdir):
    html = write_report(workdir).read_text()
    for text in (
        "75.0 %",
        "25.0 % with swapped pictures",
        "1.23 M",
        "truth: 2",
        "✗",
        "lm, 20 steps",
        "token accuracy 0.5",
        "test 0.75",
    ):
        assert text in html, text
    assert "exact_match/colour" not in html


def test_captions_are_no_shares_and_further_tables_are_shown(workdir):
    numbers = {
        "metric": "cider", "implementation": "CIDEr-D", "share": False, "cider": 1.175, "also": {"bleu_4": 0.362},
        "standard_error": 0.02, "questions": 3, "by_kind": {}, "examples": 3, "data": {}, "prompt": "a photo of",
        "tables": {"domain": {"near": {"mean": 0.9, "questions": 1}}}, "decoding": {"num_beams": 5},
        "control": {"name": "blank", "cider": 0.125, "by_kind": {}},
    }  # fmt: skip
    (workdir / "eval/captions.json").write_text(json.dumps(numbers))
    picture = {
        "id": "b", "kind": "", "question": "", "prediction": "a cat", "answers": ["a dog"], "correct": None,
        "image": shade_uri(np.zeros((2, 2))), "map": None,
    }  # fmt: skip
    (workdir / "eval/captions.pictures.json").write_text(json.dumps([picture]))
    (workdir / "eval/test.pictures.json").unlink()
    html = write_report(workdir).read_text()
    Balanced().feed(html)
    for text in ("117.5", "12.5 with blank pictures", "bleu 4 36.2", "near", "90.0", "a picture of one colour", "truth: a dog"):
        assert text in html, text
    assert "117.5 %" not in html and "✓" not in html and "✗" not in html
    console = Console(file=io.StringIO(), width=160)
    print_summary(workdir, console)
    assert re.search(r"all .* 117.5 .* 12.5", console.file.getvalue())


def test_an_empty_workdir_gives_an_empty_report(tmp_path):
    assert "<h1>" in write_report(tmp_path).read_text()


def test_a_real_evaluation_is_reported(evaluated):
    html = write_report(evaluated.workdir).read_text()
    Balanced().feed(html)
    assert html.count("<img") == 30  # ten pictures, each twice, and a shade
    assert "Ten answered pictures" in html and "How many?" in html


def test_seconds_add_up_over_sessions(workdir):
    assert read_run(workdir).seconds() == {"step": 12.0, "compile": 6.0}


def test_the_summary_has_kinds_and_pictures(workdir):
    console = Console(file=io.StringIO(), width=120)
    print_summary(workdir, console)
    text = console.file.getvalue()
    assert re.search(r"<i> .* 50.0 .* 10.0", text) and re.search(r"all .* 75.0 .* 25.0", text)
    assert re.search(r"a#0 .* How <many>\? .* <3 .* ✗ 2 ", text)


def test_shade_is_dark_where_nobody_looked():
    import base64

    data = base64.b64decode(shade_uri(np.array([[0.0, 1.0], [0.0, 1.0]])).partition(",")[2])
    alpha = np.asarray(Image.open(io.BytesIO(data)))[..., 3]
    assert alpha[:, 5].min() > 180 and alpha[:, -5].max() < 20


def test_units():
    assert [count(value) for value in (12, 1234, 3.2e9)] == ["12", "1.23 k", "3.2 G"]
    assert [duration(value) for value in (3.14, 42, 185, 7620)] == ["3.1 s", "42 s", "3 min 5 s", "2 h 7 min"]
    assert tag("a", "<", None, ["x", tag("br")], class_="q", data_x='"') == '<a class="q" data-x="&quot;">&lt;x<br></a>'
