"""What ends an answer: the tokenizer's EOS, the ids of generation_config.json or config.json, a chat template's end of turn."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mmjax
from mmjax.data.chat import end_of_turn
from mmjax.data.processor import Processor, load_processor
from mmjax.layers.parameters import define
from mmjax.systems.parts import build
from mmjax.types.model import Model
from tests.decoding.world import draw, make_tokenizer

PARTS = {"llm": {"family": "llama", "vocab": 25, "width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "ffn": 32}}
ASKED = "what colour is there ?"
CHAT = (
    "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + (ending if m['role'] == 'assistant' else ' ') }}{% endfor %}"
    "{{ 'assistant ' if add_generation_prompt }}"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A tiny LLaMA in Hugging Face layout whose tokenizer's EOS never comes."""
    definition, generator = define(build(PARTS)), np.random.default_rng(0)
    parameters = {path: draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    path = tmp_path_factory.mktemp("models") / "toy"
    mmjax.save_pretrained(Model(definition, parameters, Processor(make_tokenizer()), {"parts": PARTS}), path)
    return path


@pytest.fixture(scope="module")
def endless(directory):
    """What the model says when nothing ends it."""
    (answer,) = mmjax.generate(mmjax.from_pretrained(directory), [ASKED], max_new_tokens=12, eos_token_id=())
    assert len(answer.tokens) == 12
    return answer.tokens


def rewritten(directory, tmp_path, name, **changes):
    """A copy of the directory with another JSON file."""
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    old = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**old, **changes}))
    return tmp_path


def stops_at(path, token, endless):
    model = mmjax.from_pretrained(path)
    (answer,) = mmjax.generate(model, [ASKED], max_new_tokens=12)
    assert answer.tokens == endless[: endless.index(token) + 1], "it ends with the first of them"
    return model


def test_all_ids_of_the_generation_config(directory, tmp_path, endless):
    token = endless[4]
    path = rewritten(directory, tmp_path, "generation_config.json", eos_token_id=[1, token])
    model = stops_at(path, token, endless)
    assert model.processor.end_ids() == tuple(sorted({1, 2, token}))
    mmjax.save_pretrained(model, tmp_path / "again")
    assert mmjax.from_pretrained(tmp_path / "again").processor.end_ids() == model.processor.end_ids()
    model.processor.save(tmp_path / "run")
    assert load_processor(tmp_path / "run").other_ends == model.processor.other_ends


def test_the_id_of_the_config_where_there_is_no_other(directory, tmp_path, endless):
    path = rewritten(directory, tmp_path, "config.json", eos_token_id=endless[3])
    (path / "generation_config.json").unlink()
    stops_at(path, endless[3], endless)


def test_an_id_that_is_none_is_one_line(directory, tmp_path):
    path = rewritten(directory, tmp_path, "generation_config.json", eos_token_id="</s>")
    with pytest.raises(mmjax.types.UserError, match="eos_token_id=.*a token id is expected"):
        mmjax.from_pretrained(path)


def test_the_tokenizers_end_token(directory, tmp_path, endless):
    path = rewritten(directory, tmp_path, "generation_config.json", eos_token_id=1)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(endless[2])
    tokenizer.save_pretrained(path)
    stops_at(path, endless[2], endless)


def test_the_chat_templates_end_of_turn(directory):
    """Only where the template made the prompt: the token may mean something else elsewhere."""
    model = mmjax.from_pretrained(directory)

    def said(ending: str | None) -> list[int]:
        tokenizer = make_tokenizer()
        if ending is not None:
            tokenizer.add_special_tokens({"additional_special_tokens": [ending]})
        tokenizer.chat_template = CHAT.replace("ending", repr(ending or ""))
        chatty = Model(model.definition, model.parameters, Processor(tokenizer), model.config)
        assert chatty.processor.end_ids() == (2,)
        (answer,) = mmjax.generate(chatty, ["how many ?"], template="chat", max_new_tokens=12)
        return list(answer.tokens)

    free = said(None)
    word = make_tokenizer().convert_ids_to_tokens(free[3])
    assert said(word) == free[: free.index(free[3]) + 1] and len(free) == 12


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT.replace("ending", "' [SEP]\\n'"), "[SEP]"),
        (CHAT.replace("ending", "'\\n'"), None),
        ("{{ messages[0]['content'] }}", None),
        (None, None),
    ],
)
def test_what_a_template_ends_a_turn_with(template, expected):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) == (None if expected is None else tokenizer.convert_tokens_to_ids(expected))
