"""An OpenAI-style endpoint: `python -m launch.serve --model=DIR [--port=N] [--template=T]`; see docs/serving.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from absl import flags

from launch import command
from mmjax.serving.server import listen, make_server
from mmjax.types.errors import UserError

MODEL = flags.DEFINE_string("model", None, "directory of a run or of a saved model", required=True)
HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; 0.0.0.0 = every one: whoever reaches it may ask")
PORT = flags.DEFINE_integer("port", 8000, "port; 0 = any free one", lower_bound=0, upper_bound=65535)
NAME = flags.DEFINE_string("name", None, "what requests call the model; default: the directory's name")
TEMPLATE = flags.DEFINE_string(
    "template", "chat", "chat = the tokenizer's chat template; question_answer and others ask single questions"
)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 1024, "longest answer in tokens, and the default of requests", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "answers decoded at once", lower_bound=1)
FETCH_IMAGES = flags.DEFINE_bool("fetch_images", False, "download http(s) pictures for clients: only for trusted ones")


def main() -> None:
    command.check_model("model", MODEL.value)
    missing = [package for package in ("fastapi", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"serving needs {' and '.join(missing)}; install them: {sys.executable} -m pip install fastapi uvicorn")
    with listen(HOST.value, PORT.value) as listener:
        import mmjax
        from mmjax.serving import app

        settings = app.Settings(
            name=NAME.value or Path(MODEL.value).resolve().name,
            template=TEMPLATE.value,
            max_tokens=MAX_TOKENS.value,
            batch_size=BATCH_SIZE.value,
            fetch_images=FETCH_IMAGES.value,
        )
        application = app.make_app(mmjax.from_pretrained(MODEL.value), settings)
        print(f"http://{HOST.value}:{listener.getsockname()[1]}/v1 serves {settings.name!r} (Ctrl-C ends it)", flush=True)
        make_server(application, listener).run(sockets=[listener])


if __name__ == "__main__":
    command.run(main)
