"""Conversations about pictures in LLaVA's form (arXiv 2304.08485): `{id, image, conversations: [{from, value}, …]}`.

`llava_conversation`, `llava_detail` and `llava_reasoning` are the three parts of LLaVA-Instruct-158K, from which InstructBLIP
learns, and `llava_instruct` all of them; `llava_pretrain` and `llava_mix665k` are LLaVA-1.5's (arXiv 2310.03744).
`conversations` reads whatever files of this form a directory holds, each as the split of its name.

Files are JSON lists, or JSON lines. `image` is a name, a list of names, or missing where a row is text only; `<image>` says
where each of them stands. Pictures lie where the name says, below the release directory or its folder `images/`; for COCO's
twelve-digit names, whichever year they come from, in `train2017/` or `train2014/`. What a row may say, and where its pictures
are looked for, is the business of `mmjax.data.files`, which trains on such files as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import builder, release
from mmjax.data.files import forms
from mmjax.data.files.pictures import Folders, Pictures
from mmjax.types import Example


class Row(NamedTuple):
    """A row of a file, its Example's id and source, and the release directory."""

    id: str
    source: str
    raw: str
    content: Mapping[str, Any]


def converse(row: Row) -> Iterator[Example | builder.Skip]:
    """The only step: a row as a conversation, each picture where its placeholder stands; left out if that cannot be."""
    pictures = Pictures(row.raw, Folders((Path(row.raw),)))
    try:
        yield forms.make_example(forms.one_row, [row.content], row.id, row.source, pictures)
    except forms.Unusable as reason:
        yield builder.Skip(row.id, str(reason))


def rows(found: release.Found, split: str, file: Path) -> list[Row]:
    """All rows of a file; ids hold the place in it and the owner's id."""
    content = release.read_rows(file)
    with release.reading(file):
        return [
            Row(f"{found.name}/{split}/{place}-{row.get('id', '')}", found.source, str(found.raw), row)
            for place, row in enumerate(content)
        ]


def only_split(found: release.Found) -> dict[str, list[Row]]:
    """The rows of a release of one file."""
    ((file,), *_) = found.files.values()
    return {"train": rows(found, "train", file)}


def named_splits(found: release.Found) -> dict[str, list[Row]]:
    """The rows of each file of a directory, as the split of its name."""
    return {file.stem: rows(found, file.stem, file) for files in found.files.values() for file in files}


def _release(name: str, file: str, about: str, where: str, items: Callable[..., Any] = only_split) -> release.Release:
    return release.Release(
        name=name,
        about=about,
        homepage="https://llava-vl.github.io",
        license="by the files' owners; LLaVA's: CC-BY-4.0 and OpenAI's terms of use; pictures: their owners'",
        where=where,
        files={"list": (f"{file}.json",), "lines": (f"{file}.jsonl",)},
        items=items,
        steps=(converse,),
    )


INSTRUCT, PRETRAIN, CC3M = (
    f"huggingface.co/datasets/liuhaotian/{name}"
    for name in ("LLaVA-Instruct-150K", "LLaVA-Pretrain", "LLaVA-CC3M-Pretrain-595K")
)
RELEASES = (
    _release("llava_conversation", "conversation_58k", "Conversations about COCO pictures.", INSTRUCT),
    _release("llava_detail", "detail_23k", "Detailed descriptions of COCO pictures.", INSTRUCT),
    _release("llava_reasoning", "complex_reasoning_77k", "Questions about COCO pictures that need reasoning.", INSTRUCT),
    _release("llava_instruct", "llava_instruct_150k", "The three sets of LLaVA's instructions.", INSTRUCT),
    _release("llava_mix665k", "llava_v1_5_mix665k", "The instructions of LLaVA-1.5.", INSTRUCT),
    _release("llava_pretrain", "blip_laion_cc_sbu_558k", "Captions as short conversations.", PRETRAIN),
    _release("llava_cc3m_595k", "chat", "Captions of CC3M as short conversations, LLaVA 1.0's.", CC3M),
    _release("conversations", "*", "Conversations in LLaVA's form.", "your own", named_splits),
)
DATASETS = {each.name: each.build for each in RELEASES}
