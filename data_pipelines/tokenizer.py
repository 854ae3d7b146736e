"""A word-level tokenizer trained on the texts of a prepared data set, saved in Hugging Face layout.

For small data sets with a closed vocabulary: every word is one token. Text is lower-cased and split at white space and
punctuation. Special tokens have fixed ids, so that all tokenizers made here agree on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mmjax.data.records import open_source
from mmjax.types import Example

# </s> both begins and ends a text, as in OPT; [CLS], [SEP] and [DEC] are the Q-Former's, <image> stands for a picture.
SPECIAL = ("<unk>", "<pad>", "</s>", "[CLS]", "[SEP]", "[DEC]", "<image>")
PROMPT = "Question: Answer:"  # words of the prompt templates that no data set need contain


def texts(example: Example) -> Iterator[str]:
    """All texts of an example: its caption and what its turns say."""
    if caption := example.meta.get("caption"):
        yield caption
    yield from (part.text for turn in example.turns for part in turn.parts if part.text is not None)


def train(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Counts the words of a corpus and makes a tokenizer that knows them all.

    Args:
      corpus: texts.

    Returns:
      The tokenizer: special tokens first, then words, the most frequent first, ties in alphabetical order. It adds no special
      tokens by itself. Called with `split_special_tokens=True` it reads text that spells a special token as plain text.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    texts = Counter(corpus)  # questions repeat: each different text is split once
    texts[PROMPT] += 1
    words = Counter()
    for text, count in texts.items():
        for word, _ in pieces.pre_tokenize_str(normalizer.normalize_str(text)):
            words[word] += count
    ordered = sorted(words, key=lambda word: (-words[word], word))
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *ordered))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pieces
    # WordPiece with a prefix that no word has puts a space before every word but the first.
    spaced = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.decoder = decoders.Sequence([spaced, decoders.Fuse(), decoders.Replace(Regex(r" (?=[.,:;!?])"), "")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="</s>",
        eos_token="</s>",
        cls_token="[CLS]",
        sep_token="[SEP]",
        additional_special_tokens=["[DEC]", "<image>"],
        clean_up_tokenization_spaces=False,
    )


def build(path: Path) -> None:
    """Trains a tokenizer on the split `train` of the prepared data set `path` and saves it in `path/tokenizer`."""
    source = open_source(path, "train")
    corpus = (text for index in range(len(source)) for text in texts(source[index]))
    train(corpus).save_pretrained(path / "tokenizer")
