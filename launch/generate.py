"""Answers once: `python -m launch.generate --model=DIR --prompt=TEXT [--image=F]… [--video=F]…`; the answer goes to stdout.

DIR is a run's workdir or a model in Hugging Face layout; or a .pth file of LAVIS or MiniGPT-4, of which
`--part=llm=DIR --part=connectors.image=DIR` name what it lacks. Images, then videos come before the text, in the order given.
`--task=vqa` puts the question, and `--task=caption` asks for a caption, as the authors of BLIP-2, InstructBLIP and MiniGPT-4
did; `--task=chat` talks as MiniGPT-4's demo does, `--task=first_chat` as its first release did. `--template=vicuna_v1` asks in
a style of conversation (LLaVA), `--template=chat` in the tokenizer's own; without either the prompt is read as it stands.
"""

from __future__ import annotations

from absl import flags

from launch import command
from mmjax.data.media.image import decode_image
from mmjax.data.templates import remembers
from mmjax.types.errors import UserError

MODEL = flags.DEFINE_string("model", None, "directory of a run or of a saved model, or a .pth file", required=True)
PART = flags.DEFINE_multi_string("part", [], "NAME=PATH of a part that a .pth file lacks; may be repeated")
PROMPT = flags.DEFINE_string("prompt", None, 'the text, for example "Question: How many diamonds are there? Answer:"')
TASK = flags.DEFINE_enum(
    "task", None, ["vqa", "caption", "chat", "first_chat"], "published prompt and decoding; --prompt is then the question alone"
)
TEMPLATE = flags.DEFINE_string(
    "template", None, '"chat", or an entry of mmjax.data.templates that renders the question; default: the prompt as it stands'
)
IMAGE = flags.DEFINE_multi_string("image", [], "picture file; may be repeated")
VIDEO = flags.DEFINE_multi_string("video", [], "video file, read as frames (four, or as trained); may be repeated")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", None, "longest answer; default 32, or as of the task", lower_bound=1)
NUM_BEAMS = flags.DEFINE_integer("num_beams", None, "beams of the search; default 1 = greedy, or as of the task", lower_bound=1)


def main() -> None:
    command.check_weights("model", MODEL.value)
    parts = command.named_parts(PART.value)
    if PROMPT.value is None and TASK.value != "caption":
        raise UserError("--prompt is missing: give the text, or --task=caption")
    if TEMPLATE.value is not None:
        remembers(TEMPLATE.value)  # a name that is none is refused at once
    images = [decode_image(path) for path in IMAGE.value]
    import mmjax

    model = mmjax.from_pretrained(MODEL.value, parts=parts)
    usual = {} if TASK.value else {"max_new_tokens": 32}
    given = {"max_new_tokens": MAX_NEW_TOKENS.value, "num_beams": NUM_BEAMS.value}
    options = usual | {name: value for name, value in given.items() if value is not None}
    media = {"images": [images] if images else None, "videos": [VIDEO.value] if VIDEO.value else None}
    [answer] = mmjax.generate(model, [PROMPT.value or ""], **media, task=TASK.value, template=TEMPLATE.value, **options)
    print(answer)


if __name__ == "__main__":
    command.run(main)
