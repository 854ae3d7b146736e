"""All data sets by name, and the one function that makes them: atomically, and only when they are not there yet."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines import local
from mmjax.types.config import suggest
from mmjax.types.errors import UserError

# Module of each data set, imported when asked for. Its table DATASETS has for each name a function that fills an empty
# directory: (out, *, raw, runner, limit, skips).
MODULES = {
    **{name: name for name in ("shapes", "easy_vqa", "smollm2", "textcaps", "nocaps", "vqav2", "okvqa", "aokvqa", "gqa")},
    **{name: name for name in ("ocr_vqa", "textvqa", "vizwiz", "scienceqa", "iconqa", "vsr", "pope", "hateful_memes")},
    "cc_sbu_align": "cc_sbu_align",
    **dict.fromkeys(("coco_caption", "flickr30k"), "coco_caption"),
    **dict.fromkeys(("visual_genome_caption", "visual_genome_qa"), "visual_genome"),
    **dict.fromkeys(("cc3m", "cc12m", "sbu", "laion400m", "web_capfilt", "laion_capfilt", "cc_sbu_capfilt"), "image_text"),
    **dict.fromkeys(("llava_conversation", "llava_detail", "llava_reasoning", "llava_instruct"), "llava"),
    **dict.fromkeys(("llava_pretrain", "llava_cc3m_595k", "llava_mix665k", "conversations"), "llava"),
}
BUILDERS = tuple(MODULES)
RUNNERS = {"local": local.run}
MANIFEST = "manifest.json"


def _choose(kind: str, name: str, table: dict[str, Any]) -> Any:
    if name not in table:
        raise UserError(f"--{kind}={name}: there is no such {kind}{suggest(name, table)}")
    return table[name]


def _files(folder: Path) -> dict[str, list]:
    """Size and SHA-256 of every file below a directory but its manifest."""
    facts = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).as_posix() != MANIFEST:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            facts[file.relative_to(folder).as_posix()] = [file.stat().st_size, digest]
    return facts


def _state(name: str, out: Path, limit: int) -> str:
    """Says whether `out` is "missing", "complete", or "stale": changed since it was made, or made with another limit.

    Raises:
      UserError: it holds something else, which is not ours to replace.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return "missing"
    try:
        manifest = json.loads((out / MANIFEST).read_text())
        made = manifest["dataset"], manifest["limit"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{out} exists and is no data set made by launch.prepare; remove it, or give another --out") from None
    if made[0] != name:
        raise UserError(f"{out} holds the data set {made[0]!r}, not {name!r}; give another --out")
    found = _files(out)
    same = all(found.get(file) == facts for file, facts in manifest["files"].items())
    return "complete" if same and made[1] == limit else "stale"


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Waits until no other process makes this directory."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f".{out.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prepare(
    name: str, out: str | Path, raw: str | Path | None = None, runner: str = "local", limit: int = 0, skips: int = 0
) -> bool:
    """Makes a data set, unless `out` already holds it complete and unchanged.

    It is made beside `out` and renamed at the end: an interrupted run leaves nothing that looks finished. A damaged one, or
    one with another limit, is made again. Several processes may ask for the same data set: one makes it, the others wait.

    Args:
      name: one of BUILDERS.
      out: directory to make.
      raw: directory of the raw release, for data sets whose release is not found by itself.
      runner: the shell that runs the steps.
      limit: the first `limit` items of each split only; 0 = all.
      skips: how many examples that cannot be used may be left out; `skipped.jsonl` in `out` lists them.

    Returns:
      Whether anything was made.

    Raises:
      UserError: an unknown name, a raw release or package that is missing or damaged, or an `out` that holds something else.
    """
    module, shell, out = _choose("dataset", name, MODULES), _choose("runner", runner, RUNNERS), Path(out)
    if raw is not None and not Path(raw).is_dir():
        raise UserError(f"--raw={raw} is not a directory")
    with _alone(out):
        state = _state(name, out, limit)
        if state == "complete":
            return False
        prefix = f".{out.name}.partial-"
        for left in out.parent.glob(prefix + "*"):  # of runs that were killed: we hold the lock
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=prefix, ignore_cleanup_errors=True) as work:
            made = Path(work) / "data"
            made.mkdir()
            fill = importlib.import_module(f"data_pipelines.{module}").DATASETS[name]
            fill(made, raw=Path(raw) if raw else None, runner=shell, limit=limit, skips=skips)
            (made / MANIFEST).write_text(json.dumps({"dataset": name, "limit": limit, "files": _files(made)}, indent=1))
            if out.exists():
                out.rename(Path(work) / "replaced")
            made.rename(out)
    return True
