"""Conversations about pictures in LLaVA's form (arXiv 2304.08485): `{id, image, conversations: [{from, value}, …]}`.

`llava_conversation`, `llava_detail` and `llava_reasoning` are the three parts of LLaVA-Instruct-158K, from which InstructBLIP
learns, and `llava_instruct` all of them; `llava_pretrain` and `llava_mix665k` are LLaVA-1.5's (arXiv 2310.03744).
`conversations` reads whatever files of this form a directory holds, each as the split of its name.

Files are JSON lists, or JSON lines. `image` is a name, a list of names, or missing where a row is text only; `<image>` says
where each of them stands. Pictures lie where the name says, below the release directory or its folder `images/`; for COCO's
twelve-digit names, whichever year they come from, in `train2017/` or `train2014/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines import builder, release
from mmjax.types import Example, Medium, Part, Turn
from mmjax.types.example import Role

IMAGE = "<image>"
ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "system": "system"}
FOLLOWERS = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}  # "" = the beginning
FOLDERS = ("{name}", "images/{name}", "train2017/{name}", "train2014/{name}", "train2014/COCO_train2014_{name}")


class Row(NamedTuple):
    """A row of a file, its Example's id and source, and the release directory."""

    id: str
    source: str
    raw: str
    content: Mapping[str, Any]


class Unusable(Exception):
    """A row that makes no example; the message is the end of a sentence about it."""


def converse(row: Row) -> Iterator[Example | builder.Skip]:
    """The only step: a row as a conversation, each picture where its placeholder stands; left out if that cannot be."""
    try:
        names = _names(row.content)
        turns = _turns(row.content["conversations"])
        shown = sum(len(turn.media) for turn in turns)
        if shown != len(names):
            raise Unusable(f"has {shown} times {IMAGE} for {len(names)} pictures")
        media = tuple(_medium(Path(row.raw), name) for name in names)
    except Unusable as reason:
        yield builder.Skip(row.id, str(reason))
    except (KeyError, TypeError, AttributeError) as error:
        yield builder.Skip(row.id, f"is no row of LLaVA's form: {error!r}")
    else:
        yield Example(row.id, row.source, media, turns, meta={"image_id": names[0]} if names else {})


def _names(content: Mapping[str, Any]) -> list[str]:
    """The pictures of a row."""
    image = content.get("image") or []
    return [image] if isinstance(image, str) else list(image)


def _turns(conversation: Sequence[Mapping[str, str]]) -> tuple[Turn, ...]:
    """The turns of a conversation: after what a system says, questions and answers by turns.

    Raises:
      Unusable: it is anything else.
    """
    turns: list[Turn] = []
    shown, last = 0, ""
    for number, said in enumerate(conversation, 1):
        role = ROLES.get(said["from"])
        if role is None:
            raise Unusable(f"has a turn by {said['from']!r}, who is none of {', '.join(ROLES)}")
        if role not in FOLLOWERS[last]:
            raise Unusable(f"has turn {number} of {len(conversation)} by {said['from']!r}, whose turn it is not")
        if role != "user" and IMAGE in said["value"]:
            raise Unusable(f"has {IMAGE} in a turn by {said['from']!r}")
        parts = _parts(said["value"], shown)
        shown += sum(part.medium is not None for part in parts)
        turns.append(Turn(role, parts))
        last = role
    if last != "assistant":
        raise Unusable("does not end with an answer")
    return tuple(turns)


def _parts(text: str, shown: int) -> tuple[Part, ...]:
    """A turn's text with the pictures between; the white space around a placeholder goes with it."""
    if IMAGE not in text:
        return (Part(text),)
    first, *rest = (piece.strip() for piece in text.split(IMAGE))
    parts = [Part(first)] if first else []
    for number, piece in enumerate(rest, shown):
        parts += [Part(medium=number), *([Part(piece)] if piece else [])]
    return tuple(parts)


def _medium(raw: Path, name: str) -> Medium:
    if not release.inside(name):
        raise Unusable(f"names a picture outside of the release: {name!r}")
    for folder in FOLDERS:
        file = raw / folder.format(name=name)
        if file.is_file():
            return release.read_medium(file)
    raise Unusable(f"has no picture: {raw / name} is not there, nor in images/, train2017/ or train2014/ beside it")


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


INSTRUCT, PRETRAIN = (
    "huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    "huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
)
RELEASES = (
    _release("llava_conversation", "conversation_58k", "Conversations about COCO pictures.", INSTRUCT),
    _release("llava_detail", "detail_23k", "Detailed descriptions of COCO pictures.", INSTRUCT),
    _release("llava_reasoning", "complex_reasoning_77k", "Questions about COCO pictures that need reasoning.", INSTRUCT),
    _release("llava_instruct", "llava_instruct_150k", "The three sets of LLaVA's instructions.", INSTRUCT),
    _release("llava_mix665k", "llava_v1_5_mix665k", "The instructions of LLaVA-1.5.", INSTRUCT),
    _release("llava_pretrain", "blip_laion_cc_sbu_558k", "Captions as short conversations.", PRETRAIN),
    _release("conversations", "*", "Conversations in LLaVA's form.", "your own", named_splits),
)
DATASETS = {each.name: each.build for each in RELEASES}
