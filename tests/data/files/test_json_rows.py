"""Rows are found where a JSON parser finds them, whatever stands in their texts and wherever a block of the file ends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.files import json_rows
from mmjax.data.files.json_rows import Bytes, find_rows, parse
from mmjax.types import UserError

TEXTS = st.text(st.sampled_from('a"\\[]{},: \n\té☃'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 999) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
LISTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3) | VALUES, max_size=6)


def rows_of(file, spans):
    content = Bytes(file)
    return [json.loads(content.read(*span)) for span in spans.tolist()]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("rows") / "rows.json"


@settings(max_examples=150, deadline=None)
@given(rows=LISTS, block=st.integers(1, 40), indent=st.sampled_from([None, 1]), ascii=st.booleans())
def test_rows_of_a_list(file, rows, block, indent, ascii):
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK", block)
        assert rows_of(file, find_rows(file).lists[""]) == rows


@settings(max_examples=100, deadline=None)
@given(
    content=st.dictionaries(st.sampled_from(["images", "annotations", "info", "licences", "x y"]), LISTS | VALUES, min_size=1),
    block=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
)
def test_lists_of_an_object(file, content, block, indent):
    file.write_text(json.dumps(content, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK", block)
        lists = find_rows(file).lists
    expected = {key: value for key, value in content.items() if isinstance(value, list)}
    assert {key: rows_of(file, spans) for key, spans in lists.items()} == expected


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_one_object_a_line(tmp_path, name):
    rows = [{"a": 1}, {"b": "x]}\\"}, {"c": []}]
    for text in ("\n".join(map(json.dumps, rows)), "\r\n\n".join(map(json.dumps, rows)) + "\r\n"):
        (tmp_path / name).write_bytes(text.encode())
        assert rows_of(tmp_path / name, find_rows(tmp_path / name).lists[""]) == rows


def test_a_mark_of_byte_order_is_no_content(tmp_path):
    for name, text in {"a.json": '[{"a": 1}]', "a.jsonl": '{"a": 1}\n'}.items():
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        ((start, stop),) = find_rows(tmp_path / name).lists[""].tolist()
        assert parse(Bytes(tmp_path / name).read(start, stop)) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON file: it begins with ''"),
        ("<html>", "begins with '<', not with"),
        ('[{"a": 1}, {"a', "is no whole JSON file: it ends inside of a text"),
        ('[{"a": 1}, {"a": 2}', "it ends inside of a list; download it again"),
        ('[{"a": 1}] [2]', "after its first value, before byte 14, comes more"),
        ('[{"a": 1}]]', "comes more"),
    ],
)
def test_what_is_no_json_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        find_rows(tmp_path / "a.json")


def test_the_digest_is_of_the_content(tmp_path):
    digests = []
    for name, text in (("a.json", '[{"a": 1}]'), ("b.json", '[{"a": 1}]'), ("c.json", '[{"a": 2}]'), ("d.jsonl", '{"a": 1}')):
        (tmp_path / name).write_text(text)
        digests.append(find_rows(tmp_path / name).digest)
    assert digests[0] == digests[1] and len(set(digests)) == 3
