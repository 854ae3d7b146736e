"""Published prompts and decoding, by one table."""

from __future__ import annotations

import dataclasses

import pytest

import mmjax
from mmjax.data.segments import Piece, Rendered
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
TALK = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. Please "
    "answer my questions."
)
VICUNA, LLAMA_2 = "###Human: <Img></Img> what is it?###Assistant:", "<s>[INST] <Img></Img> what is it? [/INST] "
TALKS = {
    ("minigpt4", "caption"): (f"{TALK}{VICUNA} ", 300, ("###",)),
    ("minigpt4", "vqa"): (f"{TALK}{VICUNA} ", 20, ("###",)),
    ("minigpt4", "chat"): (f"{TALK}{VICUNA} ", 300, ("###",)),
    ("minigpt4", "first_chat"): (f"{TALK}{VICUNA}", 300, ("###",)),
    ("minigpt4_llama_2", "caption"): (f"{TALK}{LLAMA_2}", 300, ("</s>",)),
    ("minigpt4_llama_2", "vqa"): (f"{TALK}{LLAMA_2}", 20, ("</s>",)),
    ("minigpt4_llama_2", "chat"): (f"{TALK}{LLAMA_2}", 300, ("</s>",)),
}


def text(segment):
    return "".join(part.text for part in segment.parts if isinstance(part, Piece))


def test_every_row_of_the_table_is_tested():
    assert {(system, task) for system in PUBLISHED for task in PUBLISHED[system]} == {*ASKED, *TALKS}


@pytest.mark.parametrize(("system", "task"), ASKED)
def test_prompts_and_options(system, task):
    recipe = PUBLISHED[system][task]
    example = ask("what is it?", Medium("image", b""))
    assert text(TEMPLATES[recipe.template].prompt(example, 0)) == ASKED[system, task]
    options = DecodingOptions(**recipe.options)
    assert options.num_beams == (3 if system == "blip2_stage1" else 5)
    assert options.length_penalty == (1 if task == "caption" else -1)
    assert options.repetition_penalty == (1.5 if system == "instructblip" else 1)


@pytest.mark.parametrize(("system", "task"), TALKS)
def test_minigpt4_talks_as_its_demo(system, task):
    recipe, (prompt, tokens, end) = PUBLISHED[system][task], TALKS[system, task]
    segment = TEMPLATES[recipe.template].prompt(ask("what is it?", Medium("image", b"")), 0)
    assert "".join(part.text for part in segment.parts if isinstance(part, Rendered)) == prompt
    assert (TEMPLATES[recipe.template].end,) == end
    options = DecodingOptions(**recipe.options)
    assert options.max_new_tokens == tokens and options.do_sample == (task in ("caption", "chat"))
    assert options.num_beams == (5 if task == "first_chat" else 1)
    assert options.repetition_penalty == (1.05 if options.do_sample else 1) and options.temperature == 1


def test_a_caption_is_asked_for_in_one_of_four_ways():
    picture, asked = Medium("image", b""), set()
    for number in range(40):
        segment = TEMPLATES["minigpt4_chat"].prompt(ask("", picture, id=str(number)), 0)
        asked.add(segment.parts[-1].text.removeprefix("</Img> ").removesuffix("###Assistant: "))
    assert len(asked) == 4 and "Describe this image in detail." in asked


@pytest.mark.parametrize(
    ("parts", "system"),
    [
        ({"connectors.image": QUERIES}, "blip2_stage1"),
        ({"connectors.image": ALONE, "llm": OPT}, "blip2_opt"),
        ({"connectors.image": QUERIES, "llm": OPT}, "blip2_opt"),
        ({"connectors.image": ALONE, "llm": T5}, "blip2_t5"),
        ({"connectors.image": QUERIES, "llm": T5}, "instructblip"),
        ({"connectors.image": QUERIES, "llm": LLAMA}, "instructblip"),
        ({"connectors.image": ALONE, "llm": LLAMA}, "minigpt4"),
        ({"connectors.image": {"family": "linear", "merge": 4}, "llm": LLAMA}, "minigpt4_llama_2"),
        ({"connectors.image": {"family": "linear", "merge": 1}, "llm": LLAMA}, ""),
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


def test_a_run_is_talked_to_as_it_was_trained():
    config = {"parts": {"connectors.image": {"family": "linear"}}, "source": "runs/mine", "template": "vicuna_v1"}
    assert conversation_template(Model(None, {}, None, config)) == "vicuna_v1"
    assert conversation_template(Model(None, {}, None, config | {"template": "question_answer"})) == "llava_v0"


def test_a_chat_template_comes_before_the_style(model):
    assert conversation_template(model) is None
    tokenizer = world.make_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    processor = dataclasses.replace(model.processor, llm=tokenizer)
    assert conversation_template(dataclasses.replace(model, processor=processor)) == "chat"
