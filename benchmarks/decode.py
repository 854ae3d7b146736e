"""Decoding speed beside `transformers`: the same random LLaMA, the same prompts, the same number of threads, side by side.

    PYTHONPATH=. python benchmarks/decode.py [--layers=8] [--width=512] [--rows=4] [--prompt=128] [--answer=64] [--repeats=5]

Prefill and decode are timed apart: an answer of one token costs the prefill, and what a longer one takes beyond that is
decoding. Both run in float32 and greedily, without an end token; repetitions alternate between the two, and the ratio of each
pair is what is reported: its median, with the smallest and the largest. Nothing may compile after the warm-up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = dict(layers=8, width=512, heads=8, kv_heads=4, ffn=1408, vocab=32000, rows=4, prompt=128, answer=64, repeats=5)
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each")
    parser.add_argument("--dtype", default="float32", help="of weights and arithmetic")
    return parser.parse_args()


def limit_threads(count: int) -> None:
    """Holds both frameworks to the same cores; before either is imported."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))


def write_model(options: argparse.Namespace, directory: str) -> Any:
    """Writes a random LLaMA in Hugging Face layout and gives it as transformers holds it."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    config = transformers.LlamaConfig(
        vocab_size=options.vocab, hidden_size=options.width, num_hidden_layers=options.layers, intermediate_size=options.ffn,
        num_attention_heads=options.heads, num_key_value_heads=options.kv_heads, tie_word_embeddings=False,
        max_position_embeddings=max(2048, options.prompt + options.answer), bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, options.dtype)).eval()
    model.save_pretrained(directory)
    return model.to("cuda") if torch.cuda.is_available() else model


def theirs(model: Any, prompts: Any) -> Callable[[int], list[list[int]]]:
    """A function tokens -> answers of transformers."""
    import torch

    ids = torch.as_tensor(prompts, dtype=torch.long, device=model.device)

    def run(tokens: int) -> list[list[int]]:
        with torch.inference_mode():
            mask = torch.ones_like(ids)
            output = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return output[:, ids.shape[1] :].tolist()

    return run


def ours(directory: str, prompts: Any) -> tuple[Callable[[int], list[list[int]]], Any]:
    """The same of mmjax, and its Searcher, which counts compilations."""
    import jax
    import numpy as np

    import mmjax
    from mmjax.decoding.generate import searcher_of
    from mmjax.decoding.options import DecodingOptions
    from mmjax.types import Batch, Text

    model = mmjax.from_pretrained(directory)
    searcher = searcher_of(model)
    nothing, ones = np.zeros_like(prompts), np.ones_like(prompts)
    positions = np.broadcast_to(np.arange(prompts.shape[1], dtype=np.int32), prompts.shape).copy()
    batch = Batch(text=Text(prompts, nothing, nothing.astype(np.float32), positions, ones))
    parameters = jax.device_put(model.parameters)

    def run(tokens: int) -> list[list[int]]:
        return searcher.run(parameters, batch, DecodingOptions(max_new_tokens=tokens)).tokens.tolist()

    return run, searcher


def timed(run: Callable[[int], Any], tokens: int) -> float:
    start = time.perf_counter()
    run(tokens)
    return time.perf_counter() - start


def report(name: str, tokens: int, seconds: dict[str, list[float]]) -> None:
    """One line: tokens per second of both, and the ratio of the pairs."""
    speeds = {who: tokens / statistics.median(times) for who, times in seconds.items()}
    ratios = sorted(t / o for t, o in zip(seconds["transformers"], seconds["mmjax"], strict=True))
    print(
        f"{name:8} mmjax {speeds['mmjax']:9.1f} tokens/s   transformers {speeds['transformers']:9.1f} tokens/s   "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    options = arguments()
    limit_threads(options.threads)
    import numpy as np

    prompts = np.random.default_rng(0).integers(0, options.vocab, (options.rows, options.prompt)).astype(np.int32)
    with tempfile.TemporaryDirectory() as directory:
        reference = write_model(options, directory)
        mine, searcher = ours(directory, prompts)
    runs = {"mmjax": mine, "transformers": theirs(reference, prompts)}

    answers = {who: run(options.answer) for who, run in runs.items()}  # the warm-up
    same = np.mean(np.array(answers["mmjax"]) == np.array(answers["transformers"]))
    for run in runs.values():
        run(1)
    compiled = searcher.compilations
    prefill: dict[str, list[float]] = {who: [] for who in runs}
    decode: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(options.repeats):
        for who, run in runs.items():
            prefill[who].append(timed(run, 1))
            decode[who].append(timed(run, options.answer) - prefill[who][-1])
    assert searcher.compilations == compiled, "something compiled after the warm-up"

    print(f"{options.layers} layers x {options.width}, vocabulary {options.vocab}, {options.rows} rows, {options.dtype}, "
          f"{options.threads} threads; same tokens: {same:.1%}")  # fmt: skip
    report("prefill", options.rows * options.prompt, prefill)
    report("decode", options.rows * (options.answer - 1), decode)


if __name__ == "__main__":
    main()
