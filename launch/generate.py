"""Answers once: `python -m launch.generate --model=DIR --prompt=TEXT [--image=F]… [--video=F]…`; the answer goes to stdout.

DIR is a run's workdir or a model in Hugging Face layout. Images, then videos come before the text, in the order given.
"""

from __future__ import annotations

from absl import flags

from launch import command
from mmjax.data.media.image import decode_image

MODEL = flags.DEFINE_string("model", None, "directory of a run or of a saved model", required=True)
PROMPT = flags.DEFINE_string(
    "prompt", None, 'the text, for example "Question: How many diamonds are there? Answer:"', required=True
)
IMAGE = flags.DEFINE_multi_string("image", [], "picture file; may be repeated")
VIDEO = flags.DEFINE_multi_string("video", [], "video file, of which four frames are read; may be repeated")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 32, "longest answer in tokens", lower_bound=1)
NUM_BEAMS = flags.DEFINE_integer("num_beams", 1, "beams of the search; 1 = greedy", lower_bound=1)


def main() -> None:
    command.check_model("model", MODEL.value)
    images = [decode_image(path) for path in IMAGE.value]
    import mmjax

    model = mmjax.from_pretrained(MODEL.value)
    options = {"max_new_tokens": MAX_NEW_TOKENS.value, "num_beams": NUM_BEAMS.value}
    media = {"images": [images] if images else None, "videos": [VIDEO.value] if VIDEO.value else None}
    [answer] = mmjax.generate(model, [PROMPT.value], **media, **options)
    print(answer)


if __name__ == "__main__":
    command.run(main)
