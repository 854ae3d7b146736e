"""Published prompts and decoding, by one table."""

from __future__ import annotations

import dataclasses

import pytest

import mmjax
from mmjax.data.segments import Piece
from mmjax.data.templates import TEMPLATES
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.published import PUBLISHED, conversation_template, published, system_of
from mmjax.types import Example, Medium, Model, Part, Turn, UserError, ask
from tests.decoding import world

QUERIES, ALONE = {"family": "qformer", "vocab": 9}, {"family": "qformer", "vocab": 0}
OPT, T5, LLAMA = ({"family": family} for family in ("opt", "t5", "llama"))
ASKED = {
    ("blip2_opt", "vqa"): "Question: what is it? Answer:",
    ("blip2_t5", "vqa"): "Question: what is it? Short answer:",
    ("instructblip", "vqa"): "Question: what is it? Short answer:",
    ("instructblip", "dialogue"): "Question: what is it? Short answer:",
    ("blip2_opt", "caption"): "a photo of",
    ("blip2_t5", "caption"): "a photo of",
    ("instructblip", "caption"): "A short image description:",
    ("blip2_stage1", "caption"): "",
}


def text(segment):
    return "".join(part.text for part in segment.parts if isinstance(part, Piece))


@pytest.mark.parametrize(("system", "task"), [(system, task) for system in PUBLISHED for task in PUBLISHED[system]])
def test_prompts_and_options(system, task):
    recipe = PUBLISHED[system][task]
    example = ask("what is it?", Medium("image", b""))
    assert text(TEMPLATES[recipe.template].prompt(example, 0)) == ASKED[system, task]
    options = DecodingOptions(**recipe.options)
    assert options.num_beams == (3 if system == "blip2_stage1" else 5)
    assert options.length_penalty == (1 if task == "caption" else -1)
    assert options.repetition_penalty == (1.5 if system == "instructblip" else 1)


@pytest.mark.parametrize(
    ("parts", "system"),
    [
        ({"connectors.image": QUERIES}, "blip2_stage1"),
        ({"connectors.image": ALONE, "llm": OPT}, "blip2_opt"),
        ({"connectors.image": QUERIES, "llm": OPT}, "blip2_opt"),
        ({"connectors.image": ALONE, "llm": T5}, "blip2_t5"),
        ({"connectors.image": QUERIES, "llm": T5}, "instructblip"),
        ({"connectors.image": QUERIES, "llm": LLAMA}, "instructblip"),
        ({"llm": LLAMA}, ""),
    ],
)
def test_systems_are_told_by_their_parts(parts, system):
    assert system_of(parts) == system


def test_a_task_asks_by_the_template_and_decodes_by_the_options():
    model = world.make_model()  # LLaMA behind a Q-Former that reads the question
    picture = [[world.pixels(3)]]
    recipe = published(model.config["parts"], "vqa")
    by_hand = mmjax.generate(model, ["how many?"], images=picture, template=recipe.template, **recipe.options)
    (answer,) = mmjax.generate(model, ["how many?"], images=picture, task="vqa")
    assert answer.tokens == by_hand[0].tokens and len(answer.tokens) <= 10
    (short,) = mmjax.generate(model, ["how many?"], images=picture, task="vqa", max_new_tokens=1)
    assert len(short.tokens) == 1
    (plain,) = mmjax.generate(model, ["how many?"], images=picture, task="vqa", template="instruction")
    (other,) = mmjax.generate(model, ["how many?"], images=picture, template="instruction", **recipe.options)
    assert plain.tokens == other.tokens
    with pytest.raises(UserError, match="task='poem' .* there is instructblip with caption, vqa, dialogue"):
        mmjax.generate(model, ["how many?"], task="poem")


def test_a_dialogue_tells_what_was_said():
    picture = Medium("image", b"")
    said = (("user", "is it red?"), ("assistant", "no"), ("user", "blue?"), ("assistant", "yes"), ("user", "how many?"))
    turns = tuple(Turn(role, (Part(text=words),)) for role, words in said)
    first = dataclasses.replace(turns[0], parts=(Part(medium=0), *turns[0].parts))
    example = Example("d", media=(picture,), turns=(first, *turns[1:]))
    prompt = TEMPLATES["dialogue"].prompt(example, 0)
    assert text(prompt) == "Dialog history: is it red? no blue? yes\n Question: how many? Short answer:"
    assert prompt.query == text(prompt)  # InstructBLIP's Q-Former reads it too
    learnt = TEMPLATES["dialogue"](dataclasses.replace(example, answers=("two",)))
    assert [text(segment) for segment in learnt] == [
        "Question: is it red? Short answer: no",
        "Dialog history: is it red? no\n Question: blue? Short answer: yes",
        "Dialog history: is it red? no blue? yes\n Question: how many? Short answer: two",
    ]


@pytest.mark.parametrize(
    ("source", "style"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava_v1"),
        ("weights/llava-llama-2-13b-chat-lightning-preview", "llava_llama_2"),
        ("liuhaotian/llava-v1.6-mistral-7b", "mistral_instruct"),
        ("liuhaotian/llava-v1.6-34b", "chatml_direct"),
        ("weights/LLaVA-Lightning-MPT-7B-preview", "llava_mpt"),
        ("LLaVA-13b-delta-v0", "llava_v0"),
    ],
)
def test_the_style_of_a_llava_is_that_of_its_name(source, style):
    model = Model(None, {}, None, {"parts": {"connectors.image": {"family": "linear"}}, "source": source})
    assert conversation_template(model) == style and style in TEMPLATES


def test_a_chat_template_comes_before_the_style(model):
    assert conversation_template(model) is None
    tokenizer = world.make_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    processor = dataclasses.replace(model.processor, llm=tokenizer)
    assert conversation_template(dataclasses.replace(model, processor=processor)) == "chat"
