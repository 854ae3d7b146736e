"""From conversations with pictures: a LLaVA directory's processor and search give the inputs and tokens of `transformers`."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from starlette.testclient import TestClient

import mmjax
from mmjax.data.config import DataConfig, SourceConfig
from mmjax.data.processor import Processor
from mmjax.interop import hf_forward
from mmjax.serving.app import make_app
from mmjax.serving.settings import Settings
from mmjax.training.load import image_fit
from mmjax.types import Example, Medium, Model, Part, Turn, UserError
from tests.interop import llava_models

NEW = 6
SIZES = [(30, 40), (17, 90), (91, 13), (55, 54)]
# Rows with one, no and three pictures, in several turns.
TALKS = [
    [("user", 0, "what colour is this ?")],
    [("user", "how many ?"), ("assistant", "1 dog"), ("user", "and that one ?")],
    [("system", "a dog ."), ("user", 0, 1, "what is this ?"), ("assistant", "a red cat"), ("user", 2, "is this blue ?")],
    [("user", "the picture"), ("assistant", "a blue dog ."), ("user", 3, "yes ?")],
]


def picture(number):
    draw = np.random.default_rng(number)
    return draw.integers(0, 256, (*SIZES[number], 3), dtype=np.uint8)


def example(talk):
    """A conversation as an Example."""
    shown = [piece for _, *pieces in talk for piece in pieces if isinstance(piece, int)]

    def part(piece):
        return Part(piece) if isinstance(piece, str) else Part(medium=shown.index(piece))

    media = tuple(Medium("image", picture(number)) for number in shown)
    return Example("talk", media=media, turns=tuple(Turn(role, tuple(map(part, pieces))) for role, *pieces in talk))


def messages(talk):
    """A conversation as transformers takes it."""

    def content(piece):
        return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": "image"}

    return [{"role": role, "content": [content(piece) for piece in pieces]} for role, *pieces in talk]


def batch_of(directory, kind, talks):
    """What the directory's own processor makes of conversations, padded on the left."""
    cls = transformers.LlavaNextProcessor if kind == "next" else transformers.LlavaProcessor
    processor = cls.from_pretrained(directory)
    texts = [processor.apply_chat_template(messages(talk), add_generation_prompt=True) for talk in talks]
    images = [Image.fromarray(picture(piece)) for talk in talks for _, *pieces in talk for piece in pieces if piece in range(4)]
    return processor(text=texts, images=images or None, padding=True, return_tensors="pt")


@pytest.fixture(
    scope="module", params=["llava", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("llava padded", "next"))]
)
def directory(request, tmp_path_factory):
    kind, _, padded = request.param.partition(" ")
    folder = tmp_path_factory.mktemp(kind)
    reference = llava_models.make(folder, kind, text_config={"max_position_embeddings": 512})
    llava_models.add_processor(folder, kind, **({"do_pad": True} if padded else {}))
    return kind, folder, reference


@pytest.mark.usefixtures("optimised")
def test_tokens_are_those_of_transformers(directory):
    """Batched and alone, greedily and with beams; the inputs' logits are compared on the way."""
    kind, folder, reference = directory
    inputs = batch_of(folder, kind, TALKS)
    model = mmjax.from_pretrained(folder)
    read = inputs["attention_mask"].numpy() > 0
    batch = model.processor.prompts([example(talk) for talk in TALKS], "chat")
    for row, theirs in enumerate(inputs["input_ids"].numpy()):
        is_text = theirs[read[row]] != llava_models.IMAGE
        ours = batch.text.tokens[row][batch.text.segments[row] > 0]
        np.testing.assert_array_equal(ours[is_text], theirs[read[row]][is_text])
    with torch.no_grad():
        logits = reference(**inputs).logits.numpy()
        output = reference.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        beams = reference.generate(**inputs, max_new_tokens=NEW, num_beams=3, do_sample=False, pad_token_id=0)
    got = hf_forward(model, {key: value.numpy() for key, value in inputs.items()})["logits"]
    np.testing.assert_allclose(got[read], logits[read], atol=1e-4, rtol=0)
    length, found = inputs["input_ids"].shape[1], set()
    for theirs, options in ((output, {}), (beams, {"num_beams": 3})):
        answers = mmjax.generate(
            model, [example(talk) for talk in TALKS], template="chat", max_new_tokens=NEW, vocabulary=0, **options
        )
        for answer, row in zip(answers, theirs[:, length:].tolist(), strict=True):
            assert list(answer.tokens) == row[: len(answer.tokens)] and set(row[len(answer.tokens) :]) <= {0}
            found.add(answer.tokens)
    assert len(found) > 3
    alone = [mmjax.generate(model, example(talk), template="chat", max_new_tokens=NEW, vocabulary=0)[0] for talk in TALKS]
    assert alone == mmjax.generate(model, [example(talk) for talk in TALKS], template="chat", max_new_tokens=NEW, vocabulary=0)


