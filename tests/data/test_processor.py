"""The Processor: training and inference see the same prompt, special ids come from templates only, saving keeps all."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from mmjax.data.config import DataConfig, SourceConfig, TokenizerConfig
from mmjax.data.processor import Processor, load_processor, make_processor
from mmjax.data.segments import MediumSlot, Piece, Segment, Special
from mmjax.data.stream import make_stream
from mmjax.data.templates import TEMPLATES
from mmjax.types import Medium, UserError, ask


def test_tokenise(processor):
    parts = (MediumSlot(1), Special("bos"), Piece("red square"), Piece(" 1", 1.0), Special("eos", 1.0))
    segment = processor.tokenise(Segment(parts, query="what is it ?", answer=3))
    word = processor.llm.convert_tokens_to_ids
    assert segment.tokens.tolist() == [1, 1, 1, 2, word("red"), word("square"), word("1"), 2]
    assert segment.weights.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert segment.features.tolist() == [0, 1, 2, -1, -1, -1, -1, -1]
    assert (segment.media, segment.placeholders, segment.answer) == ((1,), 3, 6)
    assert segment.query == (3, word("what"), word("is"), word("it"), word("?"), 4)
    with pytest.raises(ValueError, match="read-only"):
        segment.tokens[0] = 0


@pytest.mark.parametrize("name", ["question_answer", "vqa_7", "caption", "vqa_mixed"])
def test_training_and_inference_see_the_same_prompt(name, processor, example, sources):
    """The row of a training stream begins with exactly what decoding starts from."""
    processor = dataclasses.replace(processor, query_length=32)
    one = example(5, 1)
    queries = 0 if name == "caption" else 1
    config = DataConfig(
        mixture={"one": SourceConfig(path="one", template=name)},
        rows=1,
        length=48,
        queries=queries,
        query_length=32 * queries,
        soft_tokens=3,
        image_size=8,
    )
    stream = make_stream(config, processor, 0, open_source=sources(one=[one]), training=False)
    trained = next(stream)
    stream.close()
    from mmjax.data.segments import draw

    asked = processor.prompts([one], name, seed=draw(0, "template", 0))
    real = asked.text.segments[0] == 1
    size = real.sum()
    for field in ("tokens", "positions", "segments"):
        np.testing.assert_array_equal(getattr(trained.text, field)[0, :size], getattr(asked.text, field)[0, real])
    np.testing.assert_array_equal(trained.feature_index[0, :size], asked.feature_index[0, real])
    np.testing.assert_array_equal(trained.media["image"].values, asked.media["image"].values)
    assert trained.queries.keys() == asked.queries.keys()
    for modality, query in asked.queries.items():
        np.testing.assert_array_equal(trained.queries[modality].tokens, query.tokens)
        np.testing.assert_array_equal(trained.queries[modality].mask, query.mask)


def test_prompts_are_padded_on_the_left(processor, example):
    batch = processor.prompts([example(0, 1), "how many ?"], "question_answer", rows=3)
    text = batch.text
    assert text.tokens.shape == (3, 32)
    assert (text.segments[:, -1] == [1, 1, 0]).all() and (np.diff(text.segments, axis=1) >= 0).all()
    for row in range(2):
        used = text.segments[row] == 1
        np.testing.assert_array_equal(text.positions[row, used], np.arange(used.sum()))
    assert not text.loss_weights.any()
    assert batch.media["image"].mask.tolist() == [[True], [False], [False]]
    assert (batch.feature_index[0] >= 0).sum() == 3 and (batch.feature_index[1:] == -1).all()
    assert batch.queries["image"].mask.any(-1).tolist() == [[True], [False], [False]]


def test_a_plain_prompt_is_used_verbatim(processor):
    image = Medium("image", np.zeros((5, 5, 3), np.uint8))
    batch = processor.prompts([ask("what <image> is it", image, image)])
    word = processor.llm.convert_tokens_to_ids
    tokens = batch.text.tokens[0][batch.text.segments[0] == 1].tolist()
    assert tokens[:7] == [1] * 6 + [2] and tokens[7] == word("what") and tokens[-2:] == [word("is"), word("it")]
    assert 6 not in tokens, "an image comes from an attachment, never from text"
    assert batch.queries["image"].medium.tolist() == [[0, 1]]
    assert batch.feature_index[0][batch.feature_index[0] >= 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_text_only_prompts_have_no_media(processor):
    batch = processor.prompts(["how many ?"])
    assert batch.media == {} and batch.queries == {} and batch.feature_index is None


def test_prompts_refuse_what_the_connector_cannot_read(processor, example):
    one = dataclasses.replace(example(0), turns=ask("red " * 30, *example(0).media).turns)
    with pytest.raises(UserError, match="at most 12 tokens.*32"):
        processor.prompts([one])


def test_a_foreign_vocabulary_is_refused(processor):
    small = dataclasses.replace(processor, vocabulary=8)
    with pytest.raises(UserError, match="vocabulary of 8"):
        small.tokenise(Segment((Piece("red square"),)))


def test_save_load_pickle(processor, example, tmp_path, tokenizer):
    full = dataclasses.replace(processor, connector=tokenizer, vocabulary=99)
    full.save(tmp_path / "tokenizer")
    segment = TEMPLATES["question_answer"](example(1))[0]
    for copy in (load_processor(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(full))):
        assert copy.tokenise(segment).tokens.tolist() == full.tokenise(segment).tokens.tolist()
        assert copy.tokenise(segment).query == full.tokenise(segment).query
        for name in ("soft_tokens", "image_size", "query_length", "vocabulary", "pad_id", "query_pad_id"):
            assert getattr(copy, name) == getattr(full, name)
    made = make_processor(TokenizerConfig(llm=str(tmp_path / "tokenizer/llm")), soft_tokens=3)
    assert made.connector is None and made.tokenise(segment).tokens.tolist() == full.tokenise(segment).tokens.tolist()


def test_a_damaged_processor_is_one_line(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_processor(tmp_path)
    (tmp_path / "processor.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_processor(tmp_path)


def test_only_images_are_read(processor):
    with pytest.raises(UserError, match="audio"):
        processor.prompts([ask("what is it", Medium("audio", b""))])
    assert isinstance(processor, Processor)


def test_what_is_too_long_is_cut(processor):
    word = processor.llm.convert_tokens_to_ids
    parts = (MediumSlot(0), Special("bos"), Piece("a red blue square"), Piece(" 1 2 3", 1.0), Special("eos", 1.0))
    segment = Segment(parts, query="what is it ? yes no", answer=3)
    cut = dataclasses.replace(processor, prompt_length=3, answer_length=2, query_length=5, truncate_query="left")
    tokenised = cut.tokenise(segment)
    assert tokenised.tokens.tolist()[3:] == [2, word("blue"), word("square"), word("1"), word("2")]
    assert tokenised.tokens[tokenised.answer] == word("1")
    assert tokenised.query == (3, word("?"), word("yes"), word("no"), 4)
    right = dataclasses.replace(cut, truncate_query="right", prompt_length=0, answer_length=0).tokenise(segment)
    assert right.query == (3, word("what"), word("is"), word("it"), 4) and len(right.tokens) == 3 + 1 + 4 + 3 + 1


def test_another_token_may_end_what_is_learnt(processor):
    newline = dataclasses.replace(processor, end="?")
    segment = newline.tokenise(Segment((Special("bos"), Piece("a", 1.0), Special("eos", 1.0))))
    assert segment.tokens.tolist()[-1] == newline.end_id == processor.llm.convert_tokens_to_ids("?")
    assert processor.end_id == processor.llm.eos_token_id
    other = dataclasses.replace(processor, begin="[DEC]").tokenise(Segment((Special("bos"), Piece("a"))))
    assert other.tokens.tolist() == [5, processor.llm.convert_tokens_to_ids("a")]
    with pytest.raises(UserError, match=r"tokenizers.end='a red' must be one token"):
        dataclasses.replace(processor, end="a red")


def test_a_word_boundary_is_not_counted_twice(processor):
    """SentencePiece begins every text with a word; a space before it would be a second one."""
    vocabulary = {"<unk>": 0, "<pad>": 1, "</s>": 2, "\u2581": 3, "\u2581red": 4, "\u2581is": 5, "\u2581a": 6}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", continuing_subword_prefix=""))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llm = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")
    segment = Processor(llm).tokenise(Segment((Piece("is"), Piece(" red", 1.0))))
    assert segment.tokens.tolist() == [5, 4]
    assert Processor(llm).tokenise(Segment((Piece(" red"),))).tokens.tolist() == [3, 4], "a space that somebody typed"
