"""Files as people have them: what they say becomes Examples, and what is wrong with a row is told by its key."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmjax.data.files.forms import RowError
from mmjax.data.records import fingerprint, open_source
from mmjax.types import Source, UserError
from tests.data.files.conftest import png


def parts(turn):
    return [part.medium if part.text is None else part.text for part in turn.parts]


@pytest.fixture
def llava(folder, row):
    """Twelve rows and their pictures."""
    folder.pictures(*(f"{number}.png" for number in range(12)))
    return folder.json("train.json", [row(number) for number in range(12)])


def test_a_list_in_llavas_form(llava):
    source = open_source(llava, "train")
    assert isinstance(source, Source) and len(source) == 12 and len(open_source(llava, "train", 5)) == 5
    example = source[7]
    assert example.id == "train/7-n7" and example.source == "train.json" and example.meta == {"image_id": "7.png"}
    assert [parts(turn) for turn in example.turns] == [[0, "What colour is it?"], ["Red."]]
    assert example.media[0].data == png(7) and example.media[0].mime == "image/png"
    for outside in (12, -1):
        with pytest.raises(IndexError):
            source[outside]


def test_lines_say_the_same_as_a_list(llava, folder, row):
    lines = folder.lines("train.jsonl", [row(number) for number in range(12)])
    same = [example.turns for example in open_source(lines, "train")]
    assert same == [example.turns for example in open_source(llava, "train")]


def test_a_row_is_read_by_any_thread_and_process(llava):
    source = open_source(llava, "train")
    source[0]
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda index: again[index % 12].id, range(120)))
    assert ids == [f"train/{index % 12}-n{index % 12}" for index in range(120)]


def test_captions_and_texts_alone(folder):
    folder.pictures("images/a.png")
    said = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"image": "a.png", "caption": " A dot. "}, {"image": "a.png", "caption": ["x", "y"]}, {"conversations": said}]
    one, two, three = open_source(folder.json("rows.json", rows), "train")
    assert one.answers == ("A dot.",) and two.answers == ("x", "y") and one.media[0].data == png(0)
    assert not three.media and [turn.role for turn in three.turns] == ["system", "user", "assistant"]


COCO = {
    "info": {"year": 2014, "lists": [1, 2]},
    "images": [{"id": 9, "file_name": "b.png"}, {"id": 4, "file_name": "a.png"}, {"id": 5, "file_name": "c.png"}],
    "licenses": [{"id": 1}],
    "annotations": [
        {"id": 1, "image_id": 4, "caption": "A cat."},
        {"id": 2, "image_id": 9, "caption": "A dog. "},
        {"id": 3, "image_id": 4, "caption": 'One cat, "black".'},
    ],
}


def test_coco_captions_are_joined_to_their_pictures(folder):
    folder.pictures("train2014/a.png", "val2014/b.png")
    dog, cat = open_source(folder.json("annotations/captions_train2014.json", COCO), "train")
    assert (dog.answers, cat.answers) == (("A dog.",), ("A cat.", 'One cat, "black".'))
    assert (cat.media[0].data, dog.media[0].data) == (png(0), png(1)), "pictures are found by year, beside annotations/"
    assert (dog.id, dog.meta) == ("captions_train2014/0-9", {"image_id": 9}) and not dog.turns


def test_captions_may_name_pictures_by_their_ids(folder):
    folder.pictures("image/2.png")
    (folder / "image/2.png").rename(folder / "image/2.jpg")
    file = folder.json("filter_cap.json", {"annotations": [{"image_id": "2", "caption": "A dot."}]})
    (example,) = open_source(file, "train")
    assert example.answers == ("A dot.",) and example.media[0].data == png(0)


def test_karpathys_splits(folder):
    def image(number, split):
        place = {"filepath": "val2014", "filename": f"{number}.png", "cocoid": number, "split": split}
        return {**place, "sentences": [{"raw": f"number {number}", "tokens": ["number"]}]}

    folder.pictures("val2014/1.png")
    images = [image(1, "train"), image(2, "test"), image(3, "restval"), image(4, "val")]
    file = folder.json("dataset_coco.json", {"images": images, "dataset": "coco"})
    train = open_source(file, "train")
    assert len(train) == 2 and train[0].answers == ("number 1",) and train[0].meta == {"image_id": 1}
    assert len(open_source(file, "test")) == 1
    with pytest.raises(UserError, match="no split 'dev'; it has test, train, val"):
        open_source(file, "dev")


def questions(pictures: int, each: int):
    rows = [{"image_id": 10 + n % pictures, "question_id": n, "question": f"q{n}?"} for n in range(pictures * each)]
    answers = [{"answer": answer, "answer_id": 1} for answer in ["no", *["yes"] * 2]]
    facts = {"question_type": "is", "answer_type": "yes/no", "multiple_choice_answer": "yes", "answers": answers}
    return {"questions": rows}, {"annotations": [{"question_id": row["question_id"], **facts} for row in reversed(rows)]}


def test_vqav2s_questions_beside_their_annotations(folder):
    for name in ("v2_OpenEnded_mscoco_{}2014_questions.json", "OpenEnded_mscoco_{}2014_questions.json"):
        asked, answered = questions(2, 11)
        file = folder.json(name.format("val"), asked)
        folder.json(name.format("val").replace("OpenEnded_", "").replace("questions", "annotations"), answered)
        folder.pictures("val2014/x.png")
        for number in (10, 11):
            (folder / f"val2014/COCO_val2014_{number:012d}.jpg").write_bytes(png(number))
        first, more, second, _ = open_source(file, "train")
        assert [len(example.turns) // 2 for example in (first, more)] == [8, 3], "eight questions an example"
        assert [parts(turn) for turn in first.turns[:4]] == [[0, "q0?"], ["yes"], ["q2?"], ["yes"]]
        assert parts(more.turns[0]) == [0, "q16?"] and parts(second.turns[0]) == [0, "q1?"]
        own = first.meta["questions"][1]
        assert own["question_id"] == 2 and own["answers"] == ["no", "yes", "yes"] and own["kind"] == "yes/no"
        assert first.media[0].data == png(10) and len({first.id, more.id, second.id}) == 3


def test_parquet_rows_with_their_pictures(folder, row):
    picture = {"bytes": png(3), "path": "3.png"}
    rows = [row(number, image=picture) for number in range(5)]
    file = folder.parquet("train-0.parquet", rows, row_group_size=2)
    source = pickle.loads(pickle.dumps(open_source(file, "train")))
    assert len(source) == 5 and {example.media[0].data for example in source} == {png(3)}
    assert [example.id for example in source] == [f"train-0/{n}-n{n}" for n in range(5)]
    folder.parquet("train-1.parquet", [row(number, image=picture) for number in range(5, 9)])
    assert [open_source(folder / "train-*.parquet", "train")[n].id[-2:] for n in (8, 0, 5)] == ["n8", "n0", "n5"]
    plain = folder.parquet("plain.parquet", [{"text": "A dot.", "image": png(1)}])
    assert open_source(plain, "train")[0].answers == ("A dot.",) and open_source(plain, "train")[0].media[0].data == png(1)


def test_samples_of_a_tar(folder, row):
    said = json.dumps({"conversations": row(0)["conversations"], "image": "elsewhere.png"}).encode()
    members = [
        ("0/a.png", png(0)), ("0/a.txt", b" A dot. "), ("0/a.json", b'{"url": "x"}'),
        ("0/b.x.png", png(1)), ("0/b.json", said),
        ("c.json", b'{"caption": "none"}'),
    ]  # fmt: skip
    source = open_source(folder.tar("00000.tar", members), "train")
    assert len(source) == 3
    assert source[0].answers == ("A dot.",) and source[0].id == "00000/0-0/a" and source[0].media[0].data == png(0)
    assert parts(source[1].turns[0]) == [0, "What colour is it?"] and source[1].media[0].data == png(1)
    with pytest.raises(RowError, match=r"00000.tar: row 2 \(id 'c'\) has a caption, but no picture"):
        source[2]


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet", "parquet struct"])
def test_pictures_lie_where_images_says(folder, row, kind):
    names = {"deep/0.png": png(5), "train2017/1.png": png(6)}
    file = folder.json("rows.json", [row(0, image="deep/0.png"), row(1)])
    if kind == "folder":
        folder.pictures(*(f"else/{name}" for name in names))
        expected, images = [png(0), png(1)], folder / "else"
    elif kind == "tar":
        members = [("./deep/0.png", b"older"), *((f"./{name}", data) for name, data in names.items())]
        expected, images = [png(5), png(6)], folder.tar("pictures.tar", members)
    else:
        rows = [{"name": name, "bytes": data} for name, data in names.items()]
        if "struct" in kind:
            rows = [{"image": {"bytes": data, "path": name}} for name, data in names.items()]
        expected, images = [png(5), png(6)], folder.parquet("pictures.parquet", rows, row_group_size=1)
    source = pickle.loads(pickle.dumps(open_source(file, "train", 0, str(images))))
    assert [example.media[0].data for example in source] == expected


BAD = {
    "counts": ({"image": ["0.png", "1.png"]}, "placeholders differ from pictures", "has 1 times <image> for 2 pictures"),
    "assistant first": (
        {"conversations": [{"from": "gpt", "value": "Hi"}]}, "roles out of turn", "has turn 1 of 1 by 'gpt', whose turn"
    ),
    "role": ({"conversations": [{"from": "bot", "value": "Hi"}]}, "unknown role", "by 'bot', who is none of human, gpt"),
    "gone": ({"image": "gone.png"}, "missing picture", "has no gone.png, nor have images/"),
    "out": ({"image": "../0.png"}, "picture outside of its folder", r"outside of .*files: '\.\./0.png'"),
    "absolute": ({"image": "/etc/hostname"}, "picture outside of its folder", "outside of .*: '/etc/hostname'"),
    "a folder": ({"image": "."}, "missing picture", "has no picture"),
    "number": ({"image": [7]}, "no picture", "names a picture by 7"),
    "mapping": ({"conversations": {"from": "human"}}, "another form", "no list of turns"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "reason", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_told_by_its_key(folder, row, change, reason, message):
    folder.pictures("0.png", "1.png")
    source = open_source(folder.json("rows.json", [row(0), row(1, **change)]), "train")
    assert source[0].media
    with pytest.raises(RowError, match=rf"rows.json: row 1 \(id 'n1'\) .*{message}") as raised:
        source[1]
    assert raised.value.reason == reason and "\n" not in str(raised.value)
    assert pickle.loads(pickle.dumps(raised.value)).reason == reason


def test_rows_that_are_no_json_are_bad_rows(folder, row):
    folder.pictures("0.png")
    file = folder.json("rows.jsonl", f'{json.dumps(row(0))}\n{{"id": 1,\n[7]\n')
    with file.open("a") as lines:
        lines.write(json.dumps(row(3, id="\ud83d\ude00")) + "\n" + json.dumps(row(4, id="\ud83d")) + "\n")
    source = open_source(file, "train")
    assert source.rows[3][0]["id"] == "😀"
    messages = {1: "row 1 is no JSON: ", 2: "row 2 is a JSON list, not an object", 4: "no JSON: .*surrogates not allowed"}
    for number, message in messages.items():
        with pytest.raises(RowError, match=message):
            source[number]


def test_mistakes_are_one_line_when_a_file_is_opened(folder, row):
    folder.pictures("0.png")
    rows, asked = folder.json("rows.json", [row(0)]), questions(1, 2)
    coco = {"images": COCO["images"][:1], "annotations": COCO["annotations"]}
    for number, (path, images, message) in enumerate(
        [
            (folder / "none.json", "", "none.json does not exist; name the file of the data source"),
            (folder / "none-*.tar", "", r"none-\*.tar does not exist"),
            (folder.path, "", "is no prepared data set .* name the file"),
            (rows, str(folder / "none"), "images=.*none does not exist: expected the folder of the pictures"),
            (rows, str(rows), "rows.json has another form: expected the folder of the pictures"),
            (folder.json("x.json", [{"a": 1}] * 3), "", "another form than LLaVA's, .*: row 0 has neither .* its keys are a"),
            (folder.json("y.json", {"rows": [{}], "a": 1}), "", "holds rows: expected a list of rows in LLaVA's form"),
            (folder.json("a_questions.json", asked[0]), "", "holds questions without answers: the file of their annotations"),
            (folder.json("b.json", asked[1]), "", "row 0 of its list has no 'caption'|has no 'image_id'"),
            (folder.json("c.json", coco), "", "2 of 3 ids are not among the images, the first is 4"),
            (folder.json("d.parquet", "PAR0"), "", "d.parquet is no whole parquet file"),
            (folder.json("e.tar", "x" * 2000), "", "e.tar is no plain tar"),
            (folder.tar("f.tar", [("a.txt", b"a")], "w:gz"), "", "f.tar is no plain tar .*unpack it"),
        ]
    ):
        with pytest.raises(UserError, match=message) as raised:
            open_source(path, "train", 0, images)
        assert "\n" not in str(raised.value), number


def test_a_tar_that_is_cut_short_is_told(folder):
    file = folder.tar("a.tar", [("a.png", png(0)), ("b.png", png(1))])
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(UserError, match="a.tar is (damaged at byte|no plain tar)"):
        open_source(file, "train")


def test_an_index_is_kept_and_follows_the_file(llava, folder, row, cache, monkeypatch):
    first = open_source(llava, "train").fingerprint
    (kept,) = cache.iterdir()
    made = kept.stat().st_mtime_ns
    assert open_source(llava, "train").fingerprint == first == fingerprint(llava, "train") and kept.stat().st_mtime_ns == made
    moved = folder.json("other.json", llava.read_text())
    assert fingerprint(moved, "train") == first, "the same content elsewhere is the same data set"
    llava.write_text(llava.read_text().replace("Red.", "Tan."))
    assert fingerprint(llava, "train") != first and open_source(llava, "train")[3].turns[1].text == "Tan."
    folder.json("train.json", [row(number) for number in range(5)])
    assert len(open_source(llava, "train")) == 5


def test_a_damaged_index_is_made_again(llava, cache):
    first = open_source(llava, "train").fingerprint
    (kept,) = cache.iterdir()
    whole, found = kept.read_bytes(), 0
    for position in [*np.random.default_rng(0).integers(0, len(whole), 40).tolist(), None]:
        damaged = bytearray(whole[: len(whole) // 2] if position is None else whole)
        if position is not None:
            damaged[position] ^= 16
        kept.write_bytes(damaged)
        source = open_source(llava, "train")
        assert source.fingerprint == first and source[11].id == "train/11-n11"
        found += kept.read_bytes() == whole
    assert found > 20, "it was made again"


def test_a_cache_that_cannot_be_written_is_no_obstacle(llava, tmp_path, monkeypatch):
    (tmp_path / "plain").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "plain"))
    assert len(open_source(llava, "train")) == 12


OPEN = """
import resource, sys, time
from mmjax.data.records import open_source
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
start = time.perf_counter()
source = open_source(sys.argv[1], "train")
opened = time.perf_counter() - start
rows = [source.rows[index][0]["id"] for index in range(0, len(source), 97)]
print(len(source), rows == [index % 1000 for index in range(0, len(source), 97)], peak() - before, opened)
"""


def test_many_rows_start_within_seconds_and_do_not_live_in_memory(folder, row):
    some = json.dumps([row(n, id=n, conversations=[{"from": "human", "value": "x" * 250}]) for n in range(1000)])[1:-1]
    file = folder / "many.json"
    with file.open("w") as out:
        out.write("[" + ",\n".join([some] * 300) + "]")
    for least in (15.0, 3.0):  # seconds: without the index, and with it
        command = [sys.executable, "-c", OPEN, str(file)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert printed[:2] == ["300000", "True"]
        assert float(printed[2]) < 100, "MiB"
        assert float(printed[3]) < least, "seconds"
