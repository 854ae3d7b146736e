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
    "template",
    None,
    "chat = the tokenizer's chat template; dialogue, as InstructBLIP's; llava_v1 and other styles of conversations; "
    "question_answer and others ask single questions; default: chat, or for a LLaVA without one the style of its name",
)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", 1024, "longest answer in tokens, and the default of requests", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "answers decoded at once", lower_bound=1)
WARM_UP = flags.DEFINE_integer("warm_up", 0, "compile first for prompts of so many tokens; 0 = at first use", lower_bound=0)
FETCH_IMAGES = flags.DEFINE_bool("fetch_images", False, "download http(s) pictures for clients, from public addresses")
FETCH_HOSTS = flags.DEFINE_list("fetch_hosts", [], "hosts of a private network that --fetch_images may ask too")


def main() -> None:
    command.check_model("model", MODEL.value)
    missing = [package for package in ("fastapi", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"serving needs {' and '.join(missing)}; install them: {sys.executable} -m pip install fastapi uvicorn")
    with listen(HOST.value, PORT.value) as listener:
        import mmjax
        from mmjax.decoding.published import conversation_template
        from mmjax.serving.app import make_app
        from mmjax.serving.settings import Settings
        from mmjax.serving.warmup import warm_up

        model = mmjax.from_pretrained(MODEL.value)
        settings = Settings(
            name=NAME.value or Path(MODEL.value).resolve().name,
            template=TEMPLATE.value or conversation_template(model) or "chat",
            max_tokens=MAX_TOKENS.value,
            batch_size=BATCH_SIZE.value,
            fetch_images=FETCH_IMAGES.value,
            fetch_hosts=tuple(FETCH_HOSTS.value),
        )
        application = make_app(model, settings)
        for done, count in warm_up(model, settings, WARM_UP.value):
            print(f"\rcompiling: {done} of {count} shapes", end="" if done < count else "\n", file=sys.stderr, flush=True)
        print(f"http://{HOST.value}:{listener.getsockname()[1]}/v1 serves {settings.name!r} (Ctrl-C ends it)", flush=True)
        make_server(application, listener).run(sockets=[listener])


if __name__ == "__main__":
    command.run(main)