def test_the_same_words_about_another_picture_score_otherwise(directory):
    _, folder, _ = directory
    model = mmjax.from_pretrained(folder)
    asked = [example(TALKS[0]), example([("user", 3, *TALKS[0][0][2:])])]
    together = mmjax.score(model, asked, [["red", "blue dog"]] * 2, template="chat")
    apart = np.concatenate([mmjax.score(model, [each], [["red", "blue dog"]], template="chat") for each in asked])
    np.testing.assert_allclose(together, apart, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_the_marker_in_a_question_is_text(directory):
    """Pictures are parts: nobody shows one, or none, by writing."""
    _, folder, _ = directory
    model = mmjax.from_pretrained(folder)
    batch = model.processor.prompts([example([("user", "what is <image> this ?")])], "chat")
    assert llava_models.IMAGE not in batch.text.tokens and not batch.media


@pytest.mark.heavy
def test_ids_beyond_the_tokenizer_are_never_answered(tmp_path):
    """The vocabulary is filled up to a round size, here with rows that win every comparison."""
    reference = llava_models.make(tmp_path, "llava", text_config={"vocab_size": 64})
    with torch.no_grad():
        reference.lm_head.weight[50:] = 0
        reference.lm_head.weight[50:, :12] = 9 * torch.tensor([1.0, -1.0])[:, None].repeat(7, 12)
    reference.save_pretrained(tmp_path)
    llava_models.add_processor(tmp_path, "llava")
    model = mmjax.from_pretrained(tmp_path)
    asked = [example(talk) for talk in TALKS]
    free = mmjax.generate(model, asked, template="chat", max_new_tokens=NEW, vocabulary=0)
    assert max(max(answer.tokens) for answer in free) >= 50
    for options in ({}, {"num_beams": 2}, {"do_sample": True, "temperature": 9.0}):
        for answer in mmjax.generate(model, asked, template="chat", max_new_tokens=NEW, **options):
            assert max(answer.tokens) < 50


@pytest.mark.parametrize("where", ["chat_template.json", "chat_template.jinja"])
def test_a_chat_template_of_the_processor_is_found(tmp_path, where):
    llava_models.make(tmp_path, "llava")
    llava_models.add_processor(tmp_path, "llava", chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        mmjax.generate(mmjax.from_pretrained(tmp_path), example(TALKS[0]), template="chat")
    template = json.dumps({"chat_template": llava_models.CHAT}) if where.endswith("json") else llava_models.CHAT
    (tmp_path / where).write_text(template)
    model = mmjax.from_pretrained(tmp_path)
    mmjax.save_pretrained(model, tmp_path / "again")
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "again")
    text = processor.apply_chat_template(messages(TALKS[0]), add_generation_prompt=True)
    assert text == "USER: <image>\nwhat colour is this ? ASSISTANT:"
    theirs = processor(text=[text], images=[Image.fromarray(picture(0))], return_tensors="pt")
    ours = model.processor.prompts([example(TALKS[0])], "chat")
    assert theirs["input_ids"].shape[1] == (ours.text.segments > 0).sum()
    pixels = ours.media["image"].values[0, 0] / 255
    vision = model.config["parts"]["encoders.image"]
    pixels = (pixels - np.array(vision["mean"])) / np.array(vision["std"])
    np.testing.assert_allclose(theirs["pixel_values"][0].permute(1, 2, 0), pixels, atol=1e-5)


@pytest.mark.parametrize("fit", ["pad", *(pytest.param(fit, marks=pytest.mark.heavy) for fit in ("stretch", "crop", "tiles"))])
def test_what_we_trained_answers_the_same_for_transformers(tmp_path, fit):
    """A model that comes from no directory: its class, its tokens and its image processor follow from parts and processor."""
    kind = "next" if fit == "tiles" else "llava"
    llava_models.make(tmp_path / "read", kind, text_config={"max_position_embeddings": 512})
    read = mmjax.from_pretrained(tmp_path / "read")
    parts = read.config["parts"]
    data = DataConfig(
        mixture={"talks": SourceConfig(path="talks")}, rows=1, length=64, soft_tokens=llava_models.PATCHES**2,
        image_size=llava_models.SIDE, fit=fit, grids=llava_models.GRIDS if fit == "tiles" else (),
    )  # fmt: skip
    tokenizer = llava_models.make_tokenizer()
    tokenizer.chat_template = llava_models.CHAT
    sizes = {"soft_tokens": data.soft_tokens, "image_size": data.image_size, "vocabulary": llava_models.VOCAB}
    processor = Processor(tokenizer, **sizes, **image_fit(parts, data))
    model = Model(read.definition, read.parameters, processor, {"parts": parts})
    export = mmjax.save_pretrained(model, tmp_path / "new")
    assert export.architecture == f"Llava{'Next' * (kind == 'next')}ForConditionalGeneration" and not export.left_out
    cls = llava_models.CLASSES[kind][1]
    reference, report = cls.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(report.values()), report
    inputs = batch_of(tmp_path / "new", kind, TALKS)
    with torch.no_grad():
        theirs = reference.eval().generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    theirs = theirs[:, inputs["input_ids"].shape[1] :].tolist()
    for source in (model, mmjax.from_pretrained(tmp_path / "new")):
        answers = mmjax.generate(source, [example(talk) for talk in TALKS], template="chat", max_new_tokens=NEW)
        assert [list(answer.tokens) for answer in answers] == [
            row[: len(a.tokens)] for row, a in zip(theirs, answers, strict=True)
        ]


@pytest.mark.parametrize("kind", ["llava", pytest.param("next", marks=pytest.mark.heavy)])
def test_the_endpoint_answers_as_generate(tmp_path, kind):
    llava_models.make(tmp_path, kind, text_config={"max_position_embeddings": 512})
    llava_models.add_processor(tmp_path, kind)
    model = mmjax.from_pretrained(tmp_path)

    def part(piece):
        if isinstance(piece, str):
            return {"type": "text", "text": piece}
        file = io.BytesIO()
        Image.fromarray(picture(piece)).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    with TestClient(make_app(model, Settings(name="llava", max_tokens=NEW, batch_size=4))) as client:
        for talk in TALKS[:3]:
            said = [{"role": role, "content": [part(piece) for piece in pieces]} for role, *pieces in talk]
            body = {"messages": said, "temperature": 0, "max_tokens": NEW, "logprobs": True}
            reply = client.post("/v1/chat/completions", json=body).json()
            (expected,) = mmjax.generate(model, example(talk), template="chat", max_new_tokens=NEW)
            assert reply["choices"][0]["message"]["content"] == expected
            logprobs = [entry["logprob"] for entry in reply["choices"][0]["logprobs"]["content"]]
            np.testing.assert_allclose(logprobs, expected.logprobs, atol=1e-4)
