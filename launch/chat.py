"""A web page to talk about pictures: `python -m launch.chat --model=DIR [--port=N] [--template=T]`, on this machine only."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from absl import flags

from launch import command
from launch.web_page import Said, Server, example_of, question_of
from mmjax.data.templates import remembers

MODEL = flags.DEFINE_string("model", None, "directory of a run or of a saved model", required=True)
PORT = flags.DEFINE_integer("port", 7860, "port on 127.0.0.1; 0 = any free one", lower_bound=0, upper_bound=65535)
TEMPLATE = flags.DEFINE_string(
    "template",
    None,
    "chat = the tokenizer's chat template, a style as llava_v1, dialogue for InstructBLIP, or one of single questions as "
    "question_answer; default: what the model's directory suggests",
)
PROMPT = flags.DEFINE_string(
    "prompt",
    "Question: {} Answer:",
    "where there is no template: how a question about the last picture is put; {} stands for it",
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "longest answer in tokens", lower_bound=1)

SINGLE = (
    "This model is asked single questions: each is put to it with the last picture shown, and nothing that was said before."
)


def main() -> None:
    command.check_model("model", MODEL.value)
    remembers(TEMPLATE.value)  # a name that is none is refused at once
    one_at_a_time = threading.Lock()

    def answer(said: Sequence[Said]) -> Iterator[str]:
        if remembers(template):
            example = example_of(said)
        else:
            example = question_of(said, PROMPT.value if template is None else "{}")
        with one_at_a_time:
            yield from mmjax.generate(model, example, template=template, max_new_tokens=MAX_NEW_TOKENS.value, stream=True)

    with Server(PORT.value, answer) as server:
        import mmjax
        from mmjax.decoding.published import conversation_template

        model = mmjax.from_pretrained(MODEL.value)
        template = TEMPLATE.value or conversation_template(model)
        server.note = "" if remembers(template) else SINGLE
        print(f"http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    command.run(main)
