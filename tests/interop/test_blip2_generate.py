"""From prompts and pictures: a directory's processor and search give the inputs and tokens of `transformers`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers.processors import TemplateProcessing

import mmjax
from tests.decoding import world
from tests.interop import tiny

SIDE, PLACEHOLDER, PAD = 28, 6, 1  # ids of <image> and <pad>
PROMPTS = [
    "question: how many red? answer:",
    "is there blue?",
    "what colour is there a red?",
    "a",
    "how many? answer:",
    "is a red",
]
ENDS = [2, 9, 14, 21, 33, 47]  # of which the tokenizer knows one only
NEW = 6


def save_tokenizer(directory, around, padding_side="right"):
    tokenizer = world.make_tokenizer()
    names = [name for name in around.split() if name != "$A"]
    ids = [(name, tokenizer.convert_tokens_to_ids(name)) for name in names]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=ids)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = padding_side
    tokenizer.add_tokens(["<video>"], special_tokens=True)
    tokenizer.save_pretrained(directory)


def make(directory, name):
    """A model with tokenizers and image processor, in a directory as they are published."""
    encoder_decoder = name.endswith("_t5")
    reference = tiny.make(name, directory)
    config = json.loads((directory / "config.json").read_text())
    index = "video_token_index" if name.startswith("video") else "image_token_index"
    config["text_config"] |= {"eos_token_id": ENDS, "pad_token_id": PAD}
    if encoder_decoder:
        config["text_config"]["decoder_start_token_id"] = PAD
    (directory / "config.json").write_text(json.dumps(config | {index: PLACEHOLDER}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS, "pad_token_id": PAD}))
    save_tokenizer(directory, "$A </s>" if encoder_decoder else "</s> $A", padding_side="right" if encoder_decoder else "left")
    save_tokenizer(directory / "qformer_tokenizer", "[CLS] $A [SEP]")
    whole = {"processor_class": "Blip2Processor" if name.startswith("blip2") else "InstructBlipProcessor"}
    (directory / "processor_config.json").write_text(json.dumps(whole | {"num_query_tokens": tiny.QUERIES}))
    settings = {"image_processor_type": "BlipImageProcessor", "size": {"height": SIDE, "width": SIDE}}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    return type(reference).from_pretrained(directory).eval()


def pictures(count):
    draw = np.random.default_rng(2)
    return [draw.integers(0, 256, (30 + 3 * i, 45 - 2 * i, 3), dtype=np.uint8) for i in range(count)]


def inputs_of(directory, name, images, prompts):
    """What the directory's processor makes of a padded batch."""
    kind = transformers.Blip2Processor if name.startswith("blip2") else transformers.InstructBlipProcessor
    processor, pillow = kind.from_pretrained(directory), [Image.fromarray(image) for image in images]
    inputs = processor(images=pillow, text=prompts, padding=True, return_tensors="pt")
    if kind is transformers.InstructBlipProcessor:
        # It pads the Q-Former's text on the side of the language model's, which moves the positions of shorter texts; padded
        # as that text's own tokenizer says, a batch gives what its rows give alone.
        query = processor.qformer_tokenizer(prompts, padding=True, return_tensors="pt")
        inputs |= {f"qformer_{key}": query[key] for key in ("input_ids", "attention_mask")}
    return inputs


def check_answers(model, reference, inputs, media, beams):
    """Our answers have the tokens of their search, end token included."""
    with torch.no_grad():
        output = reference.generate(**inputs, max_new_tokens=NEW, num_beams=beams, do_sample=False)
    rows = output[:, 1:] if "t5" in reference.config.text_config.model_type else output[:, inputs["input_ids"].shape[1] :]
    answers = mmjax.generate(model, PROMPTS, **media, max_new_tokens=NEW, num_beams=beams)
    for answer, row in zip(answers, rows.tolist(), strict=True):
        assert list(answer.tokens) == row[: len(answer.tokens)], (answers, rows)
        assert set(row[len(answer.tokens) :]) <= {PAD} and (len(answer.tokens) == NEW or answer.tokens[-1] in ENDS)
    return {answer.tokens for answer in answers}


OTHERS = [pytest.param(name, marks=pytest.mark.heavy) for name in ("instructblip_llama", "blip2_t5", "instructblip_t5")]


@pytest.mark.parametrize("name", ["blip2", *OTHERS])
def test_tokens_are_those_of_transformers(tmp_path, name):
    reference = make(tmp_path, name)
    images = pictures(len(PROMPTS))
    inputs = inputs_of(tmp_path, name, images, PROMPTS)
    model = mmjax.from_pretrained(tmp_path)
    media = {"images": [[image] for image in images]}
    found = set.union(*(check_answers(model, reference, inputs, media, beams) for beams in (1, 3, 5)))
    assert len(found) > 3 and len(set(map(len, found))) > 1, found


@pytest.mark.heavy
def test_videos_are_answered_as_by_transformers(tmp_path):
    """Its own processor of videos needs torchvision; theirs for pictures gives the same pixels frame by frame."""
    reference = make(tmp_path, "video_llama")
    generator = np.random.default_rng(3)
    clips = [generator.integers(0, 256, (4, 30 + 3 * i, 44, 3), dtype=np.uint8) for i in range(len(PROMPTS))]
    by_frame = [inputs_of(tmp_path, "instructblip", [clip[frame] for clip in clips], PROMPTS) for frame in range(4)]
    inputs = {**by_frame[0], "pixel_values": torch.stack([each["pixel_values"] for each in by_frame], 1)}
    slots = inputs["input_ids"][:, : tiny.QUERIES]
    inputs["input_ids"] = torch.cat([*[slots] * 3, inputs["input_ids"]], 1)
    inputs["attention_mask"] = torch.cat([*[torch.ones_like(slots)] * 3, inputs["attention_mask"]], 1)
    model = mmjax.from_pretrained(tmp_path)
    for beams in (1, 3):
        found = check_answers(model, reference, inputs, {"videos": [[clip] for clip in clips]}, beams)
        assert len(found) > 2, found
    whole = mmjax.generate(model, PROMPTS[:2], images=[list(clip) for clip in clips[:2]], max_new_tokens=NEW)
    assert whole == mmjax.generate(model, PROMPTS[:2], videos=[[clip] for clip in clips[:2]], max_new_tokens=NEW)
    mmjax.save_pretrained(model, tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again["video_token_index"] == PLACEHOLDER and again["text_config"]["eos_token_id"] == ENDS
