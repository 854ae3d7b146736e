"""HTML by functions: text is escaped because it is text, markup is not because it is `Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

VOID = {"meta", "img", "br"}


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
      name: of the element.
      children: Html stays as it is, anything else is escaped; None and False are left out, iterables are unfolded.
      attributes: `class_` gives "class", other underscores become hyphens; None and False are left out.
    """
    rendered = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    opening = f"<{name}{rendered}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def join(children: Any) -> Html:
    """Children one after the other."""
    if children is None or children is False:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, Iterable) and not isinstance(children, str):
        return Html("".join(map(join, children)))
    return Html(html.escape(str(children)))


def table(head: list[Any], rows: list[list[Any]], *, numbers_from: int = 1) -> Html:
    """A table that scrolls sideways on a narrow screen; columns from `numbers_from` on are aligned as numbers."""

    def row(cells: list[Any], cell: str) -> Html:
        return tag("tr", [tag(cell, value, class_="number" if i >= numbers_from else None) for i, value in enumerate(cells)])

    body = tag("tbody", [row(cells, "td") for cells in rows])
    return tag("div", tag("table", tag("thead", row(head, "th")), body), class_="scroll")


def page(title: str, *body: Any) -> Html:
    """A whole document that refers to nothing outside itself."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return Html("<!doctype html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n")


STYLE = """
:root { --page: #fbfaf8; --card: #fff; --text: #1d2126; --quiet: #68707a; --line: #e4e2de; --good: #1f7a4d; --bad: #b3382c;
  --c0: #2f6fb0; --c1: #d0762a; --c2: #3f8f5f; --c3: #a3478f; --c4: #8a7a24; --c5: #4b4f9c; --c6: #777f89; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --text: #e6e8ea; --quiet: #98a1ab;
  --line: #2d3338; --good: #5cc28d; --bad: #f0857a; --c0: #6aa9e8; --c1: #eaa25f; --c2: #74c594; --c3: #d98cc8; --c4: #cdbb5d;
  --c5: #9da1ee; --c6: #9aa3ad; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 3rem 0 .75rem; font-weight: 650; }
h3 { font-size: .95rem; margin: 0 0 .5rem; font-weight: 600; }
p { margin: .35rem 0; } .quiet { color: var(--quiet); font-size: .875rem; overflow-wrap: anywhere; }
.grid { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least, 20rem)), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem; min-width: 0; }
.figure { font-size: 2rem; font-weight: 650; line-height: 1.15; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th { text-align: left; font-weight: 600; color: var(--quiet); }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.bar { display: inline-block; width: 7rem; height: .5rem; border-radius: .25rem; background: var(--line); overflow: hidden;
  vertical-align: middle; } .bar i { display: block; height: 100%; background: var(--c0); }
.good { color: var(--good); } .bad { color: var(--bad); }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; margin-bottom: .6rem; }
.view { position: relative; aspect-ratio: 1; border-radius: .35rem; overflow: hidden; background: var(--line); }
.view img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: fill; }
.view .pixels { image-rendering: pixelated; }
.stack { display: flex; height: .9rem; border-radius: .45rem; overflow: hidden; margin: .5rem 0; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem .9rem; font-size: .8rem; color: var(--quiet); }
.legend span { white-space: nowrap; } .legend i { display: inline-block; width: .65rem; height: .65rem; border-radius: .15rem;
  margin-right: .35rem; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--quiet); } svg .axis { stroke: var(--line); stroke-width: 1; fill: none; }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; } svg .raw { fill: none; stroke-width: 1; opacity: .25; }
pre { font: .8rem/1.45 ui-monospace, monospace; overflow-x: auto; margin: .5rem 0 0; } summary { cursor: pointer; }
"""
