"""A web page to ask a picture: `python -m launch.chat --model=DIR [--port=N]`, on this machine only."""

from __future__ import annotations

import threading

from absl import flags

from launch import command
from launch.web_page import Server
from mmjax.data.media.image import decode_image

MODEL = flags.DEFINE_string("model", None, "directory of a run or of a saved model", required=True)
PORT = flags.DEFINE_integer("port", 7860, "port on 127.0.0.1; 0 = any free one", lower_bound=0, upper_bound=65535)
PROMPT = flags.DEFINE_string("prompt", "Question: {} Answer:", "how a question is put to the model; {} stands for it")


def main() -> None:
    command.check_model("model", MODEL.value)
    one_at_a_time = threading.Lock()

    def answer(question: str, picture: bytes) -> str:
        image = decode_image(picture, name="the picture")
        with one_at_a_time:
            return str(mmjax.generate(model, [PROMPT.value.replace("{}", question)], images=[[image]])[0])

    with Server(PORT.value, answer) as server:
        import mmjax

        model = mmjax.from_pretrained(MODEL.value)
        print(f"http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    command.run(main)
