"""What the authors of BLIP-2, InstructBLIP and MiniGPT-4 asked their models, and how they decoded the answers.

One table: system -> task -> template and options. `generate(…, task="vqa")` looks the model up in it, and a config may take an
evaluation's template and decoding from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.templates import remembers
from mmjax.systems.parts import reads_source
from mmjax.types import UserError
from mmjax.types.model import Model


@dataclasses.dataclass(frozen=True)
class Published:
    """How a task was put to a system.

    Args:
      template: an entry of `mmjax.data.templates.TEMPLATES`.
      options: of `DecodingOptions`.
    """

    template: str
    options: Mapping[str, Any]


# arXiv 2301.12597, appendix: five beams, and a length penalty of −1 for short answers.
_CAPTION = {"num_beams": 5, "max_new_tokens": 30, "min_new_tokens": 8}
_ANSWER = {"num_beams": 5, "max_new_tokens": 10, "min_new_tokens": 1, "length_penalty": -1.0}
# arXiv 2305.06500, appendix; LAVIS's InstructBLIP decodes all its answers with this penalty.
_REPEATED = {"repetition_penalty": 1.5}
# MiniGPT-4's demo as it stands and as it was released first, and its evaluation by batches.
_CHAT = {"max_new_tokens": 300, "do_sample": True, "top_p": 0.9, "repetition_penalty": 1.05}
_FIRST = {"max_new_tokens": 300, "num_beams": 5}
_BRIEF = {"max_new_tokens": 20}

PUBLISHED: dict[str, dict[str, Published]] = {
    # LAVIS counts [DEC], with which the text begins, among its 10 to 30 tokens.
    "blip2_stage1": {"caption": Published("caption", {"num_beams": 3, "max_new_tokens": 29, "min_new_tokens": 9})},
    "blip2_opt": {"caption": Published("caption_photo", _CAPTION), "vqa": Published("question_answer", _ANSWER)},
    "blip2_t5": {"caption": Published("caption_photo", _CAPTION), "vqa": Published("vqa_5", _ANSWER)},
    "instructblip": {
        "caption": Published("caption_short", {"num_beams": 5, "max_new_tokens": 80, "min_new_tokens": 10, **_REPEATED}),
        "vqa": Published("vqa_5", _ANSWER | _REPEATED),
        "dialogue": Published("dialogue", _ANSWER | _REPEATED),
    },
    "minigpt4": {
        "caption": Published("minigpt4_chat", _CHAT),
        "vqa": Published("minigpt4_chat", _BRIEF),
        "chat": Published("minigpt4_chat", _CHAT),
        "first_chat": Published("minigpt4_first_chat", _FIRST),
    },
    "minigpt4_llama_2": {
        "caption": Published("minigpt4_llama_2_chat", _CHAT),
        "vqa": Published("minigpt4_llama_2_chat", _BRIEF),
        "chat": Published("minigpt4_llama_2_chat", _CHAT),
    },
}


# By which words in a model's name LLaVA's own commands choose the style of its conversations, first that applies.
LLAVA_STYLES = {
    "llama-2": "llava_llama_2",
    "mistral": "mistral_instruct",
    "v1.6-34b": "chatml_direct",
    "v1": "llava_v1",
    "mpt": "llava_mpt",
    "": "llava_v0",
}


def conversation_template(model: Model) -> str | None:
    """How conversations are put to a model: as it was trained, by its tokenizer's chat template, or as a LLaVA's name tells.

    Returns:
      "chat" or an entry of `mmjax.data.templates.TEMPLATES`; None for a model of single questions.
    """
    if remembers(trained := model.config.get("template")):
        return trained
    if getattr(getattr(model.processor, "llm", None), "chat_template", None):
        return "chat"
    if model.config["parts"].get("connectors.image", {}).get("family") != "linear":
        return None
    name = Path(str(model.config.get("source", ""))).name.lower()
    return next(style for word, style in LLAVA_STYLES.items() if word in name)


def published(parts: Mapping[str, Mapping[str, Any]], task: str) -> Published:
    """How a task was put to the system that has these parts.

    Args:
      parts: of a model's config.
      task: "caption", "vqa", "dialogue", "chat" or "first_chat".

    Raises:
      UserError: that system was not published with this task.
    """
    system = system_of(parts)
    if task not in (tasks := PUBLISHED.get(system, {})):
        what = f"{system} with {', '.join(tasks)}" if tasks else "this system with none"
        raise UserError(f"task={task!r} has no published prompt: there is {what}; give a template and decoding options instead")
    return tasks[task]


def system_of(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Which published system has such parts; "" for none."""
    connector, llm = parts.get("connectors.image", {}), parts.get("llm")
    if connector.get("family") == "linear" and connector.get("merge", 1) > 1:
        return "minigpt4_llama_2"
    if connector.get("family") != "qformer":
        return ""
    if llm is None:
        return "blip2_stage1"
    if connector.get("vocab") and llm["family"] != "opt":  # with OPT the Q-Former reads BLIP-2's own fine-tuning questions
        return "instructblip"
    if llm["family"] == "llama":
        return "minigpt4"
    return "blip2_t5" if reads_source(parts) else "blip2_opt"
