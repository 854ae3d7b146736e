"""What stands beside the weights in a Hugging Face directory: tokenizers, pixel statistics, token ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from mmjax.data.encoder_processor import EncoderProcessor
from mmjax.data.media.image import ImageTransform
from mmjax.data.media.tiles import Tiling
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import load_tokenizer
from mmjax.interop import image_processors
from mmjax.interop.placeholders import placeholder_id, placeholder_key
from mmjax.systems.parts import encoders_only, learned_positions, part_config, reads_source, soft_tokens
from mmjax.types import UserError
from mmjax.types.files import replace_file

QUERY_LENGTH = 128  # longest question that InstructBLIP's Q-Former was trained on
QFORMER_TOKENIZER = "qformer_tokenizer"
CHAT_TEMPLATE = "chat_template.json"  # where processors of transformers 4 keep it
WHOLE = "processor_config.json"  # of tokenizer and image processor together
IMAGE_SETTINGS = ("preprocessor_config.json", "video_preprocessor_config.json", WHOLE)
PLACEHOLDERS = {"image_token_index": "<image>", "video_token_index": "<video>"}
PROCESSORS = {
    "Blip2ForConditionalGeneration": "Blip2Processor",
    "Blip2Model": "Blip2Processor",
    "Blip2ForImageTextRetrieval": "Blip2Processor",
    "Blip2VisionModelWithProjection": "Blip2Processor",
    "InstructBlipForConditionalGeneration": "InstructBlipProcessor",
    "InstructBlipModel": "InstructBlipProcessor",
    "InstructBlipVideoForConditionalGeneration": "InstructBlipVideoProcessor",
    "InstructBlipVideoModel": "InstructBlipVideoProcessor",
    "LlavaForConditionalGeneration": "LlavaProcessor",
    "LlavaNextForConditionalGeneration": "LlavaNextProcessor",
    "CLIPModel": "CLIPProcessor",
    "SiglipModel": "SiglipProcessor",
}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a directory in Hugging Face layout, or a run's workdir") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: expected a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Writes a JSON object, whole or not at all."""
    replace_file(path, json.dumps(value, indent=2, sort_keys=True) + "\n")
    return path


Parts = dict[str, dict[str, Any]]


def with_image_processor(
    parts: Parts, directory: Path, architecture: str, config: Mapping[str, Any]
) -> tuple[Parts, ImageTransform | Tiling | None]:
    """What a directory's image processor says.

    Returns:
      The parts with the mean and deviation of pixels, and how pictures get the encoder's size; without that file they are
      those of the class. None where the model has no image encoder.
    """
    vision = parts.get("encoders.image")
    if vision is None:
        return parts, None
    name, tower = image_processors.processor_of(architecture), part_config("encoders.image", vision)
    settings = _image_settings(directory)
    if not settings.keys() - {"processor_class"}:  # nothing about pictures
        transform = image_processors.default_transform(name, tower.image_size)
        settings = image_processors.write(name, transform, tower.mean, tower.std)
    transform, mean, std = image_processors.read(settings, architecture)
    parts = {**parts, "encoders.image": {**vision, "mean": mean, "std": std}}
    grids = config.get("image_grid_pinpoints")
    return parts, image_processors.read_tiling(settings, architecture, grids, tower.image_size, tower.grid) or transform


def _image_settings(directory: Path) -> dict[str, Any]:
    """The settings of a directory's image processor, which may stand inside those of the whole processor."""
    found = [file for name in IMAGE_SETTINGS if (file := directory / name).is_file()]
    settings = read_json(found[0]) if found else {}
    own = {} if found and found[0].name == WHOLE else settings
    return settings.get("image_processor", settings.get("video_processor", own))


def load(
    directory: Path, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], fit: ImageTransform | Tiling | None
) -> Processor | EncoderProcessor | None:
    """The processor of a directory; None where a language model has no tokenizer."""
    has_tokenizer = (directory / "tokenizer.json").is_file()
    tiling, transform = (fit, None) if isinstance(fit, Tiling) else (None, fit)
    if encoders_only(parts):
        return _encoder_processor(parts, transform, load_tokenizer(directory) if has_tokenizer else None)
    if not has_tokenizer:
        return None
    connector = parts.get("connectors.image", {})
    tokenizer = None
    if (directory / QFORMER_TOKENIZER).is_dir():
        tokenizer = load_tokenizer(directory / QFORMER_TOKENIZER)
    elif "llm" not in parts:  # the only text is the Q-Former's
        tokenizer = load_tokenizer(directory)
    reads = connector.get("vocab", 0) and tokenizer is not None
    llm = load_tokenizer(directory)
    if llm.chat_template is None and (directory / CHAT_TEMPLATE).is_file():
        llm.chat_template = read_json(directory / CHAT_TEMPLATE).get("chat_template")
    start = config.get("text_config", config).get("decoder_start_token_id", llm.pad_token_id)
    if reads_source(parts) and start != llm.pad_token_id:
        raise UserError(
            f"{directory}: decoder_start_token_id={start}; only the pad token, {llm.pad_token_id}, can begin a decoder's text"
        )
    last = max(llm.get_vocab().values(), default=0)
    if "llm" in parts and last >= (rows := parts["llm"]["vocab"]):
        raise UserError(
            f"the tokenizer in {directory} has ids up to {last}, the embedding table has {rows} rows (vocab_size in "
            "config.json): they are not of one model"
        )
    return Processor(
        llm,
        tokenizer,
        soft_tokens=soft_tokens(parts),
        image_size=parts["encoders.image"]["image_size"] if "encoders.image" in parts else 224,
        query_length=min(QUERY_LENGTH, connector["max_positions"], tokenizer.model_max_length) if reads else 0,
        truncate_query="left" if reads and "llm" in parts else "",  # as InstructBLIP cuts its questions; captions lose the end
        vocabulary=parts["llm"]["vocab"] if "llm" in parts else 0,
        encoder_decoder=reads_source(parts),
        transform=transform,
        other_ends=_end_tokens(directory, config),
        words=last + 1 if connector.get("family") == "linear" else 0,
        tiling=tiling,
        positions=learned_positions(parts),
    )


