"""Converts: `python -m launch.convert --source=DIR --target=DIR [--to=hf|peft|llava|lavis|minigpt4] [--pickle] …`.

The source is a run's workdir, a model in Hugging Face layout (a directory or a hub id), a PEFT adapter, a directory of LLaVA's
authors, whose vision tower `--part=encoders.image=DIR` may name, or a .pth file of LAVIS or MiniGPT-4, of which
`--part=llm=DIR --part=encoders.image=eva_vit_g.pth` name what it lacks. The target is a new directory that `transformers`
loads, LoRA adapters merged (`--to=hf`), or that `peft` loads on the base model: the adapters together with every other weight
that differs from the base's (`--to=peft`), or that LLaVA's own code loads (`--to=llava`); or a new .pth file that LAVIS loads
(`--to=lavis`), or that MiniGPT-4 does, its linear map alone (`--to=minigpt4`).
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import command
from mmjax.types.errors import UserError

SOURCE = flags.DEFINE_string(
    "source", None, "directory of a run, of a saved model or of an adapter, a hub id, or a .pth file", required=True
)
TARGET = flags.DEFINE_string("target", None, "directory to write, new or empty; for a .pth file a new name", required=True)
TO = flags.DEFINE_enum(
    "to",
    "hf",
    ["hf", "peft", "llava", "lavis", "minigpt4"],
    "a whole model, an adapter of its base, a directory of LLaVA's authors, or a file of LAVIS or MiniGPT-4",
)
BASE = flags.DEFINE_string("base", None, "base of the adapter that is read or written; default: the one that the source names")
PICKLE = flags.DEFINE_bool("pickle", False, "read pickled weights (.bin, .pth); nothing but tensors is let through")
PART = flags.DEFINE_multi_string(
    "part",
    [],
    "NAME=PATH of what a .pth file or a directory of LLaVA's authors lacks: llm, encoders.image, connectors.image, "
    "tokenizers.connector, tokenizers.llm; repeatable",
)
HEADS = flags.DEFINE_multi_string(
    "heads", [], "PART=N, attention heads of encoders.image or connectors.image in a file of LAVIS; default: 16 and 12"
)

WRITERS = {"llava": "save_llava", "lavis": "save_lavis", "minigpt4": "save_minigpt4"}  # layout -> its name in `mmjax.interop`
FILES = ("lavis", "minigpt4")  # layouts of one file


def main() -> None:
    if Path(SOURCE.value).is_file() and not PICKLE.value:
        raise UserError(f"--source={SOURCE.value} is a pickled file, which is read on request: add --pickle")
    command.check_weights("source", SOURCE.value)
    parts = command.named_parts(PART.value)
    if wrong := [heads for heads in HEADS.value if not heads.partition("=")[2].isdigit()]:
        raise UserError(f"--heads={wrong[0]}: expected PART=N, for example --heads=encoders.image=16")
    heads = {part: int(count) for part, _, count in (heads.partition("=") for heads in HEADS.value)}
    target = Path(TARGET.value)
    if target.exists() and (TO.value in FILES or not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target={target}: exists and is not an empty directory; name a new one")
    import mmjax

    adapts = (Path(SOURCE.value) / "adapter_config.json").is_file()
    how = {"base": BASE.value if adapts else None, "pickle": PICKLE.value, "parts": parts, "heads": heads}
    model = mmjax.from_pretrained(SOURCE.value, **how)
    base = None
    if TO.value == "peft" and (base := BASE.value or mmjax.interop.base_of(model)) is None:
        raise UserError("--to=peft: the source names no single base model; give --base=DIR")
    if TO.value in WRITERS:
        export = getattr(mmjax.interop, WRITERS[TO.value])(model, target)
    else:
        export = mmjax.save_pretrained(model, target, base=base)
    print(f"{export.architecture}, {'an adapter of ' + str(base) if base else 'the whole model'}")
    for file in export.files:
        print(f"{file.stat().st_size:>16,} bytes  {file}")
    print(f"{sum(file.stat().st_size for file in export.files):>16,} bytes  in all")
    for what, names in (("not read", model.config.get("unread", ())), ("not written", export.left_out)):
        for name in names:
            print(f"{what}, since {export.architecture} has no place for it: {name}")


if __name__ == "__main__":
    command.run(main)
