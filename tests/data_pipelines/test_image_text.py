"""Tars of img2dataset and lists of captions: streamed, limited, and nothing left out in silence."""

from __future__ import annotations

import io
import json
import re
import tarfile

import pytest
from PIL import Image

import data_pipelines
from data_pipelines import image_text
from mmjax.data.records import open_source
from mmjax.types import UserError
from tests.data_pipelines.releases import prepared, write


def picture(shade, kind="JPEG"):
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, 0, 255 - shade)).save(stream, kind)
    return stream.getvalue()


def sample(number, caption=None, **changed):
    """The files of a sample as img2dataset writes them."""
    caption = f"picture {number}" if caption is None else caption
    facts = {"caption": caption, "url": f"http://x/{number}.jpg", "key": f"{number:09d}", "status": "success", "exif": "{}"}
    files = {"jpg": picture(number), "json": json.dumps(facts).encode(), "txt": caption.encode()} | changed
    return {f"{number:09d}.{extension}": data for extension, data in files.items() if data is not None}


def write_tar(file, *samples, format=tarfile.PAX_FORMAT):
    """A tar; its times are fractions, as webdataset writes them, which PAX stores in headers of their own."""
    file.parent.mkdir(exist_ok=True)
    with tarfile.open(file, "w", format=format) as tar:
        for name, data in (item for files in samples for item in files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1700000000.25 if format == tarfile.PAX_FORMAT else 0
            tar.addfile(member, io.BytesIO(data))
    return file


def made(tmp_path, name="cc3m", **options):
    """The examples of the release in `raw`, and the reasons of what was left out by id."""
    data_pipelines.prepare(name, tmp_path / "out", tmp_path / "raw", **options)
    file = tmp_path / "out" / "skipped.jsonl"
    skipped = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list(open_source(tmp_path / "out", "train")), {row["id"]: row["reason"] for row in skipped}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_of_all_tars_in_order(tmp_path, format):
    write_tar(tmp_path / "raw/00001.tar", sample(3), format=format)
    write_tar(tmp_path / "raw/00000.tar", sample(0), sample(1), format=format)
    (tmp_path / "raw/00000_stats.json").write_text("{}")  # img2dataset writes them beside its tars
    examples, skipped = made(tmp_path)
    assert [example.id for example in examples] == [
        "cc3m/train/00000/000000000", "cc3m/train/00000/000000001", "cc3m/train/00001/000000003",
    ]  # fmt: skip
    assert [example.answers for example in examples] == [("picture 0",), ("picture 1",), ("picture 3",)]
    assert examples[1].media[0].data == picture(1) and examples[1].media[0].mime == "image/jpeg"
    assert examples[2].meta == {"url": "http://x/3.jpg"} and not skipped


def test_the_caption_may_stand_in_the_json_and_the_picture_be_a_png(tmp_path):
    write_tar(tmp_path / "raw/0.tar", sample(1, txt=None, jpg=None, png=picture(1, "PNG")))
    ((example,), _) = made(tmp_path, "laion400m")
    assert example.answers == ("picture 1",) and example.media[0].mime == "image/png"


@pytest.mark.parametrize("size", [512, 2048, 5000, 10**6])
def test_slices_share_the_samples_out(tmp_path, monkeypatch, size):
    monkeypatch.setattr(image_text, "SLICE", size)
    write_tar(tmp_path / "raw/0.tar", *(sample(number) for number in range(23)))
    examples, skipped = made(tmp_path)
    assert [example.answers for example in examples] == [(f"picture {number}",) for number in range(23)] and not skipped


BAD = {
    "no picture": (sample(1, jpg=None), "has no picture: its files are json, txt"),
    "no caption": (sample(1, caption="  "), "has no caption"),
    "none at all": (sample(1, txt=None, json=None), "has no caption"),
    "not a picture": (sample(1, jpg=b"<html>404</html>"), "cannot be used: its picture: 16 bytes that are none of PNG, JPEG"),
    "cut short": (sample(1, jpg=picture(1)[:-40]), "cannot be used: its picture: damaged"),
    "bad json": (sample(1, json=b"{"), "is damaged: "),
    "no object": (sample(1, json=b"[]"), "is damaged: 'list' object has no attribute"),
    "deep json": (sample(1, json=b"[" * 1900), "is damaged: maximum recursion"),
    "half a pair": (sample(1, txt=None, json=b'{"caption": "\\ud83d"}'), "cannot be stored: .*surrogates not allowed"),
    "bad text": (sample(1, txt=b"\xff\xfe"), "is damaged: 'utf-8'"),
    "large": (sample(1, webm=bytes(2001)), "has a file of 2,001 bytes; the limit is 2,000"),
}


@pytest.mark.parametrize(("bad", "reason"), BAD.values(), ids=BAD)
def test_bad_samples_are_counted_and_listed(tmp_path, monkeypatch, bad, reason):
    monkeypatch.setattr(image_text, "MAX_BYTES", 2000)
    write_tar(tmp_path / "raw/0.tar", sample(0), bad, sample(2))
    with pytest.raises(UserError, match=f"cc3m/train/0/000000001 {reason}.*--skips=0"):
        made(tmp_path)
    examples, skipped = made(tmp_path, skips=1)
    assert [example.answers for example in examples] == [("picture 0",), ("picture 2",)]
    assert list(skipped) == ["cc3m/train/0/000000001"] and re.match(reason, skipped["cc3m/train/0/000000001"])


@pytest.mark.parametrize("size", [3000, 10**6])
@pytest.mark.parametrize("kind", ["header", "inside a file", "between files", "no end"])
def test_a_damaged_tar_is_told_once_and_what_comes_before_is_kept(tmp_path, monkeypatch, kind, size):
    monkeypatch.setattr(image_text, "SLICE", size)
    with tarfile.open(write_tar(tmp_path / "raw/0.tar", *(sample(number) for number in range(6)))) as tar:
        third, last = tar.getmember("000000003.jpg"), tar.getmembers()[-1]
    content = bytearray((tmp_path / "raw/0.tar").read_bytes())
    start = third.offset
    if kind == "header":
        content[start + 100 : start + 120] = b"x" * 20
    else:
        end = {"inside a file": third.offset_data + 5, "between files": start, "no end": last.offset_data + 512}[kind]
        del content[end:]
    (tmp_path / "raw/0.tar").write_bytes(content)
    examples, skipped = made(tmp_path, skips=2)
    kept = 6 if kind == "no end" else 3
    assert [example.answers for example in examples] == [(f"picture {number}",) for number in range(kept)]
    tar_file = str(tmp_path / "raw/0.tar")
    assert "is damaged at byte" in skipped.pop(tar_file)
    assert set(skipped) == ({"cc3m/train/0/000000003"} if kind == "inside a file" else set())


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08compressed"])
def test_what_is_no_tar_is_told(tmp_path, content):
    write_tar(tmp_path / "raw/0.tar", sample(0))
    (tmp_path / "raw/1.tar").write_bytes(content)
    examples, skipped = made(tmp_path, skips=1)
    assert len(examples) == 1 and skipped[str(tmp_path / "raw/1.tar")].startswith("is no tar that can be read")


def test_links_and_folders_in_a_tar_are_nothing(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture(9))
    write_tar(tmp_path / "raw/0.tar", sample(0))
    with tarfile.open(tmp_path / "raw/0.tar", "a") as tar:
        link, folder = tarfile.TarInfo("000000001.jpg"), tarfile.TarInfo("000000002")
        link.type, link.linkname, folder.type = tarfile.SYMTYPE, str(secret), tarfile.DIRTYPE
        tar.addfile(link)
        tar.addfile(folder)
        text = tarfile.TarInfo("000000001.txt")
        text.size = 2
        tar.addfile(text, io.BytesIO(b"hi"))
    examples, skipped = made(tmp_path, skips=1)
    assert len(examples) == 1 and skipped["cc3m/train/0/000000001"] == "has no picture: its files are txt"


def test_a_limit_is_one_of_examples(tmp_path):
    write_tar(tmp_path / "raw/0.tar", *(sample(number) for number in range(9)))
    assert len(made(tmp_path, limit=4)[0]) == 4


def test_lists_of_captions(tmp_path):
    rows = [{"image": "00/a.jpg", "caption": "one"}, {"image": "b.png", "caption": ["two", "more"]}]
    files = {"laion_filtered.json": rows, "00/a.jpg": None, "b.png": None}
    examples = prepared("web_capfilt", tmp_path, files)["train"]
    assert [example.answers for example in examples] == [("one",), ("two", "more")]
    assert examples[0].id == "web_capfilt/train/laion_filtered/0" and examples[1].media[0].mime == "image/png"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"captions.csv": ""}, r"expected \*.tar or \*.json"),
        ({"l.json": [{"url": "http://x/1.jpg", "caption": "a"}]}, "l.json lists addresses; download them with img2dataset"),
        ({"l.json": [{"image": "../x.jpg", "caption": "a"}]}, "names a picture outside of its directory: '../x.jpg'"),
        ({"l.json": [{"image": "x.jpg"}]}, "l.json is not the file .*'caption' is missing"),
        ({"l.json": [{"image": "x.jpg", "caption": "a"}]}, "web_capfilt/train/l/0 has no picture: .*x.jpg: No such file"),
        ({"l.json": '[{"image"'}, "l.json is no whole JSON file"),
    ],
)
def test_a_wrong_or_damaged_list_is_one_line(tmp_path, files, message):
    with pytest.raises(UserError, match=message) as raised:
        data_pipelines.prepare("web_capfilt", tmp_path / "out", write(tmp_path / "raw", files))
    assert len(str(raised.value).splitlines()) == 1
