"""Videos: encoded bytes or an array -> a few frames, which everything else sees as pictures.

As in InstructBLIP (arXiv 2305.06500): four frames, evenly spaced, each read by itself, in order of time.
"""

from __future__ import annotations

import dataclasses
import io
import itertools

import numpy as np
from jaxtyping import UInt8

from mmjax.data.media.image import MAX_PIXELS, ImageError
from mmjax.types import Example, Medium, Part, UserError

FRAMES = 4  # of a video, as InstructBLIP reads it
MAX_FRAMES = 200_000  # of a file: two hours at 25 a second
# Containers that hold their own frames. Playlists, which name other files and addresses, are not among them.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif"

Frames = UInt8[np.ndarray, "frames height width 3"]


def places(example: Example, frames: int = FRAMES) -> list[range]:
    """Where each medium stands among the pictures of an example whose videos have become so many frames."""
    counts = [frames if medium.kind == "video" else 1 for medium in example.media]
    return [range(end - count, end) for count, end in zip(counts, itertools.accumulate(counts), strict=True)]


def with_places(example: Example, frames: int = FRAMES) -> Example:
    """An example with a part, and a medium, for each frame where there was one for the video; nothing is decoded.

    Args:
      example: given back as it is where it has no video.
      frames: of a video. Each of these media is the whole video still.
    """
    if all(medium.kind != "video" for medium in example.media):
        return example
    of = places(example, frames)

    def spread(part: Part) -> list[Part]:
        return [part] if part.medium is None else [Part(medium=place) for place in of[part.medium]]

    turns = tuple(
        dataclasses.replace(turn, parts=tuple(new for part in turn.parts for new in spread(part))) for turn in example.turns
    )
    media = tuple(medium for medium, own in zip(example.media, of, strict=True) for _ in own)
    return dataclasses.replace(example, media=media, turns=turns)


def with_frames(example: Example, frames: int = FRAMES) -> Example:
    """An example whose videos have become pictures: a part for each frame where there was one for the video.

    Args:
      example: given back as it is where it has no video.
      frames: sampled from each video.

    Raises:
      ImageError: a video that cannot be used.
    """
    if all(medium.kind != "video" for medium in example.media):
        return example
    media: list[Medium] = []
    for i, medium in enumerate(example.media):
        media += pictures_of(medium, frames, name=f"example {example.id!r}, medium {i}")
    return dataclasses.replace(with_places(example, frames), media=tuple(media))


def pictures_of(medium: Medium, frames: int = FRAMES, *, name: str = "video") -> list[Medium]:
    """The frames of a video as pictures, and of any other medium itself; arguments and errors as of `sample_frames`."""
    if medium.kind != "video":
        return [medium]
    return [Medium("image", frame) for frame in sample_frames(medium.data, frames, name=name)]


def sample_frames(data: bytes | np.ndarray, frames: int = FRAMES, *, name: str = "video") -> Frames:
    """Frames evenly spaced over a video, the first one included, as LAVIS and the documentation of transformers pick them.

    Args:
      data: an encoded file, or uint8 [frames height width 3].
      frames: how many; of a shorter video some come twice, so that every video becomes equally many pictures.
      name: what messages call it.

    Raises:
      ImageError: no frames, a damaged or too large file, a kind that is not read.
      UserError: PyAV is not installed.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 4 or data.shape[3] != 3 or not data.size:
            shape = list(data.shape)
            raise ImageError("wrong array", f"{name}: expected uint8 [frames, height, width, 3], got {data.dtype} {shape}")
        return data[_evenly(len(data), frames)]
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise UserError('videos are decoded by PyAV, which is not installed: pip install "av>=15"') from None
    try:
        wanted = _evenly(_count(data, name), frames)
        with av.open(io.BytesIO(data), "r", options={"format_whitelist": FORMATS, "protocol_whitelist": ""}) as container:
            kept = {}
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    kept[number] = frame.to_ndarray(format="rgb24")
                if number == wanted[-1]:
                    return np.stack([kept[each] for each in wanted])
    except (FFmpegError, ValueError, IndexError, MemoryError) as error:
        raise ImageError("damaged", f"{name}: {len(data)} bytes that are no video, or a damaged one ({error})") from None
    raise ImageError("damaged", f"{name}: the video ends before its last frames; it is truncated")


def _count(data: bytes, name: str) -> int:
    """The frames of a file, counted without decoding them; its limits are checked on the way."""
    import av

    with av.open(io.BytesIO(data), "r", options={"format_whitelist": FORMATS, "protocol_whitelist": ""}) as container:
        if not container.streams.video:
            raise ImageError("no frames", f"{name}: the file has no video stream")
        stream = container.streams.video[0]
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise ImageError("too large", f"{name}: {width} x {height} pixels, the limit is {MAX_PIXELS:,} in all")
        count = 0
        for packet in container.demux(stream):
            count += packet.size > 0
            if count > MAX_FRAMES:
                raise ImageError("too large", f"{name}: more than {MAX_FRAMES:,} frames, which is the limit")
    if not count:
        raise ImageError("no frames", f"{name}: the video has no frames")
    return count


def _evenly(count: int, frames: int) -> list[int]:
    """Indices of `frames` out of `count` frames."""
    return [index * count // frames for index in range(frames)]
