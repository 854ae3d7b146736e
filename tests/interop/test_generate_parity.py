"""Greedy and beam search give the tokens and scores of `transformers.generate`, for prompts padded on the left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmjax
from mmjax.decoding.generate import searcher_of
from mmjax.decoding.options import DecodingOptions
from mmjax.types import Batch, Text
from tests.interop import language_models

PROMPTS, LENGTH, NEW = 20, 8, 8
PAD = 1  # transformers takes a pad of 0 for none
ENDS = tuple(range(2, language_models.VOCAB, 6))  # so many that answers differ in length
GAP = 1e-4  # where the reference itself nearly ties, rounding decides


def draw_prompts(generator: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of prompts of 2 to LENGTH tokens, padded on the left."""
    lengths = generator.integers(2, LENGTH + 1, rows)
    mask = (np.arange(LENGTH) >= LENGTH - lengths[:, None]).astype(np.int32)
    return generator.integers(3, language_models.VOCAB, mask.shape) * mask, mask


@torch.no_grad()
def theirs(reference, tokens: np.ndarray, mask: np.ndarray, beams: int):
    """New tokens, their score, and how close the runner-up came, row by row."""
    output = reference.generate(
        torch.tensor(tokens), attention_mask=torch.tensor(mask), max_new_tokens=NEW, num_beams=beams, do_sample=False,
        num_return_sequences=beams, eos_token_id=list(ENDS), pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    answers = output.sequences[:, LENGTH:].numpy()
    if beams > 1:
        scores = output.sequences_scores.numpy().reshape(-1, beams)
        return answers[::beams], scores[:, 0], scores[:, 0] - scores[:, 1]
    logprobs = torch.stack(output.scores, 1).log_softmax(-1)
    best = logprobs.topk(2).values
    open_ = np.cumsum(np.isin(answers, ENDS), 1) - np.isin(answers, ENDS) == 0
    gaps = np.where(open_, (best[..., 0] - best[..., 1]).numpy(), np.inf)
    return answers, (best[..., 0].numpy() * open_).sum(1), gaps.min(1)


def clear_prompts(reference, beams: int):
    """Prompts whose answers are not a matter of rounding, with those answers and scores."""
    generator, kept = np.random.default_rng(beams), []
    while sum(len(rows[0]) for rows in kept) < PROMPTS:
        tokens, mask = draw_prompts(generator, PROMPTS)
        answers, scores, gaps = theirs(reference, tokens, mask, beams)
        kept.append([rows[gaps > GAP] for rows in (tokens, mask, answers, scores)])
    return [np.concatenate(rows)[:PROMPTS] for rows in zip(*kept, strict=True)]


NAMES = ("llama", "llama3", "mistral", "qwen2", "qwen3", "opt", "opt_350m", "palm")
QUICK = (("llama", 3), ("opt", 1), ("palm", 1))
CASES = [
    pytest.param(name, beams, marks=() if (name, beams) in QUICK else pytest.mark.heavy) for name in NAMES for beams in (1, 3)
]


@pytest.mark.parametrize(("name", "beams"), CASES)
def test_tokens_and_scores_are_those_of_transformers(name, beams, tmp_path):
    reference = language_models.make(name, tmp_path)
    tokens, mask, answers, scores = clear_prompts(reference, beams)
    model = mmjax.from_pretrained(tmp_path)
    text = Text(
        tokens.astype(np.int32), np.zeros_like(mask), np.zeros(mask.shape, np.float32), np.maximum(mask.cumsum(1) - 1, 0), mask
    )
    options = DecodingOptions(max_new_tokens=NEW, num_beams=beams, eos_token_id=ENDS, pad_token_id=PAD)
    got = searcher_of(model).run(model.parameters, Batch(text=text), options)
    np.testing.assert_array_equal(got.tokens[:, : answers.shape[1]], answers)
    totals = got.logprobs.sum(1) / (got.lengths if beams > 1 else 1)
    np.testing.assert_allclose(totals, scores, atol=1e-4)
    assert len(set(got.lengths)) > 1