def _end_tokens(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tokens that end an answer by generation_config.json and by config.json; either may list several."""
    file = directory / "generation_config.json"
    ends: set[int] = set()
    for settings in (read_json(file) if file.is_file() else {}, config.get("text_config", config)):
        named = settings.get("eos_token_id")
        listed = named if isinstance(named, list) else [] if named is None else [named]
        if not all(isinstance(token, int) for token in listed):
            raise UserError(f"{directory}: eos_token_id={named!r}; a token id is expected, or a list of them")
        ends.update(listed)
    return tuple(sorted(ends))


def _encoder_processor(
    parts: Mapping[str, Mapping[str, Any]], transform: ImageTransform | None, tokenizer: PreTrainedTokenizerFast | None
) -> EncoderProcessor:
    image, text = parts.get("encoders.image"), parts.get("encoders.text")
    reads = {}
    if text is not None:
        config = part_config("encoders.text", text)
        reads = {"tokenizer": tokenizer, "max_length": config.max_length, "fill": config.pooling == "last"}
    return EncoderProcessor(transform, image["image_size"] if image else 0, **reads)


def with_token_ids(config: dict[str, Any], processor: Processor | EncoderProcessor | None) -> dict[str, Any]:
    """A config with the ids that the processor's tokenizer gives to BOS, EOS, padding and the image placeholder, and with
    the grids of its tiles."""
    if not isinstance(processor, Processor):
        return config
    ids = {f"{name}_token_id": getattr(processor.llm, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if processor.encoder_decoder:
        ids["decoder_start_token_id"] = processor.pad_id
    if "text_config" not in config:
        return {**config, **_unless_given(ids, config)}
    text = config["text_config"]
    config = {**config, "text_config": {**text, **_unless_given(ids, text)}}
    if "qformer_config" in config:
        config["qformer_config"] = {**config["qformer_config"], "pad_token_id": processor.query_pad_id}
    if processor.tiling is not None:
        config["image_grid_pinpoints"] = [list(grid) for grid in processor.tiling.grids]
    if placeholder_id(config) < 0:
        config[placeholder_key(config)] = _placeholder_id(config, processor)
    return config


def _unless_given(ids: Mapping[str, int | None], config: Mapping[str, Any]) -> dict[str, int | None]:
    """A config that was read may end its texts otherwise than its tokenizer: BLIP-2's OPT ends them with a line break."""
    return {name: token_id for name, token_id in ids.items() if config.get(name) is None}


def _placeholder_id(config: Mapping[str, Any], processor: Processor) -> int:
    placeholder = PLACEHOLDERS[placeholder_key(config)]
    if "vocab_size" in config["text_config"]:
        return with_placeholder(processor.llm, config["text_config"]["vocab_size"], placeholder).get_vocab()[placeholder]
    # Retrieval has no language model: its class cuts the placeholders off before anything looks them up.
    tokenizer = processor.connector or processor.llm
    return tokenizer.get_vocab().get(placeholder, len(tokenizer))


def _roles(tokenizer: PreTrainedTokenizerFast) -> dict[str, str | None]:
    return {name: getattr(tokenizer, f"{name}_token") for name in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")}


def spare_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Special tokens that have no role."""
    added, roles = json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"], _roles(tokenizer).values()
    return [token["content"] for token in added if token["special"] and token["content"] not in roles]


def with_placeholder(
    tokenizer: PreTrainedTokenizerFast, vocabulary: int, placeholder: str = PLACEHOLDERS["image_token_index"]
) -> PreTrainedTokenizerFast:
    """A tokenizer that has the placeholder of a medium, whose id must have a row in the language model's embedding.

    Args:
      tokenizer: returned as it is where it has one.
      vocabulary: rows of the embedding. Where one is free the placeholder gets it; else it takes the name of the last special
        token that has no role (SmolLM2 has many in reserve).
      placeholder: its name.

    Raises:
      UserError: there is no free row and no spare special token.
    """
    if placeholder in tokenizer.get_vocab():
        return tokenizer
    if len(tokenizer) < vocabulary:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens([AddedToken(placeholder, normalized=False, special=True)], special_tokens=True)
        return tokenizer
    spare = spare_tokens(tokenizer)
    if not spare:
        raise UserError(
            f"the tokenizer fills the vocabulary of {vocabulary} and has no spare special token, so that no id is left for "
            f"{placeholder}; use a language model with a larger vocabulary"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, old = state["model"]["vocab"], spare[-1]
    if old in vocab:
        vocab[placeholder] = vocab.pop(old)
    next(token for token in state["added_tokens"] if token["content"] == old)["content"] = placeholder
    renamed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        **{f"{name}_token": token for name, token in _roles(tokenizer).items() if token is not None},
    )
    renamed.chat_template = tokenizer.chat_template
    return renamed


def save(
    directory: Path,
    architecture: str,
    config: Mapping[str, Any],
    parts: Mapping[str, Any],
    processor: Processor | EncoderProcessor | None,
) -> list[Path]:
    """Writes tokenizers, image processor and generation config.

    Returns:
      The files written.
    """
    files = []
    if "encoders.image" in parts:
        files.append(write_json(directory / "preprocessor_config.json", _image_processor(architecture, parts, processor)))
    if whole := _whole_processor(architecture, config, parts):
        files.append(write_json(directory / WHOLE, {"processor_class": PROCESSORS[architecture], **whole}))
    if processor is None:
        return files
    if isinstance(processor, EncoderProcessor):
        return files + (_save_tokenizer(processor.tokenizer, directory) if processor.tokenizer is not None else [])
    text = config.get("text_config", config)
    if "llm" not in parts or "vocab_size" not in text:  # the only text is the Q-Former's
        return files + _save_tokenizer(_query_tokenizer(processor), directory)
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    ids = {name: text[name] for name in names if text.get(name) is not None}
    ends = processor.end_ids()
    if len(ends) > 1:
        ids["eos_token_id"] = list(ends)
    files.append(write_json(directory / "generation_config.json", ids))
    llm = processor.llm
    if "connectors.image" in parts:
        llm = with_placeholder(llm, text["vocab_size"], PLACEHOLDERS[placeholder_key(config)])
    if processor.encoder_decoder:
        files += _save_tokenizer(_adding(llm, None, llm.eos_token, padding_side="right"), directory)
    else:
        files += _save_tokenizer(_adding(llm, llm.bos_token, None, padding_side="left"), directory)
    if architecture.startswith("InstructBlip"):
        files += _save_tokenizer(_query_tokenizer(processor), directory / QFORMER_TOKENIZER)
    return files


def _whole_processor(architecture: str, config: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """What processor_config.json says of how many placeholders a picture has; a class that needs none has none."""
    if "num_query_tokens" in config and architecture in PROCESSORS:
        return {"num_query_tokens": config["num_query_tokens"]}
    if not architecture.startswith("Llava"):
        return {}
    return {
        "patch_size": parts["encoders.image"]["patch_size"],
        "num_additional_image_tokens": int(parts["encoders.image"]["class_token"]),
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "image_token": PLACEHOLDERS["image_token_index"],
    }


def _query_tokenizer(processor: Processor) -> PreTrainedTokenizerFast:
    tokenizer = processor.connector or processor.llm
    return _adding(tokenizer, tokenizer.cls_token, tokenizer.sep_token, model_max_length=processor.query_length or QUERY_LENGTH)


def _adding(
    tokenizer: PreTrainedTokenizerFast, first: str | None, last: str | None, **settings: Any
) -> PreTrainedTokenizerFast:
    """A copy that puts these special tokens around each text by itself, as our prompts have them."""
    tokenizer = copy.deepcopy(tokenizer)
    around = [token for token in (first, last) if token is not None]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=" ".join(piece for piece in (first, "$A", last) if piece),
        pair=" ".join(piece for piece in (first, "$A", "$B", last) if piece),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in around],
    )
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.init_kwargs |= settings  # of which alone transformers writes the side of the padding
    return tokenizer


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> list[Path]:
    return [path for file in tokenizer.save_pretrained(str(directory)) if (path := Path(file)).is_file()]


def _image_processor(
    architecture: str, parts: Mapping[str, Any], processor: Processor | EncoderProcessor | None
) -> dict[str, Any]:
    """preprocessor_config.json of the class of image processors that goes with a model's class."""
    name, vision = image_processors.processor_of(architecture), parts["encoders.image"]
    transform, tiling = (getattr(processor, how, None) for how in ("transform", "tiling"))
    if transform is None:  # what a processor without one does, or else what the class does
        size = vision["image_size"]
        stretches = isinstance(processor, Processor) and tiling is None
        transform = ImageTransform((size, size)) if stretches else image_processors.default_transform(name, size)
    settings = image_processors.write(name, transform, vision["mean"], vision["std"])
    if tiling is not None:
        settings |= {"image_grid_pinpoints": [list(grid) for grid in tiling.grids], "resample": tiling.resample}
    if PROCESSORS.get(architecture) == "InstructBlipVideoProcessor":
        settings["video_processor_type"] = image_processors.VIDEO
    return settings | ({"processor_class": PROCESSORS[architecture]} if architecture in PROCESSORS else {})
