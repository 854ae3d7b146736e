"""Tokenizers: loading a directory, and turning user text into ids that can never be special.

The tokenizer's backend is copied once and never changed afterwards, so that any thread may encode with it.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mmjax.data.segments import Spans
from mmjax.types import ExampleError, UserError

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
    backend = _backend(tokenizer)
    backend.encode_special_tokens = True
    unknown = _harmless_unknown(tokenizer)
    special = _special_ids(tokenizer)
    replacement = () if unknown is None else (unknown,)

    @functools.lru_cache(CACHE)
    def encode(text: str) -> tuple[int, ...]:
        ids = backend.encode(text, add_special_tokens=False).ids
        if special.isdisjoint(ids):
            return tuple(ids)
        return tuple(token for token_id in ids for token in (replacement if token_id in special else (token_id,)))

    return encode


Encoder = Callable[[str, Spans], tuple[tuple[int, ...], Spans]]


def rendered_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """A function (text, quotes) -> ids and where each stands, in which special tokens are real except where they touch a quote.

    Args of the function:
      text: what a chat template rendered; no BOS or EOS is added.
      quotes: (start, end) of each stretch that a person wrote, in order.

    Text whose quotes spell nothing special has the ids that the tokenizer itself gives to the whole. A special token that a
    quote spells is broken after its first letter, and the pieces are tokenised by themselves.
    """
    backend = _backend(tokenizer)
    names = {token: backend.id_to_token(token) for token in _special_ids(tokenizer)}

    def encode(text: str, quotes: Spans) -> tuple[tuple[int, ...], Spans]:
        ends = [end for _, end in quotes]

        def forged(start: int, end: int) -> bool:
            after = bisect.bisect_right(ends, start)
            return after < len(quotes) and quotes[after][0] < end

        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        pending = [(0, len(text))]  # stretches to tokenise, the next one last
        while pending:
            first, last = pending.pop()
            encoding = backend.encode(text[first:last], add_special_tokens=False)
            kept, cuts = [], []
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                # A token may swallow white space around it, which belongs to whoever wrote it: its name is what counts.
                name = names.get(token, "")
                begin = max(text.find(name, first + start, first + end), first + start)
                if token not in names or not forged(begin, min(begin + len(name), first + end)):
                    kept.append((token, (first + start, first + end)))
                elif first + end - begin > 1:
                    cuts.append(begin + 1)
            if cuts:
                pending += reversed(list(itertools.pairwise(sorted({first, *cuts, last}))))
            else:
                ids += (token for token, _ in kept)
                spans += (span for _, span in kept)
        return tuple(ids), tuple(spans)

    return encode


def learnt_weights(spans: Spans, learnt: Spans) -> tuple[float, ...]:
    """The loss weight of each token: 1 within what is learnt, 0 outside.

    Args:
      spans: where each token stands in its text.
      learnt: the stretches of the text that have a loss.

    Raises:
      ExampleError: a token reaches across a border, so that its weight is neither.
    """
    borders = [border for stretch in learnt for border in stretch]
    weights = []
    for start, end in spans:
        side = bisect.bisect_right(borders, start)
        if end > start and bisect.bisect_left(borders, end) != side:
            raise ExampleError(
                f"the token of letters {start} to {end} holds both what is read and what is learnt; this tokenizer and this "
                "template do not go together here"
            )
        weights.append(float(side % 2))
    return tuple(weights)


def _backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's backend that cuts, pads and adds nothing, and whose offsets hold white space too."""
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps({**description, "post_processor": None}))
    backend.no_truncation()
    backend.no_padding()
    return backend


def _harmless_unknown(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The unknown token, unless it is itself BOS, EOS or padding."""
    unknown = tokenizer.unk_token_id
    return None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) else unknown


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids that user text must not get."""
    added = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return {int(token) for token in added.union(tokenizer.all_special_ids)} - {_harmless_unknown(tokenizer)}
