"""Decoding with an encoder–decoder: `transformers`' answers, from one reading of each source."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import mmjax
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.search import Searcher
from mmjax.parallel.axes import shardings
from mmjax.parallel.mesh import make_mesh
from mmjax.types import Batch, Text

ENDS = (1, 17)  # several, so that answers differ in length
NO_END = DecodingOptions(max_new_tokens=6)
CLEAR = 1e-4  # a smaller difference between the two best is left to rounding, and its prompt is drawn anew


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A random T5 of `transformers`, the same of ours, and its compiled searches."""
    directory = tmp_path_factory.mktemp("t5")
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=10, d_ff=44, num_layers=3, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=11, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    reference = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for key, parameter in reference.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (1.0 if key == "shared.weight" else 0.3) + float("norm" in key))
    reference.save_pretrained(directory)
    model = mmjax.from_pretrained(directory)
    return reference, model, Searcher(model.definition.bind)


def draw(count, seed):
    generator = np.random.default_rng(seed)
    return [generator.integers(2, 50, generator.integers(1, 13)).tolist() for _ in range(count)]


def text(rows, length=None):
    """Rows padded on the right."""
    length = length or max(map(len, rows))
    tokens, segments = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    for i, row in enumerate(rows):
        tokens[i, : len(row)], segments[i, : len(row)] = row, 1
    return Text(tokens, tokens, np.zeros(tokens.shape, np.float32), np.cumsum(segments, 1) - 1, segments)


def prompts(rows, length=None):
    return Batch(text=text([[0]] * len(rows)), source=text(rows, length))


def theirs(reference, rows, **options):
    """Tokens and scores of the best answer of every row, and how far the second best lies behind."""
    batch = text(rows)
    output = reference.generate(
        torch.tensor(batch.tokens), attention_mask=torch.tensor(batch.segments), do_sample=False, eos_token_id=list(ENDS),
        return_dict_in_generate=True, output_scores=True, num_return_sequences=options.get("num_beams", 1), **options,
    )  # fmt: skip
    beams = options.get("num_beams", 1)
    tokens = output.sequences[:, 1:].reshape(len(rows), beams, -1)[:, 0].numpy()
    if beams > 1:
        scores = output.sequences_scores.reshape(len(rows), beams)
        return tokens, scores[:, 0].numpy(), (scores[:, 0] - scores[:, 1]).numpy()
    steps = torch.stack([step.log_softmax(-1).topk(2).values for step in output.scores], 1)
    read = torch.tensor(lengths(tokens))[:, None] > torch.arange(steps.shape[1])
    gaps = torch.where(read, steps[..., 0] - steps[..., 1], 1.0)
    return tokens, (steps[..., 0] * read).sum(1).numpy(), gaps.min(1).values.numpy()


def lengths(tokens):
    """Tokens of each answer up to its end."""
    ended = np.isin(tokens, ENDS)
    return np.where(ended.any(1), ended.argmax(1) + 1, tokens.shape[1])


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(repetition_penalty=1.7, min_new_tokens=4),
        dict(num_beams=4, min_new_tokens=3),
        dict(num_beams=3, length_penalty=-1.0),
        dict(num_beams=3, length_penalty=2.0, early_stopping=True),
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "greedy",
)
def test_same_tokens_and_scores_as_transformers(pair, options):
    """Twenty random prompts of 1 to 12 tokens in one padded batch."""
    reference, model, searcher = pair
    candidates = draw(30, seed=3)
    clear = theirs(reference, candidates, max_new_tokens=8, **options)[2] > CLEAR
    rows = [row for row, is_clear in zip(candidates, clear, strict=True) if is_clear][:20]
    assert len(rows) == 20
    tokens, scores, _ = theirs(reference, rows, max_new_tokens=8, **options)
    answers = searcher.run(model.parameters, prompts(rows), DecodingOptions(max_new_tokens=8, eos_token_id=ENDS, **options))
    expected = [row[:length].tolist() for row, length in zip(tokens, lengths(tokens), strict=True)]
    assert [row[:length].tolist() for row, length in zip(answers.tokens, answers.lengths, strict=True)] == expected
    assert len({tuple(row) for row in expected}) > 5
    if "repetition_penalty" not in options:  # theirs are scores after the penalty, ours before
        totals = answers.logprobs.sum(1)
        if "num_beams" in options:
            totals = totals / answers.lengths ** options.get("length_penalty", 1.0)
        np.testing.assert_allclose(totals, scores, atol=1e-4, rtol=1e-5)


