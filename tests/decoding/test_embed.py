"""`embed` gives the vectors of transformers, whatever the batches, and says what a model cannot embed."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import mmjax
from mmjax.parallel.mesh import make_mesh
from mmjax.types import UserError
from tests.decoding import world
from tests.interop import encoder_models as tiny

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "red", "blue", "bird", "on", "the", "tree"]
TEXTS = ["a red bird", "the blue tree on the tree", "bird", "a </s> bird"]
CLOSE = {"rtol": 0, "atol": 2e-5}


def save_tokenizer(directory, end=98):
    vocab = {word: i for i, word in enumerate(WORDS)} | {"<end>": end, "<start>": 97}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 97), ("<end>", end)])
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<start>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    reference = tiny.make("clip", directory)
    save_tokenizer(directory)
    return mmjax.from_pretrained(directory), reference, directory


def pictures(count=5):
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (20 + 7 * i, 41 - 3 * i, 3), dtype=np.uint8) for i in range(count)]


def test_vectors_of_clip_are_those_of_transformers(clip):
    model, reference, _ = clip
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    pixels = processor([Image.fromarray(picture) for picture in pictures()], return_tensors="pt")["pixel_values"]
    tokens, mask = model.processor.texts(TEXTS)
    with torch.no_grad():
        expected = reference(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long(), pixel_values=pixels)
    got = mmjax.embed(model, images=pictures(), texts=TEXTS)
    assert {key: (value.shape, value.dtype) for key, value in got.items()} == {
        "image": ((5, 10), np.float32), "text": ((4, 10), np.float32)
    }  # fmt: skip
    np.testing.assert_allclose(got["image"], expected.image_embeds, **CLOSE)
    np.testing.assert_allclose(got["text"], expected.text_embeds, **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(got["text"], axis=1), 1, atol=1e-5)


def test_batches_change_nothing_and_a_shape_is_compiled_once(clip):
    model, _, _ = clip
    whole = mmjax.embed(model, images=pictures(), texts=TEXTS)
    small = mmjax.embed(model, images=pictures(), texts=TEXTS, batch_size=2)
    for kind in whole:
        np.testing.assert_allclose(small[kind], whole[kind], **CLOSE)
    compiled = model.cache[("decoding.embed", "text", "embed_texts")]
    before = compiled._cache_size()
    mmjax.embed(model, texts=["bird"] * 4)
    assert compiled._cache_size() == before


def test_devices_change_nothing(clip):
    model, _, directory = clip
    split = mmjax.from_pretrained(directory, mesh=make_mesh({"fsdp": 8}))
    expected = mmjax.embed(model, images=pictures(), texts=TEXTS)
    for kind, value in mmjax.embed(split, images=pictures(), texts=TEXTS).items():
        np.testing.assert_allclose(value, expected[kind], **CLOSE)


def test_nothing_gives_no_rows(clip):
    got = mmjax.embed(clip[0], images=[], texts=[])
    assert got["image"].shape == (0, 10) and got["text"].shape == (0, 10)
    assert mmjax.embed(clip[0]) == {}


def test_text_that_spells_a_special_token_is_text(clip):
    tokens, mask = clip[0].processor.texts(["a <end> bird", "a bird"])
    assert (tokens[0] == 98).sum() == 1 and tokens[0, mask[0]][-1] == 98
    assert tokens[1, mask[1]].tolist() == [97, 4, 7, 98]


def test_a_long_text_is_cut_before_its_end_token(clip):
    tokens, mask = clip[0].processor.texts(["tree " * 40])
    assert tokens.shape == (1, 16) and mask.all() and tokens[0, -1] == 98


def test_siglip_reads_texts_filled_up(tmp_path):
    reference = tiny.make("siglip", tmp_path)
    save_tokenizer(tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    tokens, _ = model.processor.texts(TEXTS)
    assert tokens.shape == (4, 16)
    with torch.no_grad():
        expected = reference.get_text_features(input_ids=torch.tensor(tokens)).pooler_output.numpy()
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mmjax.embed(model, texts=TEXTS)["text"], expected, **CLOSE)


def test_one_tower_gives_its_pooled_features(tmp_path):
    reference = tiny.make("vit", tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    pixels = model.processor.images(pictures(2))
    with torch.no_grad():
        expected = reference(torch.tensor(pixels.transpose(0, 3, 1, 2) / 127.5 - 1).float()).pooler_output
    np.testing.assert_allclose(mmjax.embed(model, images=pictures(2))["image"], expected, **CLOSE)
    with pytest.raises(UserError, match="the model embeds image, not text"):
        mmjax.embed(model, texts=["a"])


@pytest.mark.parametrize("projected", [True, False])
def test_blip2_gives_the_features_of_transformers(tmp_path, projected):
    """Of pictures, of texts and of both together; [CLS] is the first token of a text."""
    from tests.interop import tiny as blip2

    reference = blip2.make("retrieval", tmp_path)
    world.make_tokenizer().save_pretrained(tmp_path)
    model = mmjax.from_pretrained(tmp_path)
    shown, texts = [np.full((28, 28, 3), 40 * i, np.uint8) for i in range(3)], ["a red", "is there a blue", "how many"]
    encoder = model.definition.bind(model.parameters).encoders["image"]
    pixels = torch.tensor(np.array(encoder.pixels(jax.numpy.asarray(np.stack(shown)))).transpose(0, 3, 1, 2))
    ids, mask = (torch.tensor(array).long() for array in model.processor.texts(texts))
    with torch.no_grad():
        seen, queries = reference.vision_model(pixels).last_hidden_state, reference.query_tokens.expand(3, -1, -1)
        image = reference.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        text = reference.qformer(query_embeds=reference.embeddings(ids), query_length=0, attention_mask=mask)
        text = text.last_hidden_state[:, 0]
        both = reference.embeddings(ids, query_embeds=queries)
        whole = torch.cat([torch.ones(3, blip2.QUERIES).long(), mask], 1)
        pair = reference.qformer(
            query_embeds=both, query_length=blip2.QUERIES, attention_mask=whole, encoder_hidden_states=seen
        ).last_hidden_state[:, : blip2.QUERIES]
        if projected:
            normalise = torch.nn.functional.normalize
            image = normalise(reference.vision_projection(image), dim=-1)
            text = normalise(reference.text_projection(text), dim=-1)
    given = {"images": shown, "texts": texts, "pairs": list(zip(shown, texts, strict=True))}
    got = mmjax.embed(model, **given, projected=projected, batch_size=2)
    for kind, expected in {"image": image, "text": text, "pair": pair}.items():
        np.testing.assert_allclose(got[kind], expected, rtol=0, atol=1e-4, err_msg=kind)
    assert mmjax.embed(model, pairs=[])["pair"].shape == (0, blip2.QUERIES, 24)
    with pytest.raises(UserError, match="pairs: expected tuples of an image and a text, got ndarray"):
        mmjax.embed(model, pairs=shown)


def test_blip2_gives_the_vectors_of_stage_1():
    parts = {name: dict(part) for name, part in world.PARTS.items() if name != "llm"}
    parts["connectors.image"] |= {"stage1": True, "projection": 6, "output_width": 0}
    from mmjax.systems.parts import build_definition

    definition = build_definition(parts)
    parameters = definition.initialise(jax.random.key(0))
    model = mmjax.types.Model(definition, parameters, world.make_model().processor, {"parts": parts})
    got = mmjax.embed(model, images=[world.pixels(1), world.pixels(2)], texts=["a red", "is there a blue"])
    assert got["image"].shape == (2, 3, 6) and got["text"].shape == (2, 6)
    np.testing.assert_allclose(np.linalg.norm(got["image"], axis=-1), 1, atol=1e-5)
    batch = model.processor.texts(["a red"])
    assert batch[0][0, batch[1][0]].tolist() == list(model.processor.encode_query("a red"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"audios": [b""]}, "the model embeds image and text, not audio"),
        ({"texts": "a bird"}, "text: expected a list, got str"),
        ({"images": [b"no picture"]}, "image 0: 10 bytes that are none of"),
        ({"texts": ["a"], "batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_what_cannot_be_embedded_is_told(clip, given, message):
    with pytest.raises(UserError, match=message):
        mmjax.embed(clip[0], **given)


def test_a_model_without_such_heads_gives_unprojected_features():
    with pytest.raises(UserError, match="the model embeds nothing, not image"):
        mmjax.embed(world.make_model(), images=[world.pixels(1)])
    got = mmjax.embed(world.make_model(), images=[world.pixels(1)], pairs=[(world.pixels(1), "a red")], projected=False)
    assert got["image"].shape == got["pair"].shape == (1, 3, 16) and np.abs(got["image"] - got["pair"]).max() > 1e-3
