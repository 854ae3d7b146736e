"""Decoding against full forward passes, against `transformers`, and against itself in other batches."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import torch

from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.search import Searcher
from mmjax.types import UserError

ROWS = ([2, 7, 8, 9, 10], [2, 11], [2, 30, 31, 5])
NO_END = DecodingOptions(max_new_tokens=6)


def full_logits(toy, row):
    """Logits at every position of one row, without a cache."""
    return np.asarray(toy.forward(toy.parameters, toy.prompts(row, length=16)))[0, 16 - len(row) :, :40]


def theirs(toy, row, **options):
    """What `transformers` generates for one row."""
    ids = torch.tensor([row])
    defaults = dict(do_sample=False, pad_token_id=1, attention_mask=torch.ones_like(ids))
    output = toy.reference.generate(ids, **{**defaults, **options})
    return output[0, len(row) :].tolist()


def ours(toy, rows, options, **how):
    answers = toy.searcher.run(toy.parameters, toy.prompts(*rows), options, **how)
    return [tokens[:length].tolist() for tokens, length in zip(answers.tokens, answers.lengths, strict=True)]


def test_cached_greedy_equals_full_forward_token_by_token(toy):
    answers = toy.searcher.run(toy.parameters, toy.prompts(*ROWS), NO_END)
    for row, tokens, logprobs in zip(ROWS, answers.tokens, answers.logprobs, strict=True):
        logits = full_logits(toy, [*row, *tokens])[len(row) - 1 : -1]
        assert tokens.tolist() == logits.argmax(-1).tolist()
        expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(6), tokens]
        np.testing.assert_allclose(logprobs, expected, rtol=1e-5, atol=1e-5)


def test_learned_positions_are_used_to_the_last_and_not_beyond(toy):
    """64 positions: a prompt of 5 tokens and 60 new ones, of which the last is never read."""
    (answer,) = ours(toy, ROWS[:1], DecodingOptions(max_new_tokens=60))
    assert answer == theirs(toy, ROWS[0], max_new_tokens=60, eos_token_id=None)
    with pytest.raises(
        UserError,
        match="of 5 tokens and max_new_tokens=61: the language model has 64 positions; give max_new_tokens=60 at most",
    ):
        ours(toy, ROWS, DecodingOptions(max_new_tokens=61))
    with pytest.raises(IndexError):
        theirs(toy, ROWS[0], max_new_tokens=61, eos_token_id=None)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(repetition_penalty=1.8, min_new_tokens=5),
        dict(num_beams=3),
        dict(num_beams=3, length_penalty=-1.0),
        dict(num_beams=3, length_penalty=2.0),
        dict(num_beams=3, length_penalty=2.0, early_stopping=True),
        dict(num_beams=3, length_penalty=0.0, early_stopping="never"),
        dict(num_beams=3, length_penalty=1.5, early_stopping="never"),
        dict(num_beams=2, repetition_penalty=1.5, min_new_tokens=3),
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "greedy",
)
def test_same_tokens_as_transformers(toy, options):
    rows = [*ROWS, [2, 20, 21, 22], [2, 33], [2, 5, 38]]
    ends = (2, 17, 33)  # several, and likely enough that answers differ in length
    mine = ours(toy, rows, DecodingOptions(max_new_tokens=8, eos_token_id=ends, **options))
    assert mine == [theirs(toy, row, max_new_tokens=8, eos_token_id=list(ends), **options) for row in rows]


def test_beam_finds_the_best_of_all_answers(toy):
    """As wide as the vocabulary, a beam search over three tokens is exhaustive."""
    row = [2, 7, 8]
    options = DecodingOptions(max_new_tokens=2, num_beams=40, length_penalty=0.0)
    first = jax.nn.log_softmax(full_logits(toy, row)[-1])
    scores = {
        (a, b): float(first[a] + second[b])
        for a in range(40)
        for second in [np.asarray(jax.nn.log_softmax(full_logits(toy, [*row, a])[-1]))]
        for b in range(40)
    }
    best = max(itertools.product(range(40), repeat=2), key=scores.__getitem__)
    answers = toy.searcher.run(toy.parameters, toy.prompts(row), options)
    assert tuple(answers.tokens[0]) == best
    np.testing.assert_allclose(answers.logprobs[0].sum(), scores[best], rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [NO_END, dataclasses.replace(NO_END, num_beams=3), dataclasses.replace(NO_END, do_sample=True, top_k=20, top_p=0.9)],
    ids=["greedy", "beam", "sample"],
)
def test_a_row_does_not_see_its_neighbours(toy, options):
    together = ours(toy, ROWS, options, seeds=np.array([5, 6, 7]))
    alone = [ours(toy, [row], options, seeds=np.array([seed])) for row, seed in zip(ROWS, (5, 6, 7), strict=True)]
    assert together == [rows[0] for rows in alone]


def test_sampling_follows_the_truncated_distribution(toy):
    """1,000 draws of one token: only the top k come, about as often as they should; log-probabilities are untruncated."""
    options = DecodingOptions(max_new_tokens=1, do_sample=True, top_k=3, temperature=0.7)
    row = [2, 7, 8]
    answers = toy.searcher.run(toy.parameters, toy.prompts(*[row] * 1000), options)
    logits = full_logits(toy, row)[-1] / 0.7
    top = np.argsort(-logits)[:3]
    expected = np.exp(logits[top]) / np.exp(logits[top]).sum()
    shares = [(answers.tokens[:, 0] == token).mean() for token in top]
    np.testing.assert_allclose(sum(shares), 1.0)
    np.testing.assert_allclose(shares, expected, atol=0.06)
    untruncated = np.asarray(jax.nn.log_softmax(logits))[answers.tokens[:, 0]]
    np.testing.assert_allclose(answers.logprobs[:, 0], untruncated, rtol=1e-4, atol=1e-5)


def test_pieces_join_to_the_whole_and_stop_on_request(toy):
    whole = ours(toy, ROWS, NO_END)
    pieces = list(toy.searcher.pieces(toy.parameters, toy.prompts(*ROWS), NO_END, piece=2))
    assert [int(piece.lengths[0]) for piece in pieces] == [1, 3, 5, 6]
    assert [row.tolist() for row in pieces[-1].tokens] == whole

    def stop(answers):
        return np.array([True, False, False])

    stopped = ours(toy, ROWS, NO_END, piece=2, stop=stop)
    assert stopped == [whole[0][:1], whole[1], whole[2]]


def test_nothing_compiles_again_for_the_same_shapes(toy):
    searcher = Searcher(toy.definition.bind)
    for temperature, top_k, seed in ((1.0, 0, 0), (0.5, 4, 1), (2.0, 0, 2)):
        options = dataclasses.replace(NO_END, do_sample=True, temperature=temperature, top_k=top_k, seed=seed)
        searcher.run(toy.parameters, toy.prompts(*ROWS), options, piece=2)
    assert searcher.compilations == 2


@pytest.mark.parametrize("bad", [dict(max_new_tokens=0), dict(temperature=0.0), dict(top_p=1.5), dict(early_stopping="soon")])
def test_impossible_options_are_refused(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        DecodingOptions(**bad)