def test_cached_greedy_equals_full_forward_token_by_token(pair):
    _, model, searcher = pair
    rows = draw(3, seed=4)
    answers = searcher.run(model.parameters, prompts(rows), NO_END)

    @jax.jit
    def forward(parameters, batch):
        module = model.definition.bind(parameters)
        return jax.nn.log_softmax(module.llm.logits(module.hidden(batch)))

    written = np.concatenate([np.zeros((3, 1), int), answers.tokens[:, :-1]], 1)
    logprobs = forward(model.parameters, Batch(text=text(written.tolist()), source=text(rows)))
    np.testing.assert_array_equal(answers.tokens, jnp.argmax(logprobs, -1))
    np.testing.assert_allclose(answers.logprobs, jnp.max(logprobs, -1), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        NO_END,
        pytest.param(dataclasses.replace(NO_END, num_beams=3), marks=pytest.mark.heavy),
        pytest.param(dataclasses.replace(NO_END, do_sample=True, top_k=20, top_p=0.9), marks=pytest.mark.heavy),
    ],
    ids=["greedy", "beam", "sample"],
)
def test_a_row_sees_neither_neighbours_nor_padding(pair, options):
    _, model, searcher = pair
    rows, seeds = draw(4, seed=5), np.arange(4)
    together = searcher.run(model.parameters, prompts(rows, length=20), options, seeds=seeds)
    for i, row in enumerate(rows):
        alone = searcher.run(model.parameters, prompts([row]), options, seeds=seeds[i : i + 1])
        np.testing.assert_array_equal(together.tokens[i], alone.tokens[0])
        np.testing.assert_allclose(together.logprobs[i], alone.logprobs[0], atol=1e-4)


def test_the_loop_neither_encodes_nor_projects_the_source_again(pair):
    """In the compiled loop no product reads the source's 13 positions but those of attention, and no beam moves them."""
    _, model, _ = pair
    searcher = Searcher(model.definition.bind)
    options, knobs = dataclasses.replace(NO_END, num_beams=2).split()
    batch = prompts(draw(2, seed=6), length=13)
    seeds = np.zeros(2, np.int32)
    state = searcher._start(model.parameters, batch, seeds, knobs, options=options)
    assert state.reader.cache.source_keys.shape == (3, 4, 13, 4, 10)
    advance = functools.partial(searcher._advance, knobs=knobs, options=options)
    program = str(jax.make_jaxpr(advance)(model.parameters, state, np.zeros(2, bool), np.int32(6)))
    assert "[4,13,24]" not in program, "no hidden state of the source enters the loop"
    gathers = [line for line in program.splitlines() if "= gather[" in line]
    assert any("[3,4,4,6,10]" in line for line in gathers), "a beam's own keys move"
    assert not any("[3,4,13,4,10]" in line for line in gathers), "the source's keys stay"


@pytest.mark.heavy
def test_a_mesh_changes_no_token(pair):
    _, model, searcher = pair
    mesh = make_mesh({"replica": 2, "fsdp": 2, "tensor": 2})
    sharded = jax.device_put(model.parameters, shardings(model.definition.specs, mesh))
    batch = prompts(draw(4, seed=7), length=12)
    for options in (NO_END, dataclasses.replace(NO_END, num_beams=3)):
        on_mesh = Searcher(model.definition.bind).run(sharded, batch, options)
        alone = searcher.run(model.parameters, batch, options)
        np.testing.assert_array_equal(on_mesh.tokens, alone.tokens)
        np.testing.assert_allclose(on_mesh.logprobs, alone.logprobs, atol=1e-4)
