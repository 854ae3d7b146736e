"""The Processor: everything that stands between text and media and the arrays of a Batch.

It travels with the model: saved into a workdir together with its tokenizers, pickled to worker processes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerFast

from mmjax.data.batch import BatchShape, Item, assemble, media_of
from mmjax.data.chat import conversation
from mmjax.data.config import TokenizerConfig
from mmjax.data.media.image import decode_image, resize_image
from mmjax.data.templates import MediumSlot, Piece, Rendered, Segment, Special, template, verbatim
from mmjax.data.tokenizer import load_tokenizer, rendered_encoder, text_encoder
from mmjax.types import Batch, Example, Medium, UserError, ask

PROMPT_BUCKET = 32  # prompt rows are padded to a multiple of this, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class TokenisedSegment:
    """A segment as ids. Arrays are read-only: segments that repeat share them.

    Args:
      tokens: ids, the pad id where a soft token stands.
      weights: loss weight of each token as a target.
      features: number of the soft token that stands at a position, counted through the segment's media, −1 = text.
      placeholders: how many positions are soft tokens.
      media: indices of the example's media, in the order of their slots.
      query: ids that the connector reads with each of the media, empty = none.
      prompt: the query's text, by which answer priors are found.
      answer: position of the answer's first token, −1 = none.
    """

    tokens: Int[np.ndarray, "t"]
    weights: Float[np.ndarray, "t"]
    features: Int[np.ndarray, "t"]
    placeholders: int
    media: tuple[int, ...]
    query: tuple[int, ...]
    prompt: str
    answer: int


@dataclasses.dataclass(frozen=True)
class Processor:
    """Tokenizers and the sizes that templates need.

    Args:
      llm: tokenizer of the language model.
      connector: tokenizer of a connector that reads text; None = the language model's.
      soft_tokens: positions that one medium takes in a text row, k.
      image_size: side of the square that images are resized to, in pixels.
      query_length: positions of a connector query, u; 0 = the connector reads no text.
      vocabulary: rows of the language model's embedding; tokens beyond are refused. 0 = the tokenizer's size.
    """

    llm: PreTrainedTokenizerFast
    connector: PreTrainedTokenizerFast | None = None
    soft_tokens: int = 0
    image_size: int = 224
    query_length: int = 0
    vocabulary: int = 0

    def __reduce__(self):
        # The caches below stay behind.
        return Processor, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def pad_id(self) -> int:
        """Id that fills empty positions of the language model's rows."""
        return self.llm.pad_token_id or 0

    @property
    def query_pad_id(self) -> int:
        """Id that fills empty positions of a query."""
        return (self.connector or self.llm).pad_token_id or 0

    @property
    def limit(self) -> int:
        """Ids from here on are refused."""
        return self.vocabulary or len(self.llm)

    @functools.cached_property
    def encode(self) -> Callable[[str], tuple[int, ...]]:
        """Text -> ids of the language model."""
        return text_encoder(self.llm)

    @functools.cached_property
    def encode_rendered(self) -> Callable[[str, Sequence[tuple[int, int]]], tuple[int, ...]]:
        """(text of a chat template, what of it people wrote) -> ids of the language model."""
        return rendered_encoder(self.llm)

    @functools.cached_property
    def encode_query(self) -> Callable[[str], tuple[int, ...]]:
        """Text -> ids of the connector, [CLS] and [SEP] included where it has them."""
        tokenizer = self.connector or self.llm
        encode = text_encoder(tokenizer)
        first = () if tokenizer.cls_token_id is None else (tokenizer.cls_token_id,)
        last = () if tokenizer.sep_token_id is None else (tokenizer.sep_token_id,)
        return lambda text: (*first, *encode(text), *last)

    @functools.cached_property
    def _tokenise(self) -> Callable[[Segment], TokenisedSegment]:
        return functools.lru_cache(16384)(self._tokenise_new)

    def tokenise(self, segment: Segment) -> TokenisedSegment:
        """Tokenises each part by itself, so that a prompt has the same ids with and without its continuation."""
        return self._tokenise(segment)

    def _tokenise_new(self, segment: Segment) -> TokenisedSegment:
        special = {"bos": self.llm.bos_token_id, "eos": self.llm.eos_token_id}
        tokens: list[int] = []
        weights: list[float] = []
        features: list[int] = []
        media: list[int] = []
        answer = -1
        for number, part in enumerate(segment.parts):
            if number == segment.answer:
                answer = len(tokens)
            match part:
                case MediumSlot(medium):
                    ids = (self.pad_id,) * self.soft_tokens
                    features.extend(range(len(media) * self.soft_tokens, (len(media) + 1) * self.soft_tokens))
                    media.append(medium)
                    weight = 0.0
                case Piece(text, weight):
                    ids = self.encode(text)
                case Rendered(text, quotes):
                    ids, weight = self.encode_rendered(text, quotes), 0.0
                case Special(name, weight):
                    ids = () if special[name] is None else (special[name],)
            tokens.extend(ids)
            weights.extend([weight] * len(ids))
            features.extend([-1] * (len(tokens) - len(features)))
        arrays = np.array(tokens, np.int32), np.array(weights, np.float32), np.array(features, np.int32)
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.limit:
            raise UserError(
                f"token {max(tokens)} lies outside the language model's vocabulary of {self.limit}; "
                "`tokenizers.llm` does not belong to this language model"
            )
        for array in arrays:
            array.setflags(write=False)
        query = () if segment.query is None or not self.query_length else self.encode_query(segment.query)
        return TokenisedSegment(*arrays, len(media) * self.soft_tokens, tuple(media), query, segment.query or "", answer)

    def question(self, example: Example, template_name: str | None = None, *, seed: int = 0) -> Segment:
        """The segment that asks the last question of an example, without its answer.

        Args:
          example: its last user turn is asked.
          template_name: an entry of TEMPLATES; "chat" = the whole conversation by the tokenizer's chat template; None = the
            text of the question verbatim, as the prompt of the language model and as the query of the connector.
          seed: for templates that draw.
        """
        if template_name is None:
            return verbatim(example)
        if template_name == "chat":
            return conversation(self.llm, example)
        return template(template_name).prompt(example, seed)

    def image(self, medium: Medium, name: str) -> np.ndarray:
        """Decodes and resizes an image to uint8 [image_size, image_size, 3]; `name` is what errors call it."""
        if medium.kind != "image":
            raise UserError(f"{name}: expected an image, got {medium.kind}; this model reads images only")
        return resize_image(decode_image(medium.data, name=name), self.image_size)

    def prompts(
        self, examples: Sequence[Example | str], template_name: str | None = None, *, seed: int = 0, rows: int = 0, length: int = 0
    ) -> Batch:
        """Builds the batch of prompts for decoding: one row each, padded on the left.

        Args:
          examples: what to ask; plain strings are prompts without media.
          template_name, seed: see `question`.
          rows: rows of the batch, the rest left empty; 0 = one per example.
          length: positions that a text row has at least.

        Returns:
          NumPy arrays; text rows of a bucketed length, segments 1 (0 = padding), positions from 0, no loss.

        Raises:
          UserError: an unusable image, or a query longer than the connector reads.
        """
        items = []
        for example in (ask(example) if isinstance(example, str) else example for example in examples):
            segment = self.tokenise(self.question(example, template_name, seed=seed))
            if segment.media and len(segment.query) > self.query_length:
                raise UserError(
                    f"example {example.id!r}: the connector reads at most {self.query_length} tokens (query_length), "
                    f"the prompt has {len(segment.query)}"
                )
            images = {i: self.image(example.media[i], f"example {example.id!r}, medium {i}") for i in media_of([segment])}
            items.append(Item(example.id, (segment,), images))
        length = max(length, 1, *(len(item.segments[0].tokens) for item in items))
        slots = max((len(item.segments[0].media) for item in items), default=0)
        asks = any(item.segments[0].query for item in items)
        shape = BatchShape(
            rows=max(rows, len(items)),
            length=-(-length // PROMPT_BUCKET) * PROMPT_BUCKET,
            media=max((len(item.images) for item in items), default=0),
            queries=slots if asks else 0,
            query_length=self.query_length,
            soft_tokens=self.soft_tokens,
            image_size=self.image_size,
            pad_id=self.pad_id,
            query_pad_id=self.query_pad_id,
        )
        return assemble([[item] for item in items], shape, left=True)

    def save(self, directory: str | Path) -> None:
        """Writes `processor.json` and the tokenizers into a directory, from which `load_processor` makes an equal one."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.llm.save_pretrained(str(directory / "llm"))
        if self.connector is not None:
            self.connector.save_pretrained(str(directory / "connector"))
        sizes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[2:]}
        (directory / "processor.json").write_text(json.dumps(sizes | {"connector": self.connector is not None}, indent=2))


def load_processor(directory: str | Path) -> Processor:
    """Loads what `Processor.save` wrote.

    Raises:
      UserError: naming the missing or damaged file.
    """
    file = Path(directory) / "processor.json"
    try:
        sizes = json.loads(file.read_text())
        connector = sizes.pop("connector")
        llm = load_tokenizer(file.parent / "llm")
        return Processor(llm, load_tokenizer(file.parent / "connector") if connector else None, **sizes)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; expected a directory that a training run wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def make_processor(tokenizers: TokenizerConfig, **sizes: int) -> Processor:
    """A Processor from tokenizer directories; `sizes` are its other fields."""
    return Processor(
        load_tokenizer(tokenizers.llm), load_tokenizer(tokenizers.connector) if tokenizers.connector else None, **sizes
    )
