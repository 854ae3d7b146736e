"""Converts: `python -m launch.convert --source=DIR --target=DIR [--to=hf]`.

The source is a run's workdir or a model in Hugging Face layout; the target is a new directory in Hugging Face layout.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import command
from mmjax.types.errors import UserError

SOURCE = flags.DEFINE_string("source", None, "directory of a run or of a saved model", required=True)
TARGET = flags.DEFINE_string("target", None, "directory to write, new or empty", required=True)
TO = flags.DEFINE_enum("to", "hf", ["hf"], "layout of the target")


def main() -> None:
    command.check_model("source", SOURCE.value)
    target = Path(TARGET.value)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--target={target}: exists and is not an empty directory; name a new one")
    import mmjax

    mmjax.save_pretrained(mmjax.from_pretrained(SOURCE.value), str(target))
    for file in sorted(path for path in target.rglob("*") if path.is_file()):
        print(f"{file.stat().st_size:>14,} bytes  {file}")


if __name__ == "__main__":
    command.run(main)
