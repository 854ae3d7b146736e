"""Videos become evenly spaced frames, and what is no video is told in one line."""

from __future__ import annotations

import io
import sys

import av
import numpy as np
import pytest

from mmjax.data.media import video
from mmjax.data.media.image import ImageError
from mmjax.data.media.video import places, sample_frames, with_frames, with_places
from mmjax.types import Example, Medium, Part, Turn, UserError


def encode(count, container="mp4", codec="mpeg4"):
    """A clip of grey pictures, each 20 brighter than the one before."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=5, width=32, height=48, pix_fmt="yuv420p")
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((48, 32, 3), 20 * number + 10, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def mp4(codec, **stream):
    """A file with one stream in which nothing comes."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        output.add_stream(codec, **stream)
        output.start_encoding()
    return file.getvalue()


@pytest.mark.parametrize(("container", "codec"), [("mp4", "mpeg4"), ("matroska", "libx264"), ("avi", "mpeg4")])
def test_frames_are_evenly_spaced(container, codec):
    data = encode(11, container, codec)
    for frames, expected in ((4, [0, 2, 5, 8]), (1, [0]), (22, [number // 2 for number in range(22)])):
        got = sample_frames(data, frames)
        assert got.dtype == np.uint8 and got.shape == (len(expected), 48, 32, 3)
        np.testing.assert_allclose(got.mean((1, 2, 3)), [20 * number + 10 for number in expected], atol=4)


def test_a_video_becomes_parts_where_it_stood():
    clip, picture = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, 3), np.zeros((1, 1, 3), np.uint8)
    turns = (
        Turn("user", (Part(medium=1), Part(text="then"), Part(medium=0), Part(text="what?"))),
        Turn("assistant", (Part(text="that"),)),
    )
    example = Example("x", media=(Medium("video", clip), Medium("image", picture)), turns=turns)
    new = with_frames(example, 3)
    assert [medium.kind for medium in new.media] == ["image"] * 4
    assert [int(medium.data[0, 0, 0]) for medium in new.media[:3]] == [0, 2, 4]
    assert [part.medium if part.text is None else part.text for part in new.turns[0].parts] == [3, "then", 0, 1, 2, "what?"]
    assert new.turns[1] == turns[1] and with_frames(new) is new
    empty = with_places(example, 3)
    assert empty.turns == new.turns and [medium.kind for medium in empty.media] == ["video"] * 3 + ["image"]
    assert places(example, 3) == [range(3), range(3, 4)] and with_places(new) is new


def test_what_is_no_video_is_told_in_one_line(monkeypatch):
    data = encode(11)
    sound = io.BytesIO()
    with av.open(sound, "w", format="wav") as output:
        output.add_stream("pcm_s16le", rate=8000)
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"
    bad = {
        "damaged": [b"no video at all", data[:200], playlist, sound.getvalue()],
        "wrong array": [np.zeros((2, 3, 4), np.uint8), np.zeros((0, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3))],
    }
    for reason, values in bad.items():
        for value in values:
            with pytest.raises(ImageError, match="clip: ") as error:
                sample_frames(value, name="clip")
            assert error.value.reason == reason and "\n" not in str(error.value)
    for empty in (mp4("aac", rate=8000), mp4("mpeg4", rate=5, width=32, height=48, pix_fmt="yuv420p")):
        with pytest.raises(ImageError, match="clip: .* no .*(frames|video stream)") as error:
            sample_frames(empty, name="clip")
        assert error.value.reason == "no frames"
    monkeypatch.setattr(video, "MAX_FRAMES", 10)
    with pytest.raises(ImageError, match="more than 10 frames"):
        sample_frames(data)
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="32 x 48 pixels, the limit is 1,000"):
        sample_frames(data)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match='pip install "av>=15"'):
        sample_frames(data)
