"""A model that we trained, exported: `transformers` reads its files and gives the same inputs and the same answers."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import mmjax
from mmjax.data.tokenizer import load_tokenizer
from mmjax.interop import hf_forward
from mmjax.interop.processors import with_placeholder
from mmjax.systems.parts import build_definition
from mmjax.types import Medium, Model, UserError, ask
from tests.decoding import world

PROMPT = "Question: what colour is there? Answer:"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    model = world.make_model()
    return model, directory, mmjax.save_pretrained(model, directory)


def test_a_question_reading_blip2_becomes_instructblip(exported):
    model, directory, export = exported
    assert export.architecture == "InstructBlipForConditionalGeneration" and export.left_out == ()
    names = {str(file.relative_to(directory)) for file in export.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= names
    assert {"qformer_tokenizer/tokenizer.json", "processor_config.json", "generation_config.json"} <= names
    reference, report = transformers.InstructBlipForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), report
    assert reference.config.image_token_index == 6 and reference.config.text_config.pad_token_id == 1


def processor_inputs(directory, numbers):
    processor = transformers.InstructBlipProcessor.from_pretrained(directory)
    images = [Image.fromarray(world.pixels(number)) for number in numbers]
    return processor, processor(images=images, text=[PROMPT] * len(numbers), return_tensors="pt")


def test_their_processor_gives_our_inputs(exported):
    model, directory, _ = exported
    _, inputs = processor_inputs(directory, [1])
    batch = model.processor.prompts([ask(PROMPT, Medium("image", world.png(1)))])
    ours = batch.text.tokens[0][batch.text.segments[0] > 0]
    theirs = inputs["input_ids"][0].numpy()
    np.testing.assert_array_equal(theirs[:3], 6)  # <image>, where ours has padding that soft tokens replace
    np.testing.assert_array_equal(theirs[3:], ours[3:])
    query = batch.queries["image"]
    np.testing.assert_array_equal(inputs["qformer_input_ids"][0], query.tokens[0, 0][query.mask[0, 0]])


def test_their_generation_gives_our_answers(exported):
    model, directory, _ = exported
    numbers = [1, 2, 3]
    processor, inputs = processor_inputs(directory, numbers)
    reference = transformers.InstructBlipForConditionalGeneration.from_pretrained(directory).eval()
    with torch.no_grad():
        logits = reference(**inputs).logits.numpy()
        tokens = reference.generate(**inputs, max_new_tokens=6, do_sample=False)
    np.testing.assert_allclose(
        hf_forward(model, {key: value.numpy() for key, value in inputs.items()})["logits"], logits, atol=1e-4
    )
    theirs = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ours = mmjax.generate(model, [PROMPT] * 3, images=[[world.pixels(number)] for number in numbers], max_new_tokens=6)
    assert [str(answer) for answer in ours] == [answer.strip() for answer in theirs]
    assert np.abs(logits[0] - logits[1]).max() > 0.01  # the pictures matter


def test_what_was_exported_is_read_again(exported, tmp_path):
    model, directory, _ = exported
    again = mmjax.from_pretrained(directory)
    mmjax.save_pretrained(again, tmp_path)
    for file in ("model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / file).read_bytes() == (directory / file).read_bytes(), file
    assert again.processor.query_length == model.processor.query_length
    assert again.processor.soft_tokens == 3 and again.processor.image_size == 12
    images = [[world.pixels(1)]]
    first, second = (mmjax.generate(each, [PROMPT], images=images, max_new_tokens=6) for each in (model, again))
    assert first == second


def test_pixel_statistics_come_from_the_image_processor(exported, tmp_path):
    model, directory, _ = exported
    assert mmjax.from_pretrained(directory).config["parts"]["encoders.image"]["mean"][0] == pytest.approx(0.48145466)
    parts = {**model.config["parts"]}
    parts["encoders.image"] = {**parts["encoders.image"], "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3)}
    mmjax.save_pretrained(Model(model.definition, model.parameters, None, {"parts": parts}), tmp_path)
    vision = mmjax.from_pretrained(tmp_path).config["parts"]["encoders.image"]
    assert vision["mean"] == (0.5, 0.4, 0.3) and vision["std"] == (0.1, 0.2, 0.3)


def test_without_its_questions_it_is_plain_blip2(exported, tmp_path):
    model, _, _ = exported
    export = mmjax.save_pretrained(model, tmp_path, architecture="Blip2ForConditionalGeneration")
    assert all("text_" in path or "embedding" in path for path in export.left_out) and export.left_out
    _, report = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    plain = mmjax.from_pretrained(tmp_path)
    assert plain.config["parts"]["connectors.image"]["vocab"] == 0 and plain.processor.query_length == 0


@pytest.mark.heavy
def test_stage_one_is_exported_for_retrieval(exported, tmp_path):
    whole, _, _ = exported
    parts = {**whole.config["parts"]}
    parts["connectors.image"] = {**parts["connectors.image"], "stage1": True, "projection": 4}
    definition = build_definition(parts)
    parameters = jax.jit(definition.initialise)(jax.random.key(1)) | dict(whole.parameters)
    model = Model(definition, parameters, whole.processor, {"parts": parts})
    export = mmjax.save_pretrained(model, tmp_path, architecture="Blip2ForImageTextRetrieval")
    assert {path.split(".")[0] for path in export.left_out} == {"connectors", "llm"}
    assert "connectors.image.heads.temperature" in export.left_out
    processor = transformers.Blip2Processor.from_pretrained(tmp_path)
    images = [Image.fromarray(world.pixels(number)) for number in (1, 2)]
    inputs = processor(images=images, text=["is a red", "is a blue"], return_tensors="pt")
    reference, report = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    arrays = {key: value.numpy() for key, value in inputs.items()}
    for matching in (False, True):
        with torch.no_grad():
            expected = reference.eval()(**inputs, use_image_text_matching_head=matching).logits_per_image.numpy()
        got = hf_forward(mmjax.from_pretrained(tmp_path), {**arrays, "use_image_text_matching_head": matching})
        np.testing.assert_allclose(got["logits_per_image"], expected, atol=1e-4)
    with torch.no_grad():
        expected = reference(**inputs)
    got = mmjax.embed(
        mmjax.from_pretrained(tmp_path), images=[world.pixels(number) for number in (1, 2)], texts=["is a red", "is a blue"]
    )
    np.testing.assert_allclose(got["image"], expected.image_embeds, atol=1e-4)
    np.testing.assert_allclose(got["text"], expected.text_embeds, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [9, 8])
def test_a_tokenizer_without_placeholder_gets_one_inside_the_vocabulary(vocabulary, tmp_path):
    words = {word: i for i, word in enumerate(("<unk>", "</s>", "<pad>", "<spare_1>", "<spare_2>", "what", "colour", "?"))}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    spares = ["<spare_1>", "<spare_2>"]
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, **special, additional_special_tokens=spares)
    got = with_placeholder(plain, vocabulary)
    assert got.get_vocab()["<image>"] == (8 if vocabulary == 9 else 4)
    assert "<image>" not in plain.get_vocab()
    for tokenizer in (got, with_placeholder(got, vocabulary)):
        tokenizer.save_pretrained(tmp_path)
        again = load_tokenizer(tmp_path)
        assert len(again) == vocabulary and again("what<image>colour")["input_ids"] == [5, got.get_vocab()["<image>"], 6]
        assert again.bos_token_id == 1 and again.pad_token_id == 2


def test_no_room_for_a_placeholder_is_told():
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="fills the vocabulary of 2 and has no spare special token"):
        with_placeholder(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), 2)
