"""Draws metrics of finished runs into one SVG, for docs/results.md.

    python benchmarks/plot_runs.py --out=docs/figures/captions.svg --title="loss of captions" \\
        "with stage 1=runs/ablation/zero_shot-with-0:stage2:train/loss" …

Each curve is NAME=WORKDIR:STAGE:METRIC, over the stage's steps.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from mmjax.evaluation.curves import COLOURS, HEIGHT, LEFT, WIDTH, Series, curves, number

LINE, STYLE = (
    15,
    """<style>
svg { background: #ffffff; font: 11px sans-serif; }
svg text { fill: #5b646c; } svg .axis { stroke: #dde2e6; fill: none; }
svg .curve { fill: none; stroke-width: 1.8; } svg .raw { fill: none; opacity: .25; }
</style>""",
)
PALETTE = ("#2f6fb0", "#d0762a", "#3f8f5f", "#a3478f", "#8a7a24", "#4b4f9c", "#777f89")


def read(spec: str) -> Series:
    """The curve of NAME=WORKDIR:STAGE:METRIC."""
    name, _, place = spec.partition("=")
    workdir, stage, metric = place.rsplit(":", 2)
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    points = [(line["step"], line[metric]) for line in lines if line["stage"] == stage and metric in line]
    if not points:
        raise SystemExit(f"{workdir} has no {metric} in stage {stage}")
    return Series(name, *zip(*points, strict=True), dots=len(points) < 12)


def standalone(series: list[Series], title: str) -> str:
    """The drawing as a file of its own: colours and legend inside."""
    drawing = re.search(r"<svg.*</svg>", curves(series, label=title), re.DOTALL)
    assert drawing is not None
    body = re.sub(r"var\(--c(\d)\)", lambda match: PALETTE[int(match[1]) % COLOURS], drawing[0])
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    words = [(title, "#20262b"), *((f"{one.name} ({number(one.y[-1])})", PALETTE[i]) for i, one in enumerate(series))]
    legend = "".join(
        f'<text x="{LEFT}" y="{HEIGHT + LINE * (row + 1)}" style="fill:{colour}">{text}</text>'
        for row, (text, colour) in enumerate(words)
    )
    box = f"0 0 {WIDTH} {HEIGHT + LINE * len(words) + 6}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}" viewBox="{box}">{STYLE}{body}{legend}</svg>\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("curves", nargs="+", type=read)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(standalone(options.curves, options.title))


if __name__ == "__main__":
    main()
