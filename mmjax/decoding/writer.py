"""What of a model writes text: its language model, or where it has none, the captioning head of BLIP-2's stage 1."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from mmjax.connectors.qformer import QFormer
from mmjax.data.batch import BatchShape, Item
from mmjax.data.processor import Processor
from mmjax.layers.parameters import Definition
from mmjax.systems.blip2 import Captioning
from mmjax.types import UserError
from mmjax.types.model import Model

DEC = "[DEC]"  # what BLIP-2 adds to BERT's vocabulary, to begin captions with
HEAD = ("heads.bias", "heads.transform.kernel", "heads.transform_norm.scale")


def writer_of(model: Model) -> Model:
    """The model as one that writes: itself, or its Q-Former as a captioner.

    Args:
      model: with a language model, or a BLIP-2 with the heads of stage 1.

    Returns:
      A model for `generate` and `score`. Of a captioner, its prompts are what a caption begins with, usually nothing.

    Raises:
      UserError: a model that writes no text, or one without a tokenizer.
    """
    if model.processor is None:
        raise UserError("the model came without a tokenizer; put tokenizer.json into its directory")
    system = model.definition.bind(model.definition.abstract())
    absent = set(model.config.get("absent", ()))
    if "llm.head.kernel" in absent:
        raise UserError(
            f"the model came without its language model's head, which {model.config['architecture']} does not store; read the "
            "directory of the class that generates"
        )
    if isinstance(system, Captioning) or getattr(system, "llm", None) is not None:
        return model
    qformer = getattr(system, "connectors", {}).get("image")
    if not isinstance(qformer, QFormer) or qformer.heads is None:
        raise UserError("the model writes no text: it has neither a language model nor BLIP-2's captioning head")
    if absent & {f"connectors.image.{name}" for name in HEAD}:
        raise UserError(
            "the model came without its captioning head, which Blip2ForImageTextRetrieval does not store; "
            "read the file of LAVIS, or a run's workdir"
        )
    if "decoding.writer" not in model.cache:
        definition = CaptionerDefinition(model.definition.graphdef, model.definition.specs)
        processor = _processor(model.processor, qformer.config.decoder_start % qformer.config.vocab, qformer.config.vocab)
        model.cache["decoding.writer"] = dataclasses.replace(model, definition=definition, processor=processor)
    return model.cache["decoding.writer"]


@dataclasses.dataclass(frozen=True)
class CaptionerDefinition(Definition):
    """A definition whose system writes captions."""

    def bind(self, parameters: Mapping[str, Any], compute_dtype: Any = None) -> Captioning:
        return Captioning(super().bind(parameters, compute_dtype))


@dataclasses.dataclass(frozen=True)
class CaptionProcessor(Processor):
    """Makes rows of text beside one picture each, which takes no positions: the text sees it by the queries' keys."""

    def shape_of(self, items: Sequence[Item], rows: int = 0, length: int = 0) -> BatchShape:
        for item in items:
            if len(item.images) != 1:
                raise UserError(f"{item.id!r}: the captioning head describes one picture at a time, got {len(item.images)}")
        return super().shape_of(items, rows, length)


def _processor(processor: Processor, start: int, vocabulary: int) -> CaptionProcessor:
    tokenizer = _with_start(processor.connector or processor.llm, start)
    fields = {field.name: getattr(processor, field.name) for field in dataclasses.fields(Processor)}
    text = {"begin": tokenizer.convert_ids_to_tokens(start), "end": tokenizer.sep_token or "", "vocabulary": vocabulary}
    return CaptionProcessor(**fields | text | {"llm": tokenizer, "connector": None, "soft_tokens": 0, "query_length": 0})


def _with_start(tokenizer: PreTrainedTokenizerFast, start: int) -> PreTrainedTokenizerFast:
    """A tokenizer that has the token with which captions begin."""
    if start == len(tokenizer):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"bos_token": DEC})
    if start >= len(tokenizer):
        raise UserError(f"captions begin with token {start}, the tokenizer has {len(tokenizer)}: it is not the Q-Former's")
    return tokenizer
