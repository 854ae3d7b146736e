"""Curves as inline SVG, by pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mmjax.evaluation.html import Html, tag

WIDTH, HEIGHT = 330, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24  # margins
COLOURS = 7  # of the style sheet, --c0 …
LOG_SPAN = 20  # positive values that span more than this factor get a logarithmic axis
MOST_POINTS = 400  # of a drawn curve


Real = float | int


class Series(NamedTuple):
    """A named curve; `dots` marks the points, for curves of few."""

    name: str
    x: Sequence[Real]
    y: Sequence[Real]
    dots: bool = False


def smooth(values: Sequence[Real], window: Real) -> list[Real]:
    """Exponential moving average over about `window` values, unbiased at the start."""
    decay = 1 - 1 / max(window, 1)
    total = weight = 0.0
    averages = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        averages.append(total / weight)
    return averages


def ticks(low: Real, high: Real, log: bool = False, most: int = 5) -> list[Real]:
    """Round values inside [low, high]: steps of 1, 2 or 5 times a power of ten, on a logarithmic axis powers of ten."""
    if log:
        powers = list(range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1))
        if len(powers) > 1:
            return [10.0**power for power in powers[:: math.ceil(len(powers) / most)]]
        return [low, high]
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= most)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def curves(series: Sequence[Series], *, label: str, unit_range: bool = False) -> Html:
    """Draws curves over steps with a legend: the values faint, their running mean strong.

    Args:
      series: points that are not finite are left out.
      label: what a screen reader says.
      unit_range: fix the axis to 0…1, for shares.
    """
    kept = [_finite(one) for one in series]
    kept = [one for one in kept if one.x]
    if not kept:
        return tag("p", "no values", class_="quiet")
    values = [value for one in kept for value in one.y]
    log = not unit_range and min(values) > 0 and max(values) / min(values) > LOG_SPAN
    low, high = (0.0, 1.0) if unit_range else _bounds(min(values), max(values), log)
    first, last = min(one.x[0] for one in kept), max(one.x[-1] for one in kept)

    def across(x: Real) -> float:
        return LEFT + (x - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def up(y: Real) -> float:
        share = (math.log(y / low) / math.log(high / low)) if log else (y - low) / (high - low)
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def path(x: Sequence[Real], y: Sequence[Real]) -> str:
        stride = max(1, math.ceil(len(x) / MOST_POINTS))
        chosen = sorted({*range(0, len(x), stride), len(x) - 1})
        return "M" + "L".join(f"{across(x[i]):.1f} {up(y[i]):.1f}" for i in chosen)

    shapes = []
    for value in ticks(low, high, log):
        shapes.append(tag("path", class_="axis", d=f"M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}"))
        shapes.append(tag("text", number(value), x=LEFT - 6, y=f"{up(value) + 4:.1f}", text_anchor="end"))
    for value in ticks(first, last) if last > first else [first]:
        shapes.append(tag("text", number(value), x=f"{across(value):.1f}", y=HEIGHT - 6, text_anchor="middle"))
    for index, one in enumerate(kept):
        colour = f"var(--c{index % COLOURS})"
        if one.dots or len(one.x) == 1:
            shapes += [
                tag("circle", cx=f"{across(x):.1f}", cy=f"{up(y):.1f}", r=3, fill=colour)
                for x, y in zip(one.x, one.y, strict=True)
            ]
            shapes.append(tag("path", class_="curve", d=path(one.x, one.y), stroke=colour))
        else:
            shapes.append(tag("path", class_="raw", d=path(one.x, one.y), stroke=colour))
            shapes.append(tag("path", class_="curve", d=path(one.x, smooth(one.y, len(one.y) / 25)), stroke=colour))
    drawing = tag("svg", shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    names = [(one.name, f"var(--c{index % COLOURS})", number(one.y[-1])) for index, one in enumerate(kept)]
    return Html(drawing + legend([(f"{name} {value}", colour) for name, colour, value in names]))


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Names with a patch of their colour."""
    return tag("div", [tag("span", tag("i", style=f"background:{colour}"), name) for name, colour in entries], class_="legend")


def number(value: Real) -> str:
    """Three significant digits, short."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.2g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _finite(one: Series) -> Series:
    points = [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
    return one._replace(x=[x for x, _ in points], y=[y for _, y in points])


def _bounds(low: Real, high: Real, log: bool) -> tuple[Real, Real]:
    if log:
        return low / 1.1, high * 1.1
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < 0.3 * high else low - margin), high + margin
