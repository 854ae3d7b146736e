"""The processor of models that are encoders only: pictures and texts of users to arrays of static shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mmjax.data.media.image import ImageTransform, decode_image, transform_image
from mmjax.data.tokenizer import text_encoder
from mmjax.types import UserError

BUCKET = 16  # texts are padded to a multiple of this, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class EncoderProcessor:
    """What stands between users and encoders.

    Args:
      transform: of pictures; None = the model reads none.
      image_size: side of the square that the transform must give, in pixels.
      tokenizer: None = the directory has none.
      max_length: tokens of the longest text, special ones included; longer texts are cut.
      fill: pad every text to max_length (SigLIP).
    """

    transform: ImageTransform | None = None
    image_size: int = 0
    tokenizer: PreTrainedTokenizerFast | None = None
    max_length: int = 0
    fill: bool = False

    def images(self, images: Sequence[Any]) -> UInt8[np.ndarray, "n height width 3"]:
        """Decodes, resizes and crops pictures: paths, bytes, uint8 arrays [height, width, 3] or PIL images.

        Raises:
          UserError: one that cannot be used, or that the transform does not bring to the encoder's size.
        """
        names = [f"image {i}" for i in range(len(images))]
        pixels = [
            transform_image(decode_image(image, name=name), self.transform, name=name)
            for image, name in zip(images, names, strict=True)
        ]
        wanted = (self.image_size, self.image_size, 3)
        for i, picture in enumerate(pixels):
            if picture.shape != wanted:
                raise UserError(
                    f"image {i}: preprocessor_config.json makes it {picture.shape[0]} × {picture.shape[1]} pixels, the encoder "
                    f"reads {self.image_size} × {self.image_size}"
                )
        return np.stack(pixels) if pixels else np.zeros((0, *wanted), np.uint8)

    def texts(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "n t"], Bool[np.ndarray, "n t"]]:
        """Ids with the model's special tokens around them, padded on the right, and where they are not padding.

        Text that spells a special token is plain text.

        Raises:
          UserError: the model came without a tokenizer, or what is not a text.
        """
        if self.tokenizer is None:
            raise UserError("the model came without a tokenizer; put tokenizer.json into its directory")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"texts[{i}]: expected a text, got {type(text).__name__}")
        rows = [self._encode(text) for text in texts]
        longest = max(map(len, rows), default=1)
        length = self.max_length if self.fill else min(-(-longest // BUCKET) * BUCKET, self.max_length)
        tokens = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, np.int32)
        mask = np.zeros((len(rows), length), bool)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    @functools.cached_property
    def _encode(self) -> Callable[[str], tuple[int, ...]]:
        """Text -> ids, the special tokens of the tokenizer's own template around them, max_length at most."""
        encode = text_encoder(self.tokenizer)
        backend = Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        probe = backend.encode("a")
        inside = [i for i, is_special in enumerate(probe.special_tokens_mask) if not is_special]
        first, last = probe.ids[: inside[0]], probe.ids[inside[-1] + 1 :]
        room = self.max_length - len(first) - len(last)
        return lambda text: (*first, *encode(text)[:room], *last)
