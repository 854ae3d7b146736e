"""Which rows of a JSON file make an example: each its own, or captions and questions joined to the pictures they are about.

An index holds `spans`, for each row the number of its file, its first byte and the one behind its last, in the order of the
examples; `starts`, where each example begins in them; `form`, an entry of `FORMS`; and `digest`, of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mmjax.data.files import forms
from mmjax.data.files.forms import QUESTIONS, Unusable
from mmjax.data.files.index import Table
from mmjax.data.files.json_rows import Bytes, Spans, find_rows, parse
from mmjax.types import UserError

Places = Int64[np.ndarray, "_ 3"]

FORMS = (forms.one_row, forms.coco_captions, forms.karpathy_captions, forms.vqa_questions)


def json_files(path: Path) -> list[Path]:
    """A file, and for a file of questions by VQAv2's and OK-VQA's names, that of their annotations beside it."""
    annotations = path.with_name(path.name.replace("OpenEnded_", "").replace("questions", "annotations"))
    return [path, annotations] if annotations != path and annotations.is_file() else [path]


def index_json(files: Sequence[Path], split: str) -> Table:
    """The index of a JSON file.

    Args:
      files: as `json_files` gives them.
      split: of Karpathy's files, which hold several; other files are one split.

    Raises:
      UserError: the file has another form, or names what it does not hold.
    """
    found = [find_rows(file) for file in files]
    lists = found[0].lists
    if "" in lists:
        form, table = forms.one_row, _ungrouped(_places(0, lists[""]))
    elif "questions" in lists:
        if len(files) < 2 or "annotations" not in found[1].lists:
            raise UserError(
                f"{files[0]} holds questions without answers: the file of their annotations must lie beside it, named as "
                "VQAv2 has it (…questions.json, …annotations.json)"
            )
        form, table = forms.vqa_questions, _questions(files, lists["questions"], found[1].lists["annotations"])
    elif "annotations" in lists:
        form, table = forms.coco_captions, _captions(files[0], lists.get("images"), lists["annotations"])
    elif "images" in lists:
        form, table = forms.karpathy_captions, _ungrouped(_places(0, _of_split(files[0], lists["images"], split)))
    else:
        raise UserError(
            f"{files[0]} holds {', '.join(lists) or 'no lists'}: expected a list of rows in LLaVA's form, COCO's captions "
            "(images, annotations) or VQAv2's questions"
        )
    digest = np.frombuffer(b"".join(each.digest for each in found), np.uint8)
    return {**table, "form": np.array(FORMS.index(form)), "digest": digest}


def _places(file: int, spans: Spans) -> Places:
    return np.insert(spans, 0, file, axis=1)


def _ungrouped(places: Places) -> Table:
    return {"spans": places, "starts": np.arange(len(places) + 1)}


def _grouped(owners: Int64[np.ndarray, "rows"], places: Places, most: int = 0) -> Table:
    """Examples of the rows that have the same owner.

    Args:
      owners: number of each row's example.
      most: rows of an example; the owner of more has several examples. 0 = any number.
    """
    order = np.argsort(owners, kind="stable")
    owners, places = owners[order], places[order]
    first = np.searchsorted(owners, owners)
    rank = np.arange(len(owners)) - first
    begins = np.flatnonzero(rank % most == 0 if most else rank == 0)
    return {"spans": places, "starts": np.append(begins, len(owners))}


def _captions(file: Path, images: Spans | None, annotations: Spans) -> Table:
    """COCO's captions by picture; pictures without one are left out, in the order of `images` or of their first caption."""
    about = _column(file, annotations, "image_id", among="caption")
    if images is None:
        return _grouped(_by_appearance(about), _places(0, annotations))
    owners = _join(file, about, _column(file, images, "id"), "images")
    described = np.unique(owners)
    return _grouped(np.append(described, owners), _places(0, np.concatenate([images[described], annotations])))


def _questions(files: Sequence[Path], questions: Spans, annotations: Spans) -> Table:
    """VQAv2's questions by picture, each before its annotation."""
    answered = _column(files[1], annotations, "question_id")
    match = _join(files[0], _column(files[0], questions, "question_id"), answered, f"annotations in {files[1].name}")
    owners = _by_appearance(_column(files[0], questions, "image_id"))
    pairs = np.stack([_places(0, questions), _places(1, annotations[match])], axis=1)
    return _grouped(np.repeat(owners, 2), pairs.reshape(-1, 3), most=2 * QUESTIONS)


def _of_split(file: Path, images: Spans, split: str) -> Spans:
    """The rows of a split of Karpathy's file; "train" takes in "restval"."""
    splits = _column(file, images, "split")
    splits[splits == "restval"] = "train"
    if not (splits == split).any():
        raise UserError(f"{file} has no split {split!r}; it has {', '.join(sorted(set(splits.tolist())))}")
    return images[splits == split]


def _column(file: Path, spans: Spans, key: str, among: str = "") -> np.ndarray:
    """The values of a key in all rows, which must have `among` too."""
    values: list[Any] = []
    content = Bytes(file)
    for number, span in enumerate(spans.tolist()):
        try:
            row = parse(content.read(*span))
            values.append(row[key])
            if among:
                row[among]
        except Unusable as error:
            raise UserError(f"{file}: row {number} {error}") from None
        except KeyError as error:
            raise UserError(
                f"{file}: row {number} of its list has no {error}; its keys are {', '.join(row)}. Annotations of questions are "
                "read by naming the file of the questions"
            ) from None
    return np.array(values)


def _join(file: Path, wanted: np.ndarray, ids: np.ndarray, among: str) -> Int64[np.ndarray, "_"]:
    """Where each of the wanted ids stands among others."""
    order = np.argsort(ids, kind="stable")
    place = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)] if len(ids) else wanted[:0]
    absent = wanted[ids[place] != wanted] if len(ids) else wanted
    if len(absent):
        raise UserError(
            f"{file}: {len(absent)} of {len(wanted)} ids are not among the {among}, the first is {absent.tolist()[0]!r}"
        )
    return place.astype(np.int64)


def _by_appearance(values: np.ndarray) -> Int64[np.ndarray, "_"]:
    """Numbers equal values alike, in the order in which they first appear."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)
