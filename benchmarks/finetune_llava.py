"""Fine-tuning LLaVA beside `transformers`: the same weights, conversations and optimiser, side by side in one run.

    PYTHONPATH=. JAX_PLATFORMS=cpu python benchmarks/finetune_llava.py [--steps=20] [--layers=4] [--width=256] …

transformers pads each batch to its longest conversation, as the original code does; mmjax packs the same stream of
conversations into rows. A useful token is one that is not padding, image tokens included. Connector and language model are
trained, the image encoder is frozen. Steps alternate between the two; the ratio of each pair is what is reported: its median,
with the smallest and the largest. Before that, both train `--checked` steps on the same unpacked batches from the same weights,
and their losses must agree to 1e-3. Nothing may compile after the warm-up.

The conversations are random ids of the lengths of LLaVA-1.5's mix at a ninth: a picture takes 64 positions in place of 576,
answers and questions are shorter by as much. `SHARES` states the mix. `--media` is the number of media slots of a row, as
many as pictures alone would fill it by default. `--rows`, `--length` and `--chunk` were chosen for two cores: attention over
short rows and logits of few positions cost least there; `--chunk=512` computes those of every position, as transformers does.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

# Kind of conversation: share of the mix, pictures, shortest and longest text in tokens.
SHARES = {
    "several short questions about a picture": (0.57, 1, 8, 40),
    "instructions about a picture": (0.24, 1, 15, 60),
    "a region or a caption": (0.12, 1, 5, 12),
    "text alone": (0.06, 0, 25, 228),
    "several pictures": (0.01, 3, 15, 60),
}
IMAGE_ID, PAD_ID, FIRST_WORD = 3, 0, 4
PATCH, GRID = 14, 8


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Ids with GRID² placeholders a picture, which of them are learnt, and the pictures."""

    tokens: np.ndarray
    learnt: np.ndarray
    pictures: np.ndarray


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = dict(
        layers=4, width=256, heads=4, vocab=8192, vision_layers=4, vision_width=192, batch=16, rows=8, length=256, chunk=32
    )
    for name, default in {**sizes, "steps": 20, "checked": 20, "media": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of each")
    return parser.parse_args()


def conversations(vocab: int, seed: int) -> Iterator[Conversation]:
    """An endless stream of the mix."""
    numbers = np.random.default_rng(seed)
    shares = np.array([share for share, *_ in SHARES.values()])
    kinds = [limits for _, *limits in SHARES.values()]
    side = PATCH * GRID
    while True:
        pictures, shortest, longest = kinds[numbers.choice(len(kinds), p=shares / shares.sum())]
        text = numbers.integers(FIRST_WORD, vocab, numbers.integers(shortest, longest + 1), dtype=np.int32)
        tokens = np.concatenate([[1], np.full(pictures * GRID**2, IMAGE_ID), text]).astype(np.int32)
        learnt = np.zeros(len(tokens), bool)
        learnt[len(tokens) - len(text) + len(text) // 3 :] = True
        yield Conversation(tokens, learnt, numbers.integers(0, 256, (pictures, side, side, 3), np.uint8))


def write_model(options: argparse.Namespace, directory: str) -> Any:
    """Writes a random LLaVA in Hugging Face layout and gives it as transformers holds it."""
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    vision = transformers.CLIPVisionConfig(
        hidden_size=options.vision_width, intermediate_size=4 * options.vision_width, num_hidden_layers=options.vision_layers,
        num_attention_heads=options.heads, image_size=PATCH * GRID, patch_size=PATCH, projection_dim=64,
    )  # fmt: skip
    text = transformers.LlamaConfig(
        vocab_size=options.vocab, hidden_size=options.width, intermediate_size=11 * options.width // 4,
        num_hidden_layers=options.layers, num_attention_heads=options.heads, num_key_value_heads=options.heads,
        max_position_embeddings=4096, tie_word_embeddings=False, pad_token_id=PAD_ID, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE_ID, image_seq_length=GRID**2, vision_feature_layer=-2
    )
    model = transformers.LlavaForConditionalGeneration(config).float().train()
    model.save_pretrained(directory)
    model.model.vision_tower.requires_grad_(False)
    return model


class Theirs:
    """transformers: batches padded to their longest conversation."""

    def __init__(self, model: Any, learning_rate: float):
        import torch

        self.torch, self.model = torch, model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def step(self, batch: list[Conversation]) -> float:
        """One update; gives the loss."""
        torch, longest = self.torch, max(len(one.tokens) for one in batch)
        tokens = torch.full((len(batch), longest), PAD_ID)
        labels = torch.full((len(batch), longest), -100)
        for row, one in enumerate(batch):
            ids = torch.as_tensor(one.tokens).long()
            tokens[row, : len(ids)] = ids
            labels[row, : len(ids)] = torch.where(torch.as_tensor(one.learnt), ids, -100)
        mask = torch.as_tensor(np.arange(longest) < np.array([[len(one.tokens)] for one in batch])).long()
        output = self.model(input_ids=tokens, attention_mask=mask, labels=labels, pixel_values=self._pixels(batch))
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(output.loss.detach())

    def _pixels(self, batch: list[Conversation]) -> Any:
        from mmjax.encoders.vit import OPENAI_MEAN, OPENAI_STD

        pictures = np.concatenate([one.pictures for one in batch])
        normal = (pictures.astype(np.float32) / 255 - np.float32(OPENAI_MEAN)) / np.float32(OPENAI_STD)
        return self.torch.as_tensor(normal.transpose(0, 3, 1, 2)) if len(pictures) else None


class Ours:
    """mmjax, with rows of a fixed length into which conversations are packed, or with one conversation a row."""

    def __init__(self, directory: str, options: argparse.Namespace, rows: int, length: int, media: int):
        import mmjax
        from mmjax.data.batch import BatchShape
        from mmjax.data.config import DataConfig, SourceConfig, TokenizerConfig
        from mmjax.systems.objectives import make_objective
        from mmjax.training.assembly import assemble, fill, first_state
        from mmjax.training.stage import Experiment, ObjectiveConfig, OptimizerConfig, Stage
        from mmjax.training.step import make_train_step

        side, k = PATCH * GRID, GRID**2
        stage = Stage(
            name="finetune", steps=1_000_000, objective=ObjectiveConfig(name="language_modelling"),
            data=DataConfig(
                mixture={"random": SourceConfig(path="")}, rows=rows, length=length, media=media, soft_tokens=k, image_size=side
            ),
            optimizer=OptimizerConfig(
                learning_rate=options.learning_rate, schedule="constant", weight_decay=0.0, b2=0.999, clip_norm=0.0
            ),
            trainable=((r"encoders\..*", False), (".*", True)),
        )  # fmt: skip
        read = mmjax.from_pretrained(directory).config["parts"]
        parts = {name: {**part, "source": directory} for name, part in read.items()}
        experiment = Experiment(name="benchmark", parts=parts, tokenizers=TokenizerConfig(llm=""), stages={stage.name: stage})
        assembly = assemble(experiment, stage)
        objective = make_objective(stage.objective.name, {}, chunk=options.chunk)
        self.shape = BatchShape(
            rows=rows, length=length, media=media, queries=0, query_length=0, soft_tokens=k, image_size=side, pad_id=PAD_ID
        )
        self.compiled = make_train_step(
            assembly.definition, stage, objective, assembly.optimizer, assembly.state, assembly.frozen
        )
        self.frozen = fill(assembly, experiment, {}, list(assembly.frozen))
        self.state = first_state(assembly, experiment, {})

    def step(self, rows: list[list[Conversation]]) -> float:
        """One update; gives the loss."""
        from mmjax.data.batch import assemble

        batch = assemble([[_item(one) for one in row] for row in rows], self.shape)
        self.state, metrics = self.compiled(self.state, self.frozen, batch)
        return float(metrics["loss"])

    def pack(self, stream: Iterator[Conversation], window: int = 256) -> Iterator[list[list[Conversation]]]:
        """Batches of rows, each window of the stream planned at once as in training."""
        from mmjax.data.packing import plan_window

        rows: list[list[Conversation]] = []
        while True:
            taken = [next(stream) for _ in range(window)]
            sizes = np.array([(len(one.tokens), len(one.pictures)) for one in taken])
            planned, rejected = plan_window(sizes, (self.shape.length, self.shape.media), seed=0)
            assert not rejected
            rows += [[taken[index] for index in row] for row in planned]
            while len(rows) >= self.shape.rows:
                yield rows[: self.shape.rows]
                rows = rows[self.shape.rows :]


def _item(one: Conversation) -> Any:
    from mmjax.data.batch import Item
    from mmjax.data.processor import TokenisedSegment

    features = np.where(one.tokens == IMAGE_ID, np.cumsum(one.tokens == IMAGE_ID) - 1, -1).astype(np.int32)
    count = len(one.pictures)
    segment = TokenisedSegment(
        tokens=one.tokens, weights=one.learnt.astype(np.float32), source=np.zeros(0, np.int32), features=features,
        placeholders=count * GRID**2, media=tuple(range(count)), slots=(1,) * count, query=(), prompt="", answer=-1,
    )  # fmt: skip
    return Item("random", (segment,), {index: picture[None] for index, picture in enumerate(one.pictures)})


def check(options: argparse.Namespace, directory: str, model: Any) -> None:
    """Trains both on the same unpacked batches and compares their losses."""
    stream = conversations(options.vocab, seed=1)
    batches = [[next(stream) for _ in range(options.batch)] for _ in range(options.checked)]
    longest = max(len(one.tokens) for batch in batches for one in batch)
    ours, theirs = Ours(directory, options, options.batch, longest, media=3), Theirs(model, options.learning_rate)
    worst = 0.0
    print(f"{'step':>4} {'mmjax':>9} {'transformers':>13}   unpacked, the same batches")
    for number, batch in enumerate(batches, 1):
        pair = ours.step([[one] for one in batch]), theirs.step(batch)
        worst = max(worst, abs(pair[0] - pair[1]))
        print(f"{number:>4} {pair[0]:>9.5f} {pair[1]:>13.5f}")
    print(f"largest difference: {worst:.1e}")
    assert worst <= 1e-3, "the losses differ by more than 1e-3"


def race(options: argparse.Namespace, directory: str, model: Any) -> None:
    """Times both on the same stream of conversations, packed and padded."""
    ours = Ours(directory, options, options.rows, options.length, media=options.media or options.length // GRID**2)
    theirs = Theirs(model, options.learning_rate)
    packed, stream = ours.pack(conversations(options.vocab, seed=2)), conversations(options.vocab, seed=2)
    ours.step(next(packed))
    theirs.step([next(stream) for _ in range(options.batch)])
    compilations = ours.compiled._cache_size()

    speeds: list[tuple[float, float]] = []
    fills: list[tuple[float, float]] = []
    for _ in range(options.steps):
        rows, batch = next(packed), [next(stream) for _ in range(options.batch)]
        mine, tokens = _timed(ours.step, rows), sum(len(one.tokens) for row in rows for one in row)
        other, padded = _timed(theirs.step, batch), sum(len(one.tokens) for one in batch)
        speeds.append((tokens / mine, padded / other))
        longest = max(len(one.tokens) for one in batch)
        fills.append((tokens / (options.rows * options.length), padded / (options.batch * longest)))
    assert ours.compiled._cache_size() == compilations, "a step was compiled after the warm-up"

    ratios = [mine / other for mine, other in speeds]
    for which, name in enumerate(("mmjax, packed", "transformers, padded")):
        speed = statistics.median(pair[which] for pair in speeds)
        fill = statistics.mean(pair[which] for pair in fills)
        print(f"{name:>21}: {speed:>8,.0f} useful tokens/s, {fill:.1%} of the positions useful")
    print(f"                ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _timed(step: Any, batch: Any) -> float:
    started = time.perf_counter()
    step(batch)
    return time.perf_counter() - started


def main() -> None:
    options = arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(options, directory)
        check(options, directory, model)
        race(options, directory, model)


if __name__ == "__main__":
    main()
