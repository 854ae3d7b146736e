"""BLIP-2 at toy width, through all its stages: what `shapes.py` and `easy_vqa.py` share.

Four stages: the language model on the corpus text, then BLIP-2's two (contrast, matching and generation; captions through
soft prompts), then question answering, in which everything learns together: at this width a frozen language model is a cap,
not a floor. With `llm="smollm2"` the language model is real, comes with its weights and stays frozen.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

WIDTH = 96
QUERIES = 8
ROWS = 32  # pictures with their captions per step
VOCAB = 128  # rows of the word tables; the tokenizers trained on these data sets have fewer words
DEC_ID = 5  # id of [DEC] in the tokenizers that `data_pipelines.tokenizer` trains
SMOLLM2 = "data/smollm2"


def config(
    name: str,
    *,
    image_size: int,
    patch_size: int,
    questions: int,
    query_length: int,
    caption_length: int,
    steps: dict[str, int],
    question_rows: int = 32,
    images_per_row: int = 1,
    stage1: bool = True,
    llm: str = "opt",
    flip: bool = True,
    evaluations: dict[str, str],
    retrieval: str = "",
) -> ConfigDict:
    """The experiment on the data set `data/<name>`.

    Args:
      image_size, patch_size: in pixels.
      questions: question slots of a row.
      query_length: tokens of the longest question as the connector reads it.
      caption_length: tokens of the longest caption.
      steps: of each stage: "lm", "stage1", "stage2", "vqa". A stage with 0 steps is left out.
      question_rows: rows of questions per step; an eighth of them where the real language model reads along.
      images_per_row: images that a row of questions is packed from; 1 = one image a row, no packing.
      stage1: whether to pre-train the Q-Former.
      llm: "opt" (trained from scratch) or "smollm2" (real weights, frozen).
      flip: mirror images; not for data sets that ask about left and right.
      evaluations: name of each evaluation -> its split. They are run after "vqa", or, without it, after "stage2": then the
        frozen language model is asked what it was only ever asked in text.
      retrieval: split on which stage 1 is tried, by searching pictures by captions and captions by pictures; "" = none.
    """
    source = {"path": f"data/{name}", "builder": name, "split": "train"}
    frozen_llm = llm != "opt"

    def data(template: str, length: int, rows: int, **fields: Any) -> dict[str, Any]:
        return {
            "mixture": {name: {**source, "template": template}},
            "rows": rows if not frozen_llm or template == "caption_pair" else rows // 8,
            "length": length,
            "image_size": image_size,
            **fields,
        }

    def optimizer(stage: str, rate: float) -> dict[str, Any]:
        return {
            "learning_rate": rate,
            "warmup_steps": min(100, steps[stage] // 3),
            "weight_decay": 0.05,
            "b2": 0.98,
            "clip_norm": 1.0,
        }

    image = {"media": 1, "soft_tokens": QUERIES, "flip": flip}
    llm_rules = [[r"llm\..*", False]] if frozen_llm else []
    stages = {
        "lm": {
            "objective": {"name": "language_modelling"},
            "data": data("document", 8 + caption_length + 16 * questions, question_rows, media=0, pack=images_per_row > 1),
            "optimizer": optimizer("lm", 3e-3),
            "trainable": [[r"llm\..*", True], [".*", False]],
        },
        "stage1": {
            "objective": {"name": "blip2_stage1", "positives": "captions"},
            "data": data("caption_pair", 0, ROWS, queries=1, query_length=caption_length + 2, **image),
            "optimizer": optimizer("stage1", 1.5e-3),
            "evaluate": ["retrieval"] if retrieval else [],
            "trainable": [[r"(llm|connectors\.image\.projection)\..*", False], [".*", True]],
        },
        "stage2": {
            "objective": {"name": "language_modelling"},
            "data": data("caption", QUERIES + caption_length + 2, ROWS, **image),
            "optimizer": optimizer("stage2", 1e-3),
            "evaluate": [] if steps["vqa"] else list(evaluations),
            "trainable": [
                [r"llm\..*", False],
                [r"connectors\.image\..*(heads|text_mlp|text_end|word_embedding|position_embedding)\..*", False],
                [".*", True],
            ],
        },
        "vqa": {
            "objective": {"name": "language_modelling", "answer_prior": 0.001},
            "data": data(
                "question_answer",
                questions * (QUERIES + query_length + 1),
                question_rows,
                queries=questions,
                query_length=query_length,
                pack=images_per_row > 1,
                **{**image, "media": images_per_row},
            ),
            "optimizer": optimizer("vqa", 1e-3),
            "trainable": [*llm_rules, [r"connectors\.image\.heads\..*", False], [".*", True]],
            "evaluate_every": 0 if frozen_llm else 200,
            "evaluate": list(evaluations),
        },
    }
    asked = {
        "batch_size": 60 if frozen_llm else 200,
        "limit": 50 if frozen_llm else 0,
        "max_new_tokens": 4,
        "control": "swapped" if steps["vqa"] else "blank",
    }
    found = {"task": "retrieval", "limit": 200, "rerank": 16, "batch_size": 100}
    kept = {key: {"steps": steps[key], **stage} for key, stage in stages.items() if steps[key]}
    if not stage1:
        kept.pop("stage1", None)
    if frozen_llm:
        kept.pop("lm", None)
    return ConfigDict(
        {
            "name": f"blip2/{name}",
            "seed": 0,
            "parts": _parts(image_size, patch_size, llm),
            "tokenizers": {
                "llm": SMOLLM2 if frozen_llm else f"data/{name}/tokenizer",
                "connector": f"data/{name}/tokenizer" if frozen_llm else "",
            },
            "stages": kept,
            "evaluations": {
                **{
                    key: {"source": {**source, "split": split, "template": "question_answer"}, **asked}
                    for key, split in evaluations.items()
                },
                **(
                    {"retrieval": {"source": {**source, "split": retrieval, "template": "caption_pair"}, **found}}
                    if retrieval
                    else {}
                ),
            },
        }
    )


def _parts(image_size: int, patch_size: int, llm: str) -> dict[str, dict[str, Any]]:
    llms = {
        "opt": {
            "family": "opt", "vocab": VOCAB, "width": WIDTH, "layers": 2, "heads": 3, "ffn": 2 * WIDTH, "max_positions": 1024,
        },
        "smollm2": {
            "family": "llama", "source": SMOLLM2, "builder": "smollm2",
            "vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "ffn": 1536,
            "rope_base": 100000.0, "eps": 1e-5, "max_positions": 8192, "tied": True,
        },
    }  # fmt: skip
    return {
        "encoders": {"image": {
            "family": "vit", "width": WIDTH, "layers": 2, "heads": 3, "ffn": 3 * WIDTH,
            "patch_size": patch_size, "image_size": image_size,
        }},
        "connectors": {"image": {
            "family": "qformer", "width": WIDTH, "layers": 3, "heads": 3, "ffn": 2 * WIDTH, "queries": QUERIES,
            "encoder_width": WIDTH, "output_width": llms[llm]["width"], "frequency": 1, "vocab": VOCAB,
            "max_positions": 64, "dropout": 0.0, "stage1": True, "projection": 64, "decoder_start": DEC_ID,
            "soft_token_scale": 0.14 if llm == "smollm2" else 1.0,
        }},
        "llm": llms[llm],
    }  # fmt: skip
