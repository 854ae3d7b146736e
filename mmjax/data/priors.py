"""How often each answer follows each prompt: the table of the prior-adjusted answer loss (arXiv 2007.07314)."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import numpy as np
from jaxtyping import Float

from mmjax.data.processor import Processor
from mmjax.data.segments import Piece, draw
from mmjax.data.templates import template
from mmjax.types import Source, UserError

SAMPLE = 8000  # examples that are counted at most, evenly spread
MAX_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class AnswerPrior:
    """What is added to an answer's logits in training.

    Args:
      prompts: row of the table by prompt text. A prompt that was not counted has row 0.
      table: log max(p(first answer token | prompt), floor) for the answers of that kind of question, 0 elsewhere and in row 0.
    """

    prompts: dict[str, int]
    table: Float[np.ndarray, "rows vocab"]


def count_answer_prior(
    source: Source, template_name: str, processor: Processor, *, floor: float, seed: int = 0, sample: int = SAMPLE
) -> AnswerPrior:
    """Counts first answer tokens by prompt over a training split.

    At most `sample` examples, evenly spread, are read. The i-th question is of kind `meta["kinds"][i]`: its row covers the
    answers seen with that kind; without kinds, all answers seen.

    Args:
      source: examples with answers.
      template_name: entry of TEMPLATES that the training uses.
      processor: tokenizer of the language model.
      floor: smallest probability, above 0.
      seed: for templates that draw.
      sample: most examples that are read.

    Returns:
      The prior. `make_stream(prior=prior.prompts)` marks the positions that it applies to.

    Raises:
      UserError: the table would exceed 256 MiB: too many distinct prompts for so large a vocabulary.
    """
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    kinds_of: dict[str, set[str]] = collections.defaultdict(set)
    answers_of: dict[str, set[int]] = collections.defaultdict(set)
    render = template(template_name)
    number = min(sample, len(source))
    for index in (i * len(source) // number for i in range(number)):
        example = source[index]
        segments = render(example, draw(seed, "prior", index))
        for segment, kind in zip(segments, itertools.chain(example.meta.get("kinds", ()), itertools.repeat("")), strict=False):
            if segment.query is None or segment.answer < 0:
                continue
            piece = segment.parts[segment.answer]
            assert isinstance(piece, Piece)
            tokens = processor.encode(piece.text)
            if not tokens:
                continue
            counts[segment.query][tokens[0]] += 1
            kinds_of[segment.query].add(kind)
            answers_of[kind].add(tokens[0])

    size = (len(counts) + 1) * processor.limit * 4
    if size > MAX_BYTES:
        raise UserError(
            f"the answer prior of {len(counts):,} prompts x {processor.limit:,} tokens takes {size / 2**20:,.0f} MiB, "
            f"the limit is {MAX_BYTES // 2**20}; set objective.answer_prior=0"
        )
    table = np.zeros((len(counts) + 1, processor.limit), np.float32)
    for row, (prompt, counter) in enumerate(counts.items(), 1):
        for token in set().union(*(answers_of[kind] for kind in kinds_of[prompt])):
            table[row, token] = np.log(max(counter[token] / counter.total(), floor))
    return AnswerPrior({prompt: row for row, prompt in enumerate(counts, 1)}, table)
