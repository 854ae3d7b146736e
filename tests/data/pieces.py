"""A tokenizer after LLaMA's fashion, trained here: SentencePiece's word boundary, bytes for rare letters."""

from __future__ import annotations

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers. USER: what "
    "is in the picture? ASSISTANT: a red square on the left of the table ### Human: Assistant: [INST] [/INST] <Img> </Img> "
    "<image> Describe this image in detail. café naïve system No. Yes! 0 1 2 3 4 5 6 7 8 9"
).split(" ")


@functools.lru_cache
def learn() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: the specials, 256 bytes, and pieces that begin with a word boundary or stand within a word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator([" ".join(TEXT)] * 3, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learnt = json.loads(tokenizer.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return {piece: number for number, piece in enumerate(first + list(learnt["vocab"]))}, list(map(tuple, learnt["merges"]))


def make_pieces(*special: str, legacy: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer.

    Args:
      special: special tokens besides <unk>, <s> and </s>.
      legacy: whether text behind a special token begins with a word boundary too, as LLaVA's tokenizer has it.
    """
    vocabulary, merges = learn()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>", *special)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>",
        additional_special_tokens=list(special),
    )  # fmt: skip
