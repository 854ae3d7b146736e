"""BLIP-2's stage 1 writes captions: a file of LAVIS gives the tokens of a reading in PyTorch that has no cache."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import gelu, layer_norm, linear
from transformers.modeling_outputs import CausalLMOutput

import mmjax
from mmjax.decoding.writer import writer_of
from mmjax.types import UserError
from tests.interop.test_lavis import QFORMER, make_stage1

VOCAB = 40
CLS, SEP, PAD, DEC = 2, 3, 0, VOCAB - 1
HEADS, LAYERS, EPS = QFORMER["num_attention_heads"], QFORMER["num_hidden_layers"], 1e-12


class Reading(transformers.PreTrainedModel, transformers.GenerationMixin):
    """LAVIS's captioner by hand, on its tensors: every step reads queries and text anew under the mask of stage 1."""

    config_class = transformers.PreTrainedConfig
    main_input_name = "input_ids"

    def __init__(self, tensors):
        super().__init__(transformers.PreTrainedConfig(vocab_size=VOCAB, is_encoder_decoder=False))
        self.tensors = tensors
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def dense(self, name, x):
        return linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def norm(self, name, x):
        return layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], EPS)

    def attend(self, name, x, source, allowed=None):
        def heads(part, of):
            return self.dense(f"{name}.self.{part}", of).unflatten(-1, (HEADS, -1)).transpose(1, 2)

        query, key, value = heads("query", x), heads("key", source), heads("value", source)
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        scores = scores if allowed is None else scores.masked_fill(~allowed, -1e30)
        read = self.dense(f"{name}.output.dense", (scores.softmax(-1) @ value).transpose(1, 2).flatten(-2))
        return self.norm(f"{name}.output.LayerNorm", x + read)

    def feed_forward(self, name, suffix, x):
        inner = gelu(self.dense(f"{name}.intermediate{suffix}.dense", x))
        return self.norm(f"{name}.output{suffix}.LayerNorm", x + self.dense(f"{name}.output{suffix}.dense", inner))

    def forward(self, input_ids, features, **_):
        bert, length = "Qformer.bert.embeddings", input_ids.shape[1]
        words = self.tensors[f"{bert}.word_embeddings.weight"][input_ids]
        words = words + self.tensors[f"{bert}.position_embeddings.weight"][:length]
        seen = self.tensors["query_tokens"].expand(len(input_ids), -1, -1)
        x, queries = self.norm(f"{bert}.LayerNorm", torch.cat([seen, words], 1)), seen.shape[1]
        allowed = torch.ones(queries + length, queries + length, dtype=torch.bool).tril()
        allowed[:queries, :queries] = True
        for number in range(LAYERS):
            layer = f"Qformer.bert.encoder.layer.{number}"
            x = self.attend(f"{layer}.attention", x, x, allowed)
            query, text = x[:, :queries], x[:, queries:]
            if number % 2 == 0:
                query = self.attend(f"{layer}.crossattention", query, features)
            x = torch.cat([self.feed_forward(layer, "_query", query), self.feed_forward(layer, "", text)], 1)
        head = "Qformer.cls.predictions"
        hidden = self.norm(f"{head}.transform.LayerNorm", gelu(self.dense(f"{head}.transform.dense", x[:, queries:])))
        return CausalLMOutput(logits=linear(hidden, self.tensors[f"{head}.decoder.weight"], self.tensors[f"{head}.bias"]))

    def prepare_inputs_for_generation(self, input_ids, features=None, **_):
        return {"input_ids": input_ids, "features": features}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """The file's model, pictures, and the reading with their features."""
    directory = tmp_path_factory.mktemp("stage1")
    path, reference, tensors = make_stage1(directory, VOCAB)
    for key in tensors:  # so that captions depend on the pictures
        tensors[key] *= 4 if "attention.output.dense" in key else 1
    torch.save({"model": tensors}, path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(VOCAB - 5))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory / "bert")
    model = mmjax.from_pretrained(path, parts={"tokenizers.connector": str(directory / "bert")})
    draw = np.random.default_rng(4)
    pictures = [np.broadcast_to(draw.integers(0, 256, 3, dtype=np.uint8), (28, 28, 3)).copy() for _ in range(5)]
    encoder = model.definition.bind(model.parameters).encoders["image"]
    pixels = np.array(encoder.pixels(jnp.asarray(np.stack(pictures)))).transpose(0, 3, 1, 2)
    with torch.no_grad():
        features = reference.vision_model(torch.tensor(pixels)).last_hidden_state
    return model, pictures, Reading(tensors).eval(), features


