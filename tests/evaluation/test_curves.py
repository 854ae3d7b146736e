"""Curves: round ticks, unbiased smoothing, points where they belong."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from mmjax.evaluation.curves import HEIGHT, WIDTH, Series, curves, number, smooth, ticks


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.0, 1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3.0, 42.0, False, [10, 20, 30, 40]),
        (0.02, 30.0, True, [0.1, 1, 10]),
        (2.0, 9.0, True, [2.0, 9.0]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    assert ticks(low, high, log) == pytest.approx(expected)


def test_smoothing_keeps_a_constant_and_damps_a_jump():
    assert smooth([3.0] * 5, 10) == pytest.approx([3.0] * 5)
    assert smooth([0.0, 0.0, 1.0], 2)[-1] == pytest.approx(1 / 1.75)
    assert smooth([1.0, 2.0], 1) == [1.0, 2.0]


def drawing(html):
    return ElementTree.fromstring(re.match(r"<svg.*?</svg>", html, re.S).group())


def test_points_go_right_and_up_and_stay_inside():
    paths = drawing(curves([Series("a", range(100), [float(i) for i in range(100)], dots=True)], label="rising")).findall(
        "path"
    )
    points = [tuple(map(float, point.split())) for point in paths[-1].attrib["d"][1:].split("L")]
    assert all(x1 < x2 and y1 > y2 for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False))
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_wide_positive_values_get_a_logarithmic_axis():
    wide = drawing(curves([Series("loss", [0, 1, 2], [10.0, 0.1, 0.01])], label=""))
    labels = [text.text for text in wide.findall("text")]
    assert {"0.01", "0.1", "1", "10"} <= set(labels)


def test_what_is_not_finite_is_left_out_and_names_are_escaped():
    html = curves([Series("<b>", [0, 1, 2], [1.0, float("nan"), 2.0]), Series("none", [0], [float("inf")])], label='"')
    assert "&lt;b&gt;" in html and "<b>" not in html and "none" not in html and "nan" not in html
    assert "no values" in curves([], label="")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1234, "1,234"), (1.5e-4, "0.00015"), (2e-7, "2e-7"), (3e6, "3e6")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text
