"""The Processor: everything that stands between text and media and the arrays of a Batch.

It travels with the model: saved into a workdir together with its tokenizers, pickled to worker processes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from transformers import PreTrainedTokenizerFast

from mmjax.data.batch import BatchShape, Item, assemble, slots_of
from mmjax.data.chat import conversation, end_of_turn
from mmjax.data.config import TokenizerConfig
from mmjax.data.media.image import ImageError, ImageTransform, decode_image, size_of, transform_image
from mmjax.data.media.tiles import Tiling
from mmjax.data.media.video import FRAMES, with_frames
from mmjax.data.segments import Ids, MediumSlot, Piece, Rendered, Segment, Special
from mmjax.data.templates import template, verbatim
from mmjax.data.tokenizer import Encoder, learnt_weights, load_tokenizer, rendered_encoder, text_encoder
from mmjax.types import Batch, Example, ExampleError, Medium, UserError, ask

Size = tuple[int, int] | None  # height, width of a picture
Weighted = tuple[tuple[int, float], ...]  # ids with their loss weights

PROMPT_BUCKET = 32  # prompt rows are padded to a multiple of this, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class TokenisedSegment:
    """A segment as ids. Arrays are read-only: segments that repeat share them.

    Args:
      tokens: ids of the text, the pad id where a soft token stands.
      weights: loss weight of each token as a target.
      source: ids that the encoder of an encoder–decoder reads, empty for other language models.
      features: number of the soft token that stands at a position of the source, or else of the text, counted through the
        segment's media; −1 = a token, NEWLINE (−2) = what ends a row of tiles.
      placeholders: soft tokens of the segment's media, all of which stand somewhere but for those of a margin of tiles.
      media: indices of the example's media, in the order of their slots.
      slots: media slots that each of them takes, several where it is cut into tiles.
      query: ids that the connector reads with each of the media, empty = none.
      prompt: the query's text, by which answer priors are found.
      answer: position of the answer's first token, −1 = none.
      lost: positions that were cut off its end, since it was longer than the longest example.
    """

    tokens: Int[np.ndarray, "t"]
    weights: Float[np.ndarray, "t"]
    source: Int[np.ndarray, "s"]
    features: Int[np.ndarray, "t_or_s"]
    placeholders: int
    media: tuple[int, ...]
    slots: tuple[int, ...]
    query: tuple[int, ...]
    prompt: str
    answer: int
    lost: int = 0


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
      encoder_decoder: whether the language model reads prompts with an encoder, and begins its own text with the pad token.
      transform: how pictures get that size; None = bicubic resize whatever the aspect ratio, as in BLIP-2.
      begin, end: text of the one token that begins a text, and of that which ends an answer; "" = BOS and EOS.
      truncate_query, prompt_length, answer_length: what is cut where it is too long, as in DataConfig.
      other_ends: ids that end an answer too.
      words: ids from here on are never answered: rows of the embedding that only fill it up; 0 = all may be.
      tiling: how pictures are cut into tiles, if they are.
      positions: rows of the language model's table of learned positions, which no text in training may outgrow; 0 = none.
      frames: pictures that a video becomes.
      longest: positions that a conversation has at most in training; 0 = any.
    """

    llm: PreTrainedTokenizerFast
    connector: PreTrainedTokenizerFast | None = None
    soft_tokens: int = 0
    image_size: int = 224
    query_length: int = 0
    vocabulary: int = 0
    encoder_decoder: bool = False
    transform: ImageTransform | None = None
    begin: str = ""
    end: str = ""
    truncate_query: str = ""
    prompt_length: int = 0
    answer_length: int = 0
    other_ends: tuple[int, ...] = ()
    words: int = 0
    tiling: Tiling | None = None
    positions: int = 0
    frames: int = FRAMES
    longest: int = 0

    def __post_init__(self):
        for name in ("begin", "end"):
            text = getattr(self, name)
            if text and text not in self.llm.all_special_tokens and len(self.encode(text)) != 1:
                raise UserError(f"tokenizers.{name}={text!r} must be one token, the tokenizer makes it {self.encode(text)}")
        if self.encoder_decoder and None in (self.llm.pad_token_id, self.llm.eos_token_id):
            raise UserError(
                "an encoder–decoder begins its text with the pad token and ends it with EOS; the tokenizer lacks one"
            )

    def __reduce__(self):
        # The caches below stay behind.
        return Processor, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def pad_id(self) -> int:
        """Id that fills empty positions of the language model's rows."""
        return self.llm.pad_token_id or 0

    @property
    def end_id(self) -> int | None:
        """Id that ends an answer; None for a tokenizer without one."""
        return self._token(self.end) if self.end else self.llm.eos_token_id

    @property
    def begin_id(self) -> int | None:
        """Id that begins a text; None for a tokenizer without one, and where an encoder reads the prompt."""
        if self.encoder_decoder:
            return None
        return self._token(self.begin) if self.begin else self.llm.bos_token_id

    def _token(self, text: str) -> int:
        """The id of a text that is one token, a special one or not."""
        special = text in self.llm.all_special_tokens
        return int(self.llm.convert_tokens_to_ids(text)) if special else self.encode(text)[0]

    @property
    def query_pad_id(self) -> int:
        """Id that fills empty positions of a query."""
        return (self.connector or self.llm).pad_token_id or 0

    @property
    def limit(self) -> int:
        """Ids from here on are refused."""
        return self.vocabulary or len(self.llm)

    def end_ids(self, template_name: str | None = None) -> tuple[int, ...]:
        """Tokens that end an answer: `end` or EOS, `other_ends`, what the template ends one with if that is a special token; in
        a "chat", what its template ends a turn with."""
        turn = self._end_of_turn if template_name == "chat" else None
        text = self._template_end(template_name)
        own = self._token(text) if text in self.llm.all_special_tokens else None
        return tuple(sorted({token for token in (self.end_id, *self.other_ends, turn, own) if token is not None}))

    def end_strings(self, template_name: str | None = None) -> tuple[str, ...]:
        """What the template ends an answer with, if that is no special token: the answer is what comes before it."""
        text = self._template_end(template_name)
        return (text,) if text and text not in self.llm.all_special_tokens else ()

    def _template_end(self, name: str | None) -> str:
        return "" if name in (None, "chat") else template(name).end

    @functools.cached_property
    def _end_of_turn(self) -> int | None:
        return end_of_turn(self.llm)

    @functools.cached_property
    def encode(self) -> Callable[[str], tuple[int, ...]]:
        """Text -> ids of the language model."""
        return text_encoder(self.llm)

    @functools.cached_property
    def encode_rendered(self) -> Encoder:
        """(text of a chat template, what of it people wrote) -> ids of the language model, and where each stands."""
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
    def _tokenise(self) -> Callable[[Segment, tuple[Size, ...]], TokenisedSegment]:
        # As many as a packing window has: once for its plan and once for its rows. Of long conversations these are some 200 MB.
        return functools.lru_cache(16384)(self._tokenise_new)

    def tokenise(self, segment: Segment, media: Sequence[Medium] = ()) -> TokenisedSegment:
        """Tokenises each part by itself, so that a prompt has the same ids with and without its continuation.

        Args:
          media: of the example; how many positions they take depends on their sizes where they are cut into tiles.
        """
        if self.tiling is None:
            return self._tokenise(segment, ())
        return self._tokenise(segment, tuple(size_of(medium.data) if medium.kind == "image" else None for medium in media))

    def _layout(self, size: Size) -> tuple[int, Int[np.ndarray, "positions"]]:
        """The slots of a medium, and which of their soft tokens stand in the text. One that has no size cannot be decoded
        either: it is laid out as a picture of one tile."""
        if self.tiling is None:
            return 1, np.arange(self.soft_tokens)
        height, width = size or (self.tiling.side,) * 2
        return self.tiling.count(height, width), self.tiling.layout(height, width)

    def _tokenise_new(self, segment: Segment, sizes: tuple[Size, ...]) -> TokenisedSegment:
        tokens: list[int] = []
        weights: list[float] = []
        features: list[int] = []
        media: list[int] = []
        slots: list[int] = []
        begins: list[int] = []
        room = self.longest if segment.may_be_cut and self.longest else sys.maxsize
        lost = 0
        for part, pairs in zip(segment.parts, self._weighted(segment), strict=True):
            begins.append(len(tokens))
            if isinstance(part, MediumSlot):
                count, layout = self._layout(sizes[part.medium] if self.tiling else None)
                if lost or len(tokens) + len(layout) > room:  # never within an image
                    lost += len(layout)
                    continue
                features.extend(np.where(layout >= 0, layout + sum(slots) * self.soft_tokens, layout).tolist())
                pairs = ((self.pad_id, 0.0),) * len(layout)
                media.append(part.medium)
                slots.append(count)
            kept = () if lost else pairs[: room - len(tokens)]
            lost += len(pairs) - len(kept)
            tokens.extend(token for token, _ in kept)
            weights.extend(weight for _, weight in kept)
            features.extend([-1] * (len(tokens) - len(features)))
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.limit:
            raise UserError(
                f"token {max(tokens)} lies outside the language model's vocabulary of {self.limit}; "
                "`tokenizers.llm` does not belong to this language model"
            )
        answer = begins[segment.answer] if segment.answer >= 0 else -1
        source: list[int] = []
        if self.encoder_decoder:
            if segment.may_be_cut:
                raise UserError("a conversation is learnt all over, which an encoder–decoder cannot; choose another template")
            cut = (*begins, len(tokens))[_first_learnt(segment)]
            if any(feature != -1 for feature in features[cut:]):
                raise UserError("an encoder–decoder reads media in its prompt, but the template puts one behind what is learnt")
            source, features = [*tokens[:cut], int(self.llm.eos_token_id)], [*features[:cut], -1]
            tokens, weights = [self.pad_id, *tokens[cut:]], [0.0, *weights[cut:]]
            answer = answer - cut + 1 if answer >= 0 else -1
        ids = np.array(tokens, np.int32), np.array(weights, np.float32), np.array(source, np.int32)
        arrays = (*ids, np.array(features, np.int32))
        for array in arrays:
            array.setflags(write=False)
        query = self._query(segment.query, self.truncate_query) if segment.query is not None and self.query_length else ()
        placeholders = sum(slots) * self.soft_tokens
        return TokenisedSegment(*arrays, placeholders, tuple(media), tuple(slots), query, segment.query or "", answer, lost)

    def _weighted(self, segment: Segment) -> list[Weighted]:
        """The ids of each part of a segment with their loss weights, cut to the lengths of training."""
        special = {"bos": self.begin_id, "eos": self.end_id}
        parts: list[Weighted] = []
        for part, before in zip(segment.parts, (None, *segment.parts), strict=False):
            match part:
                case MediumSlot():
                    parts.append(())  # as many positions as its layout has
                case Piece(text, weight):
                    follows = isinstance(before, Piece) and text.startswith(" ")
                    ids = self.encode(text[1:] if follows and self._begins_words else text)
                    parts.append(tuple((token, weight) for token in ids))
                case Rendered():
                    parts.append(self._rendered(part))
                case Special(name, weight):
                    parts.append(() if special[name] is None else ((special[name], weight),))
                case Ids(ids):
                    parts.append(tuple((token, 0.0) for token in ids))
        if self.prompt_length:
            read = [isinstance(part, Piece) and part.weight == 0 for part in segment.parts]
            marks = sum(isinstance(part, Special) and part.weight == 0 for part in segment.parts)  # these stay
            parts = _cut(parts, read, self.prompt_length - marks, 1)
        if self.answer_length:
            parts = _cut(parts, [_is_learnt(part) for part in segment.parts], self.answer_length, -1)
        return parts

    def _rendered(self, part: Rendered) -> Weighted:
        ids, spans = self.encode_rendered(part.text, part.quotes)
        try:
            return tuple(zip(ids, learnt_weights(spans, part.learnt), strict=True))[part.skip :]
        except ExampleError as error:
            raise ExampleError(f"example {part.example!r}: {error}") from None

    @functools.cached_property
    def _begins_words(self) -> bool:
        """Whether the tokenizer takes any text for the beginning of a word, as SentencePiece does: a space that parts a text
        from the one before it would then count twice."""
        pieces = self.llm.backend_tokenizer.encode("a", add_special_tokens=False).tokens
        return bool(pieces) and pieces[0].startswith("\u2581")

    def _query(self, text: str, side: str) -> tuple[int, ...]:
        """A query's ids, cut on that side; its first and last token ([CLS] and [SEP]) always stay."""
        ids, room = self.encode_query(text), self.query_length
        if len(ids) <= room or not side:
            return ids
        return (ids[0], *ids[1 - room :]) if side == "left" else (*ids[: room - 1], ids[-1])

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

    def image(
        self, medium: Medium, name: str, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> UInt8[np.ndarray, "slots height width 3"]:
        """Decodes an image and brings it to the encoder's size, in tiles where the model reads them.

        Args:
          name: what errors call it.
          change: of the decoded image in training, before it is transformed.
        """
        if medium.kind != "image":
            raise ImageError("wrong kind", f"{name}: expected an image, got {medium.kind}; this model reads images and videos")
        square = (self.image_size, self.image_size)
        pixels = decode_image(medium.data, name=name)
        pixels = pixels if change is None else change(pixels)
        if self.tiling is not None:
            return self.tiling.cut(pixels)
        pixels = transform_image(pixels, self.transform or ImageTransform(square), name=name)
        if pixels.shape[:2] != square:
            raise UserError(
                f"{name}: {list(pixels.shape[:2])} pixels after the image processor, the encoder reads {list(square)}"
            )
        return pixels[None]

    def images(self, images: Sequence[Any]) -> UInt8[np.ndarray, "n height width 3"]:
        """Pictures by themselves: paths, bytes, uint8 arrays [height, width, 3] or PIL images. Errors as of `image`."""
        pixels = [
            self.image(Medium("image", decode_image(image, name=f"image {i}")), f"image {i}")[0]
            for i, image in enumerate(images)
        ]
        return np.stack(pixels) if pixels else np.zeros((0, self.image_size, self.image_size, 3), np.uint8)

    def texts(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "n u"], Bool[np.ndarray, "n u"]]:
        """Texts by themselves, as the connector reads them: ids, cut and padded on the right, and where they are no padding."""
        tokens = np.full((len(texts), self.query_length), self.query_pad_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, text in enumerate(texts):
            ids = self._query(text, self.truncate_query or "right")
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    def prompts(
        self,
        examples: Sequence[Example | str],
        template_name: str | None = None,
        *,
        seed: int = 0,
        rows: int = 0,
        length: int = 0,
    ) -> Batch:
        """Builds the batch of prompts for decoding: one row each, padded on the left.

        Args:
          examples: what to ask; plain strings are prompts without media.
          template_name, seed: see `question`.
          rows: rows of the batch, the rest left empty; 0 = one per example.
          length: positions that a row of prompts has at least.

        Returns:
          NumPy arrays; rows of bucketed lengths, segments 1 (0 = padding), positions from 0, no loss. For an encoder–decoder
          the prompts are the source, padded on the right, and the text begins.

        Raises:
          UserError: an unusable image or video, or a query longer than the connector reads.
        """
        asked = [ask(example) if isinstance(example, str) else example for example in examples]
        return self.prompt_batch(
            [self.prompt(example, template_name, seed=seed) for example in asked], rows=rows, length=length
        )

    def prompt(self, example: Example, template_name: str | None = None, *, seed: int = 0) -> Item:
        """One prompt, tokenised, with its images; arguments and errors as of `prompts`."""
        example = with_frames(example, self.frames)
        return self.item(example, self.question(example, template_name, seed=seed))

    def item(self, example: Example, segment: Segment) -> Item:
        """A segment of an example, tokenised, with its images; errors as of `prompts`."""
        tokenised = self.tokenise(segment, example.media)
        if tokenised.media and len(tokenised.query) > self.query_length:
            raise UserError(
                f"example {example.id!r}: the connector reads at most {self.query_length} tokens (query_length), "
                f"the prompt has {len(tokenised.query)}"
            )
        images = {i: self.image(example.media[i], f"example {example.id!r}, medium {i}") for i in slots_of([tokenised])}
        return Item(example.id, (tokenised,), images)

    def prompt_batch(self, items: Sequence[Item], *, rows: int = 0, length: int = 0) -> Batch:
        """The batch of prompts that `prompt` made; arguments and result as of `prompts`."""
        return assemble([[item] for item in items], self.shape_of(items, rows, length), left=True)

    def shape_of(self, items: Sequence[Item], rows: int = 0, length: int = 0) -> BatchShape:
        """The shape of a batch of items of one segment, one a row; lengths are bucketed.

        Args:
          items: what it must hold.
          rows: that it has at least.
          length: positions that it has at least where prompts stand.
        """
        segments = [item.segments[0] for item in items]
        asks = any(segment.query for segment in segments)
        longest = max((len(segment.tokens) for segment in segments), default=1)
        longest_source = max((len(segment.source) for segment in segments), default=1)
        return BatchShape(
            rows=max(rows, len(items)),
            length=_bucket(longest if self.encoder_decoder else max(longest, length)),
            source_length=_bucket(max(longest_source, length)) if self.encoder_decoder else 0,
            media=max((sum(slots_of(item.segments).values()) for item in items), default=0),
            queries=max(len(segment.media) for segment in segments) if asks else 0,
            query_length=self.query_length,
            soft_tokens=self.soft_tokens,
            image_size=self.image_size,
            pad_id=self.pad_id,
            query_pad_id=self.query_pad_id,
        )

    def save(self, directory: str | Path) -> None:
        """Writes `processor.json` and the tokenizers into a directory, from which `load_processor` makes an equal one."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.llm.save_pretrained(str(directory / "llm"))
        if self.connector is not None:
            self.connector.save_pretrained(str(directory / "connector"))
        sizes: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[2:]}
        for name in ("transform", "tiling"):
            sizes[name] = None if (value := sizes[name]) is None else dataclasses.asdict(value)
        (directory / "processor.json").write_text(json.dumps(sizes | {"connector": self.connector is not None}, indent=2))


def _is_learnt(part: Any) -> bool:
    """Whether all of a part has a loss."""
    if isinstance(part, Rendered):
        return part.learnt == ((0, len(part.text)),)
    return isinstance(part, Piece | Special) and part.weight > 0


def _cut(parts: Sequence[Weighted], chosen: Sequence[bool], room: int, step: int) -> list[Weighted]:
    """Leaves `room` ids to the chosen parts together: the last ones with step 1, the first ones with step −1."""
    cut = list(parts)
    excess = sum(len(ids) for ids, mine in zip(parts, chosen, strict=True) if mine) - max(room, 0)
    for index in range(len(parts))[::step]:
        if chosen[index] and excess > 0:
            dropped = min(excess, len(parts[index]))
            cut[index] = parts[index][dropped:] if step > 0 else parts[index][: len(parts[index]) - dropped]
            excess -= dropped
    return cut


def _first_learnt(segment: Segment) -> int:
    """Index of the first part with a loss: from there on a decoder writes, all before it an encoder reads."""
    return next((n for n, part in enumerate(segment.parts) if _is_learnt(part)), len(segment.parts))


def _bucket(length: int) -> int:
    """The next multiple of PROMPT_BUCKET; a single token, with which every answer of an encoder–decoder begins, stays one."""
    return length if length == 1 else -(-length // PROMPT_BUCKET) * PROMPT_BUCKET


def load_processor(directory: str | Path) -> Processor:
    """Loads what `Processor.save` wrote.

    Raises:
      UserError: naming the missing or damaged file.
    """
    file = Path(directory) / "processor.json"
    try:
        sizes = json.loads(file.read_text())
        connector = sizes.pop("connector")
        sizes["other_ends"] = tuple(sizes.get("other_ends", ()))
        for name, cls in (("transform", ImageTransform), ("tiling", Tiling)):
            if sizes.get(name) is not None:
                sizes[name] = cls(**{key: _tuples(value) for key, value in sizes[name].items()})
        llm = load_tokenizer(file.parent / "llm")
        return Processor(llm, load_tokenizer(file.parent / "connector") if connector else None, **sizes)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; expected a directory that a training run wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from None


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def make_processor(tokenizers: TokenizerConfig, **sizes: Any) -> Processor:
    """A Processor from tokenizer directories; `sizes` are its other fields."""
    connector = load_tokenizer(tokenizers.connector) if tokenizers.connector else None
    return Processor(load_tokenizer(tokenizers.llm), connector, begin=tokenizers.begin, end=tokenizers.end, **sizes)
