"""Tokenizers: loading a directory, and turning user text into ids that can never be special.

The tokenizer's backend is copied once and never changed afterwards, so that any thread may encode with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmjax.types import UserError

CACHE = 65536  # distinct texts whose ids are remembered


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a directory in Hugging Face layout, without any network access.

    Raises:
      UserError: no such directory, no tokenizer in it, or one without a fast backend.
    """
    if not Path(path).is_dir():
        raise UserError(
            f"tokenizer directory {path} does not exist; set `tokenizers` to a directory that holds a tokenizer.json"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{path} holds no usable tokenizer ({str(error).splitlines()[0]}); a tokenizer.json is expected"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise UserError(f"{path} holds a slow tokenizer; a tokenizer.json is expected")
    return tokenizer


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], tuple[int, ...]]:
    """A cached function text -> ids, without BOS or EOS.

    Text that spells a special token is split like any other. Where a vocabulary lists the special token as an ordinary
    word, its id is replaced by the unknown token's, or dropped where the unknown token is itself BOS, EOS or padding.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        unknown = None
    special = {int(token) for token in tokenizer.all_special_ids if token != unknown}
    replacement = () if unknown is None else (unknown,)

    @functools.lru_cache(CACHE)
    def encode(text: str) -> tuple[int, ...]:
        ids = backend.encode(text, add_special_tokens=False).ids
        if special.isdisjoint(ids):
            return tuple(ids)
        return tuple(token for token_id in ids for token in (replacement if token_id in special else (token_id,)))

    return encode
