"""Tokenizers: user text never becomes a special id, and threads may share an encoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmjax.data.tokenizer import load_tokenizer, text_encoder
from mmjax.types import UserError


def test_text_that_spells_special_tokens_is_plain(tokenizer):
    ids = text_encoder(tokenizer)("red <image> </s> [CLS]")
    assert ids[0] == tokenizer.convert_tokens_to_ids("red")
    assert not set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    assert 6 in tokenizer("red <image>")["input_ids"], "without protection it would have been the real one"


def test_special_words_of_the_vocabulary_become_unknown(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # "<image>" arrives at the model as one word of its vocabulary
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": ["<image>"]}
    wide = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **names)
    assert text_encoder(wide)("red <image>") == (8, 0)
    opt = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="</s>", **names)  # OPT's unknown token ends texts
    assert text_encoder(opt)("red <image>") == (8,)


def test_threads_agree(tokenizer):
    encode = text_encoder(tokenizer)
    texts = [f"{word} red square {i % 4}" for i, word in enumerate(["how", "what", "no"] * 100)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode, texts)) == [text_encoder(tokenizer)(text) for text in texts]


def test_missing_directories_are_one_line(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError) as caught:
            load_tokenizer(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
