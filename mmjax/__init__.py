"""mmjax: train, align, evaluate and run multimodal large language models in JAX.

The names below load on first use, so that a command can refuse a mistaken config before JAX is imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from mmjax.types.model import Model

# Public name -> the module that has it; None = the module of that name itself.
_PUBLIC = {
    "embed": "mmjax.decoding.embed",
    "generate": "mmjax.decoding.generate",
    "score": "mmjax.decoding.scoring",
    "train": "mmjax.training.run",
    "evaluate": "mmjax.evaluation.run",
    "save_pretrained": "mmjax.interop.pretrained",
    "interop": None,
    "types": None,
}

__all__ = ["embed", "evaluate", "from_pretrained", "generate", "interop", "save_pretrained", "score", "train", "types"]


def from_pretrained(
    source: str | Path,
    dtype: Any = None,
    mesh: Mesh | None = None,
    *,
    base: str | Path | None = None,
    pickle: bool = False,
    parts: Mapping[str, str] | None = None,
    heads: Mapping[str, int] | None = None,
) -> Model:
    """Loads a model.

    Args:
      source: a directory in Hugging Face layout, the id of one on the Hugging Face hub, a PEFT adapter, the workdir of a run,
        which gives the model after its last stage, a directory of LLaVA's authors, or a .pth file of LAVIS, BLIP-2's own code,
        or of MiniGPT-4.
      dtype: of the parameters; None keeps that of the files.
      mesh: how to shard them; None = the default device.
      base: what an adapter adapts; None = what its config names.
      pickle: read pickled weights (.bin), of which nothing but tensors is let through.
      parts, heads: where the parts are that a .pth file or a directory of LLaVA's authors lacks, and the numbers of attention
        heads, which such a file does not tell: see `from_file` of `mmjax.interop.lavis` and `mmjax.interop.minigpt4`, and
        `mmjax.interop.llava_original.from_directory`.

    Returns:
      The model, with its processor where the directory has tokenizers.

    Raises:
      UserError: neither kind of directory, an unsupported model, or weights that do not fit the config.
    """
    from mmjax.interop import hub, lavis, llava_original, minigpt4, pretrained
    from mmjax.types.files import is_workdir

    if Path(source).is_file():
        authors = minigpt4 if minigpt4.recognise(source) else lavis
        return authors.from_file(source, parts, dtype, mesh, heads=heads)
    if is_workdir(source):
        return importlib.import_module("mmjax.training.run").load_model(source, dtype=dtype, mesh=mesh)
    if base is None and llava_original.is_original(hub.local_directory(source, pickle=pickle)):
        return llava_original.from_directory(source, parts, dtype, mesh, pickle=pickle)
    return pretrained.from_pretrained(source, dtype=dtype, mesh=mesh, base=base, pickle=pickle)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmjax' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name] or f"mmjax.{name}")
    return getattr(module, name) if _PUBLIC[name] else module


def __dir__() -> list[str]:
    return sorted(__all__)