@pytest.mark.parametrize("beams", [pytest.param(1, marks=pytest.mark.heavy), 3])
@pytest.mark.parametrize("begun", [pytest.param("", marks=pytest.mark.heavy), "w4 w11"])
def test_captions_are_those_of_the_reading(case, beams, begun):
    model, pictures, reading, features = case
    start = torch.tensor([[DEC, *(4 + int(word[1:]) for word in begun.split())]]).expand(len(pictures), -1)
    # LAVIS counts [DEC] among its 10 to 30 tokens.
    lengths = {"max_length": 30, "min_length": 10} if not begun else {"max_new_tokens": 7}
    expected = reading.generate(
        input_ids=start, features=features, num_beams=beams, do_sample=False, use_cache=False, eos_token_id=SEP,
        pad_token_id=PAD, **lengths,
    )[:, start.shape[1] :]  # fmt: skip
    ours = {"max_new_tokens": 29, "min_new_tokens": 9} if not begun else lengths
    answers = mmjax.generate(model, [begun] * 5, images=[[picture] for picture in pictures], num_beams=beams, **ours)
    for answer, row in zip(answers, expected.tolist(), strict=True):
        assert list(answer.tokens) == row[: len(answer.tokens)] and set(row[len(answer.tokens) :]) <= {PAD}
        assert "[" not in answer and (len(answer.tokens) == ours["max_new_tokens"] or answer.tokens[-1] == SEP)
    assert len({answer.tokens for answer in answers}) > 1


@pytest.mark.heavy
def test_cached_steps_are_the_whole_pass(case):
    """Any cut of a text gives the same logits, those of the pass that trains."""
    model, pictures, _, _ = case
    writer = writer_of(model)
    asked = [mmjax.types.ask("w1 w2 w3 w4 w5", mmjax.types.Medium("image", picture)) for picture in pictures[:2]]
    batch = jax.tree.map(jnp.asarray, writer.processor.prompts(asked))
    system = writer.definition.bind(writer.parameters)
    length = batch.text.tokens.shape[1]
    embeddings, told = system.begin(batch)
    whole = system.llm(embeddings, batch.text.positions, batch.text.segments, **told)[0]
    cache, pieces = system.llm.init_cache(2, length, **told), []
    for piece in np.split(np.arange(length), [length - 4, length - 1]):
        hidden, cache = system.llm(embeddings[:, piece], batch.text.positions[:, piece], batch.text.segments[:, piece], cache)
        pieces.append(hidden)
    own = batch.text.segments > 0
    np.testing.assert_allclose(jnp.concatenate(pieces, 1)[own], whole[own], atol=1e-5)
    qformer = model.definition.bind(model.parameters).connectors["image"]
    tokens = jnp.asarray(batch.text.tokens[:, -6:])
    features = system.system.encode(batch, "image")
    trained = qformer(features, None, tokens[:, None], jnp.ones(tokens.shape, bool)[:, None], direction="causal")
    np.testing.assert_allclose(whole[:, -6:], trained.text[:, 0], atol=1e-5)
    assert tokens[0, 0] == DEC


def test_a_caption_s_score_is_the_sum_over_its_tokens(case):
    model, pictures, reading, features = case
    text = [DEC, 9, 20, 7, SEP]
    with torch.no_grad():
        logits = reading(torch.tensor([text[:-1]]).expand(2, -1), features[:2]).logits.log_softmax(-1)
    expected = logits[:, range(4), text[1:]].sum(1)
    got = mmjax.score(model, ["", ""], ["w5 w16 w3"] * 2, images=[[picture] for picture in pictures[:2]])
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_cannot_be_captioned_is_told(case, tmp_path):
    model, pictures, _, _ = case
    for images in ([pictures[:2], pictures[:1]], [[], pictures[:1]]):
        with pytest.raises(UserError, match=f"one picture at a time, got {len(images[0])}"):
            mmjax.generate(model, ["", ""], images=images)
    mmjax.save_pretrained(model, tmp_path)
    again = mmjax.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="without its captioning head, which Blip2ForImageTextRetrieval does not store"):
        mmjax.generate(again, [""], images=[pictures[:1]])
    tokenless = mmjax.types.Model(model.definition, model.parameters, None, model.config)
    with pytest.raises(UserError, match="came without a tokenizer"):
        mmjax.generate(tokenless, [""], images=[pictures[:1]])
