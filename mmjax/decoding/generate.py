"""`generate`: from examples to answers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.decoding.inputs import as_examples, batched, bucket, check_positions
from mmjax.decoding.options import DecodingOptions
from mmjax.decoding.published import published
from mmjax.decoding.search import Answers, Searcher
from mmjax.decoding.writer import writer_of
from mmjax.types import Example, UserError
from mmjax.types.model import Model

PIECE = 8  # tokens between two looks at the text, when streaming or waiting for a stop string


class Answer(str):
    """The text of an answer, which also carries what it was made of.

    Args:
      text: without special tokens and outer white space.
      tokens: ids, the end token included.
      logprobs: log-probability of each token (see `mmjax.decoding.search.Answers`).
      top_logprobs: for each token the likeliest ones there, id -> log-probability, with the option top_logprobs.
      media: generated media.
    """

    tokens: tuple[int, ...]
    logprobs: np.ndarray
    top_logprobs: tuple[dict[int, float], ...]
    media: tuple[Any, ...]

    def __new__(
        cls, text: str, tokens: Sequence[int] = (), logprobs: Any = (), top_logprobs: Any = (), media: Sequence[Any] = ()
    ):
        answer = super().__new__(cls, text)
        answer.tokens = tuple(tokens)
        answer.logprobs = np.asarray(logprobs, np.float32)
        answer.top_logprobs = tuple(top_logprobs)
        answer.media = tuple(media)
        return answer

    def __getnewargs__(self):
        return str(self), self.tokens, self.logprobs, self.top_logprobs, self.media


def generate(
    model: Model,
    examples: Sequence[Example | str] | Example | str,
    *,
    images: Sequence[Any] | None = None,
    audios: Sequence[Any] | None = None,
    videos: Sequence[Any] | None = None,
    template: str | None = None,
    task: str | None = None,
    batch_size: int = 64,
    stream: bool = False,
    stop_strings: str | Sequence[str] = (),
    **options: Any,
) -> list[Answer] | Iterator[str]:
    """Answers prompts.

    Args:
      model: a Model: a language model, one that sees, or a BLIP-2 after stage 1, whose Q-Former continues captions.
      examples: Examples, whose last question is asked, or plain prompts.
      images, audios, videos: for plain prompts, one list per prompt, placed before its text: paths, bytes, uint8 arrays
        [height, width, 3] or PIL images; a video becomes four pictures, its frames (`mmjax.data.media.video`).
      template: "chat" renders the whole conversation by the tokenizer's chat template; an entry of
        `mmjax.data.templates.TEMPLATES` renders the last question; None = its text is the whole prompt.
      task: "caption", "vqa", "dialogue", "chat" or "first_chat": as the model's authors asked it, by
        `mmjax.decoding.published`; a template and options that are given prevail.
      batch_size: rows decoded at once.
      stream: give an iterator over pieces of the text of one single answer instead.
      stop_strings: the answer ends before the first of these, and before what the template ends answers with.
      **options: fields of DecodingOptions: max_new_tokens, num_beams, do_sample, temperature, top_k, top_p, seed, …

    Returns:
      One Answer per example, or with `stream` an iterator over text.

    Raises:
      UserError: unknown or impossible options, unusable media.
    """
    asked, model = as_examples(examples, images=images, audios=audios, videos=videos), writer_of(model)
    if task is not None:
        recipe = published(model.config["parts"], task)
        template, options = template or recipe.template, {**recipe.options, **options}
    chosen = make_options(model, options, template)
    stops = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
    if stream:
        return _stream(model, asked, chosen, template, stops)
    rows = bucket(max(len(asked), 1), batch_size)
    batches = answer_batches(model, asked, chosen, template=template, rows=rows, stop_strings=stops)
    return [answer for batch in batches for answer in batch]


def make_options(model: Model, options: dict[str, Any], template: str | None = None) -> DecodingOptions:
    """Checked options, with the end tokens of the model and of the template, and the tokenizer's padding token, where none are
    given; of a model of `writer_of`."""
    known = [field.name for field in dataclasses.fields(DecodingOptions)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UserError(f"decoding option {unknown[0]!r} is unknown; there are {', '.join(known)}")
    processor = model.processor
    given = {"eos_token_id": processor.end_ids(template), "pad_token_id": processor.pad_id, "vocabulary": processor.words}
    return DecodingOptions(**{**given, **options})


def answer_batches(
    model: Model,
    examples: Iterable[Example],
    options: DecodingOptions,
    *,
    template: str | None = None,
    rows: int = 64,
    stop_strings: tuple[str, ...] = (),
) -> Iterator[list[Answer]]:
    """Answers examples batch by batch; the next batch is prepared while one is decoded.

    Args:
      examples: read once, in order, a batch ahead.
      options: see `make_options`.
      rows: examples per batch; a last, smaller batch is filled up with empty rows.

    Returns:
      An iterator over the answers of `rows` examples at a time.
    """
    searcher = searcher_of(model)
    stop_strings = (*stop_strings, *model.processor.end_strings(template))
    parts = batched(examples, rows)

    def prepare() -> tuple[int, Any] | None:
        part = next(parts, None)
        return None if part is None else (len(part), model.processor.prompts(part, template, rows=rows))

    def stopped(answers: Answers) -> np.ndarray:
        return np.array([cut(text, stop_strings) != text for text in _texts(model, answers)])

    first = 0
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        ready = thread.submit(prepare)
        while (prepared := ready.result()) is not None:
            count, batch = prepared
            ready = thread.submit(prepare)
            answers = searcher.run(
                model.parameters,
                batch,
                options,
                seeds=options.seed + first + np.arange(rows),
                piece=PIECE if stop_strings else 0,
                stop=stopped if stop_strings else None,
            )
            texts = _texts(model, answers)
            yield [
                Answer(
                    cut(texts[row], stop_strings).strip(),
                    answers.tokens[row, :length].tolist(),
                    answers.logprobs[row, :length],
                    likeliest(answers, row) if options.top_logprobs else (),
                )
                for row, length in enumerate(answers.lengths[:count])
            ]
            first += count


def searcher_of(model: Model) -> Searcher:
    """The compiled searches of a model, kept on it."""
    return model.cache.setdefault("decoding.search", Searcher(model.definition.bind))


def likeliest(answers: Answers, row: int) -> list[dict[int, float]]:
    """For each token of a row the likeliest ones there, id -> log-probability, likeliest first."""
    length = answers.lengths[row]
    pairs = zip(answers.top_tokens[row, :length].tolist(), answers.top_logprobs[row, :length].tolist(), strict=True)
    return [ranked(tokens, logprobs) for tokens, logprobs in pairs]


def ranked(tokens: Sequence[int], logprobs: Sequence[float]) -> dict[int, float]:
    """id -> log-probability of tokens that can be chosen at all."""
    return {token: logprob for token, logprob in zip(tokens, logprobs, strict=True) if logprob > -math.inf}


def cut(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((text.find(stop) for stop in stop_strings if stop in text), default=len(text))]


def settled(text: str, stop_strings: Sequence[str], *, trim: bool = True) -> str:
    """What of an unfinished text no later token can change: its end may still belong to a character or to a stop string, and
    with `trim` be white space that is left out at the end of an answer."""
    held = max((len(stop) - 1 for stop in stop_strings), default=0)
    sure = (text.lstrip() if trim else text).rstrip("\ufffd")
    sure = sure[: max(len(sure) - held, 0)]
    return sure.rstrip() if trim else sure


def _texts(model: Model, answers: Answers) -> list[str]:
    rows = [tokens[:length] for tokens, length in zip(answers.tokens, answers.lengths, strict=True)]
    return model.processor.llm.batch_decode(rows, skip_special_tokens=True)


def _stream(
    model: Any, examples: list[Example], options: DecodingOptions, template: str | None, stop_strings: tuple[str, ...]
) -> Iterator[str]:
    if len(examples) != 1 or options.num_beams > 1:
        raise UserError(
            f"stream=True gives one answer without beams, got {len(examples)} examples and num_beams={options.num_beams}"
        )
    stop_strings = (*stop_strings, *model.processor.end_strings(template))
    batch = model.processor.prompts(examples, template)
    check_positions(model.definition.bind(model.parameters).llm, batch, options.max_new_tokens)

    def stopped(answers: Answers) -> np.ndarray:
        return np.array([cut(text, stop_strings) != text for text in _texts(model, answers)])

    def pieces() -> Iterator[str]:
        sent = whole = ""
        for answers in searcher_of(model).pieces(model.parameters, batch, options, piece=PIECE, stop=stopped):
            whole = cut(_texts(model, answers)[0], stop_strings)
            sure = settled(whole, stop_strings)
            if len(sure) > len(sent):
                yield sure[len(sent) :]
                sent = sure
        if rest := whole.strip()[len(sent) :]:
            yield rest

    return pieces()
