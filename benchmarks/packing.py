"""How full rows are: packing beside padding and beside packing in order, on lengths like LLaVA-1.5's instructions.

    PYTHONPATH=. python benchmarks/packing.py [--rows=4096,8192] [--window=16384] [--windows=4] [--longest=2048] [--seed=0]

Nothing is downloaded: lengths are drawn. MIX names for each part of the 665K mix its number of examples, their images, and
the median and spread of the logarithm of their text's tokens, prompt and answers; an image is 576 tokens. The shares and the
longest example are LLaVA's, the medians are guesses of the length that such data have.

For each length of a row one line for every number of media slots: the share of text positions and of media slots that are used.
A row with fewer slots than its text could fill costs text positions, one with more costs encoder passes over nothing.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from jaxtyping import Int

from mmjax.data.packing import plan_window

IMAGE = 576  # soft tokens of an image
# Part: (thousands of examples, images, median of the text's tokens, standard deviation of its logarithm).
MIX = {
    "LLaVA-Instruct": (158, 1, 330, 0.5),
    "ShareGPT": (40, 0, 1400, 0.8),
    "VQAv2, many questions of an image": (83, 1, 220, 0.5),
    "GQA, many questions of an image": (72, 1, 260, 0.5),
    "OK-VQA": (9, 1, 85, 0.2),
    "OCR-VQA": (80, 1, 200, 0.3),
    "A-OKVQA": (66, 1, 110, 0.2),
    "TextCaps": (22, 1, 100, 0.3),
    "RefCOCO": (48, 1, 300, 0.6),
    "Visual Genome": (86, 1, 420, 0.3),
}


def draw(count: int, longest: int, seed: int) -> Int[np.ndarray, "examples 2"]:
    """(positions, images) of examples of the mix, cut at the longest."""
    generator = np.random.default_rng(seed)
    shares, images, medians, spreads = np.array(list(MIX.values())).T
    part = generator.choice(len(MIX), count, p=shares / shares.sum())
    text = np.exp(generator.normal(np.log(medians[part]), spreads[part]))
    shown = images[part].astype(int)
    return np.stack([np.minimum(text.astype(int) + IMAGE * shown, longest), shown], axis=1)


def in_order(sizes: Int[np.ndarray, "examples 2"], room: tuple[int, int]) -> int:
    """Rows that packing takes when a row is closed as soon as the next example does not fit."""
    rows, used = 1, np.zeros(2, int)
    for size in sizes:
        if (used + size > room).any():
            rows, used = rows + 1, np.zeros(2, int)
        used = used + size
    return rows


def packed(sizes: Int[np.ndarray, "examples 2"], room: tuple[int, int], window: int) -> int:
    """Rows of `mmjax.data.packing`, window by window."""
    return sum(len(plan_window(sizes[first : first + window], room, 0)[0]) for first in range(0, len(sizes), window))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="4096,8192", help="lengths of a row")
    for name, default in dict(window=16384, windows=4, longest=2048, seed=0).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    sizes = draw(options.window * options.windows, options.longest, options.seed)
    positions, images = sizes.sum(0)
    mean, longest = positions / len(sizes), sizes[:, 0].max()
    print(f"{len(sizes):,} examples, on average {mean:.0f} positions and {images / len(sizes):.2f} images")
    print(f"one example a row, padded to the longest ({longest}): {mean / longest:.1%} full")
    for length in map(int, options.rows.split(",")):
        enough = length // IMAGE
        started = time.perf_counter()
        print(f"\nrows of {length}       in order           packed\nmedia slots   text   media     text   media")
        for slots in range(max(1, round(enough * 0.6)), enough + 1):
            shares = [
                (positions / (rows * length), images / (rows * slots))
                for rows in (in_order(sizes, (length, slots)), packed(sizes, (length, slots), options.window))
            ]
            print(f"{slots:11}  " + "   ".join(f"{text:6.1%}  {media:6.1%}" for text, media in shares))
        print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
