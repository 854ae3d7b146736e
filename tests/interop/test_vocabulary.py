"""A language model whose tokenizer fills its vocabulary, as Vicuna's does, is written with a row for the image placeholder."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import mmjax
from mmjax.data.processor import Processor
from mmjax.interop import hf_forward
from mmjax.systems.parts import build_definition
from mmjax.types import Model, UserError
from tests.decoding import world
from tests.interop import tiny

WORDS = "<unk> <s> </s> [PAD] how many red blue ? 1 2 yes no"


@pytest.fixture
def model():
    """InstructBLIP whose 13 tokens are all of its tokenizer; the last row is used as any other."""
    words = WORDS.split()
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    parts = {**world.PARTS, "llm": {**world.PARTS["llm"], "vocab": len(words)}}
    parts["encoders.image"] = {**parts["encoders.image"], "final_eps": 1e-6}
    definition, generator = build_definition(parts), np.random.default_rng(0)
    drawn = {path: world.draw(path, definition.specs[path].shape, generator) for path in sorted(definition.specs)}
    processor = Processor(tokenizer, world.make_tokenizer(), soft_tokens=3, image_size=12, query_length=16)
    return Model(definition, drawn, processor, {"parts": parts})


def test_the_row_is_added_and_changes_nothing(model, tmp_path):
    count = len(WORDS.split())
    mmjax.save_pretrained(model, tmp_path)
    reference, report = transformers.InstructBlipForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert reference.config.text_config.vocab_size == count + 1 and reference.config.image_token_index == count
    table = reference.language_model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(table[-1], table[:-1].mean(0), atol=1e-6)
    np.testing.assert_array_equal(table[:-1], model.parameters["llm.token_embedding.table"][:count])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids("<image>") == count and len(tokenizer) == count + 1

    again = mmjax.from_pretrained(tmp_path)
    arrays = {
        "input_ids": np.array([[count] * 3 + [1, 4, 5, 8]]), "pixel_values": np.ones((1, 3, 12, 12), np.float32),
        "qformer_input_ids": np.array([[3, 14, 15, 4]]),
    }  # fmt: skip
    grown, expected = hf_forward(again, arrays)["logits"], tiny.outputs(reference, arrays)["logits"]
    np.testing.assert_allclose(grown, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(grown[..., :count], hf_forward(model, arrays)["logits"], rtol=0, atol=1e-5)
    assert (grown[..., -1] < grown[..., :count].max(-1)).all()
    asked = {"examples": ["how many red ?"], "images": [[world.pixels(1)]], "max_new_tokens": 6, "num_beams": 2}
    assert mmjax.generate(again, **asked)[0].tokens == mmjax.generate(model, **asked)[0].tokens


def test_an_adapter_cannot_add_a_row(model, tmp_path):
    mmjax.save_pretrained(model, tmp_path)
    with pytest.raises(UserError, match="needs a row that the base's vocabulary lacks"):
        mmjax.save_pretrained(model, tmp_path / "adapter", base=tmp_path)
    assert jax.tree.leaves(model.parameters)
