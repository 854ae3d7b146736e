"""Records and prepared data sets: what goes in comes out, and damage is never read as data."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import builder, local
from mmjax.data.records import FEATURE, decode_example, encode_example, fingerprint, open_source, split_names
from mmjax.types import Example, Medium, Part, Preference, Source, Turn, UserError


def make_example(number: int = 0, size: int = 3000) -> Example:
    data = np.random.default_rng(number).bytes(size)
    turns = (Turn("user", (Part(medium=0), Part("how many?"))), Turn("assistant", (Part(str(number)),)))
    return Example(id=f"noise/train/{number}", source="noise 1", media=(Medium("image", data, "image/png"),), turns=turns)


def same(left: Example, right: Example) -> bool:
    """Equality but for the digests that encoding adds."""
    return encode_example(left) == encode_example(right) and left.turns == right.turns and left.id == right.id


class Noise(builder.ExampleBuilder):
    """Records of random bytes."""

    VERSION = tfds.core.Version("1.0.0")
    steps = (lambda number: [make_example(number)],)

    def items(self):
        return {"train": range(40), "test": range(40, 45)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "noise"
    out.mkdir()
    builder.write(Noise, out, runner=local.run)
    return out


def test_long_splits_have_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "RECORDS_PER_SHARD", 15)
    builder.write(Noise, tmp_path, runner=local.run)
    assert sorted(file.name[:5] for file in tmp_path.glob("*of-00003")) == ["noise"] * 3
    source = open_source(tmp_path, "train")
    assert [source[index].id for index in range(40)] == [f"noise/train/{index}" for index in range(40)]
    assert len(open_source(tmp_path, "test")) == 5


@pytest.fixture
def copy(prepared, tmp_path):
    """A data set to damage, and its shard of `train`."""
    out = shutil.copytree(prepared, tmp_path / "noise")
    return out, out / "noise-train.array_record-00000-of-00001"


def test_round_trip_of_every_field():
    turn = (Turn("assistant", (Part("naïve ☃ </s>"),)),)
    example = Example(
        id="a/b/1",
        source="a 1.0",
        media=(Medium("image", b"\x00\xff", "image/png"), Medium("audio", b"", "audio/flac")),
        turns=(Turn("system", (Part("be brief"),)), Turn("user", (Part(medium=1), Part("hm"), Part(medium=0)))),
        answers=("two", "2"),
        preference=Preference(turn, (Turn("assistant", (Part("no"),)),)),
        meta={"caption": "x", "objects": [["circle", "red", 0, 1]], "score": 0.5, "none": None},
    )
    back = decode_example(encode_example(example))
    assert [medium.data for medium in back.media] == [b"\x00\xff", b""]
    assert [len(medium.sha256) for medium in back.media] == [64, 64]
    for field in ("id", "source", "turns", "answers", "preference", "meta"):
        assert getattr(back, field) == getattr(example, field)
    assert encode_example(back) == encode_example(example)


@settings(max_examples=40, deadline=None)
@given(text=st.text(), data=st.binary(max_size=50))
def test_round_trip_of_any_text_and_bytes(text, data):
    text = text.encode("utf-8", "ignore").decode()  # lone surrogates are no text
    example = Example(
        id=text, media=(Medium("image", data),), turns=(Turn("user", (Part(text), Part(medium=0))),), meta={text: text}
    )
    back = decode_example(encode_example(example))
    assert (back.id, back.turns, back.meta, back.media[0].data) == (text, example.turns, {text: text}, data)


def test_what_cannot_be_stored_is_refused_by_name():
    with pytest.raises(ValueError, match="'pixels'.*decoded"):
        encode_example(Example(id="pixels", media=(Medium("image", np.zeros((2, 2, 3), np.uint8)),)))
    with pytest.raises(ValueError, match="'wrong'.*SHA-256"):
        encode_example(Example(id="wrong", media=(Medium("image", b"x", sha256="0" * 64),)))
    with pytest.raises(ValueError, match="'meta'.*JSON"):
        encode_example(Example(id="meta", meta={"a": {1, 2}}))


def test_every_flipped_bit_of_a_medium_is_found():
    record = encode_example(make_example(1, size=20))
    for byte in range(len(record) - 20, len(record)):
        damaged = bytearray(record)
        damaged[byte] ^= 4
        with pytest.raises(ValueError, match="noise/train/1.*SHA-256"):
            decode_example(bytes(damaged))


@pytest.mark.parametrize("cut", [0, 3, 5, 100, -1])
def test_records_cut_short_are_refused(cut):
    with pytest.raises(ValueError):
        decode_example(encode_example(make_example())[:cut])


def test_other_versions_are_refused():
    with pytest.raises(ValueError, match="version 9"):
        decode_example(b"\x09" + encode_example(make_example())[1:])


def test_source_gives_the_examples_in_order(prepared):
    source = open_source(prepared, "train")
    assert isinstance(source, Source) and len(source) == 40 and split_names(prepared) == ("train", "test")
    assert all(same(source[index], make_example(index)) for index in range(40))
    assert same(open_source(prepared, "test")[4], make_example(44))
    for outside in (40, -1):
        with pytest.raises(IndexError):
            source[outside]
    assert len(open_source(prepared, "train", limit=7)) == 7 and len(open_source(prepared, "train", limit=99)) == 40


def test_source_travels_by_pickle_and_serves_threads(prepared):
    source = open_source(prepared, "train", limit=30)
    source[0]
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda index: again[index % 30].id, range(300)))
    assert ids == [f"noise/train/{index % 30}" for index in range(300)]


def test_tfds_reads_the_same_directory(prepared):
    records = tfds.builder_from_directory(prepared).as_data_source(split="train")
    assert len(records) == 40 and same(decode_example(records[3][FEATURE]), make_example(3))


def test_what_is_not_there_is_named(prepared, tmp_path):
    with pytest.raises(UserError, match=r"launch\.prepare --dataset=none --out=.*none"):
        open_source(tmp_path / "none", "train")
    with pytest.raises(UserError, match="no split 'val'; it has train, test"):
        open_source(prepared, "val")


DAMAGE = {
    "missing": lambda shard: shard.unlink(),
    "empty": lambda shard: shard.write_bytes(b""),
    "garbage": lambda shard: shard.write_bytes(b"<html>" * 20000),
    "cut to 30 %": lambda shard: shard.write_bytes(shard.read_bytes()[: int(0.3 * shard.stat().st_size)]),
    "cut to 90 %": lambda shard: shard.write_bytes(shard.read_bytes()[: int(0.9 * shard.stat().st_size)]),
    "other": lambda shard: shutil.copy(shard.with_name("noise-test.array_record-00000-of-00001"), shard),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shards_are_named_when_the_data_set_is_opened(copy, damage):
    out, shard = copy
    DAMAGE[damage](shard)
    with pytest.raises(UserError, match=rf"{shard.name}.*python -m launch\.prepare --dataset=noise --out={out}") as caught:
        open_source(out, "train")
    assert "\n" not in str(caught.value)
    assert len(open_source(out, "test")) == 5


def test_damaged_info_is_named(copy):
    (copy[0] / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset_info\.json is damaged"):
        open_source(copy[0], "train")


def test_no_flipped_bit_is_read_as_data(copy):
    out, shard = copy
    whole, found = shard.read_bytes(), 0
    for position in np.random.default_rng(0).integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        shard.write_bytes(damaged)
        try:
            source = open_source(out, "train")
        except UserError:
            found += 1
            continue
        for index in range(40):
            try:
                assert same(source[index], make_example(index))
            except UserError as error:
                assert shard.name in str(error) and f"record {index} " in str(error)
                found += 1
    assert found > 10


def test_fingerprint_tells_data_sets_apart(copy, prepared):
    out, shard = copy
    assert fingerprint(out, "train") == fingerprint(prepared, "train") != fingerprint(prepared, "test")
    shutil.copy(shard.with_name("noise-test.array_record-00000-of-00001"), shard)
    with pytest.raises(UserError):
        open_source(out, "train")
    shard.write_bytes(shard.read_bytes() + b"\x00" * 65536)
    assert fingerprint(out, "train") != fingerprint(prepared, "train")
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        fingerprint(out, "train")
