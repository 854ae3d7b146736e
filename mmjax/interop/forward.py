"""What each Hugging Face class computes, by our modules: pure functions of a bound system and the class's own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmjax.interop.placeholders import placeholder_id
from mmjax.layers import stack
from mmjax.llms.opt import OPT
from mmjax.llms.t5 import T5, Encoded
from mmjax.objectives.contrastive import normalise
from mmjax.systems.multimodal import place
from mmjax.types import UserError

Inputs = Mapping[str, Any]
Outputs = dict[str, Array | tuple[Array, ...]]


def causal_lm(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """The decoder-only language models: input_ids, attention_mask, position_ids [b t] -> logits, last_hidden_state.

    With output_hidden_states also hidden_states: what each layer reads, and last_hidden_state.
    """
    return _decoder(system.llm, inputs, system.llm.embed(inputs["input_ids"]))


def seq2seq_lm(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """T5ForConditionalGeneration.

    Inputs: input_ids, attention_mask [b s], decoder_input_ids, decoder_attention_mask [b t].

    Returns:
      logits, last_hidden_state of the decoder, encoder_last_hidden_state; with output_hidden_states also encoder_hidden_states
      and decoder_hidden_states: what each layer reads, and the final norm's output.
    """
    return _encoder_decoder(system.llm, inputs, system.llm.embed(inputs["input_ids"]))


def encoder_only(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """T5EncoderModel: input_ids, attention_mask [b s] -> last_hidden_state, and hidden_states where they are asked for."""
    encoded, depths = _encode_source(system.llm, inputs, system.llm.embed(inputs["input_ids"]))
    return {"last_hidden_state": encoded.hidden, **_asked(inputs, hidden_states=depths)}


def blip2(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Blip2-, InstructBlip- and InstructBlipVideoForConditionalGeneration.

    Inputs: input_ids [b t], in which placeholders stand where the soft tokens go, attention_mask [b t], pixel_values
    [b 3 height width], of videos [b frames 3 height width], for InstructBLIP qformer_input_ids [b u],
    qformer_attention_mask [b u], and for an encoder–decoder decoder_input_ids, decoder_attention_mask [b t].

    Returns:
      The language model's outputs, image_embeds of the vision tower, one picture or frame after the other, and
      qformer_last_hidden_state of [queries ; question]. With output_hidden_states also what the class keeps inside
      vision_outputs, qformer_outputs and language_model_outputs: vision_hidden_states, qformer_hidden_states and
      language_hidden_states, or of an encoder–decoder encoder_hidden_states and decoder_hidden_states.
    """
    rows, pixels, connector = len(inputs["input_ids"]), inputs["pixel_values"], system.connectors["image"]
    vision = _vision(system.encoders["image"], {**inputs, "pixel_values": pixels.reshape(-1, *pixels.shape[-3:])})
    features: Any = vision["last_hidden_state"]
    frames, asked = len(features) // rows, {}
    if "qformer_input_ids" in inputs:
        question = inputs["qformer_input_ids"], _mask(inputs, "qformer_", inputs["qformer_input_ids"]) > 0
        tokens, mask = (jnp.repeat(array[:, None], frames, axis=1) for array in question)
        asked = {"tokens": tokens, "token_mask": mask}
    read = connector(features.reshape(rows, frames, *features.shape[1:]), **asked, depths=True)
    depths = tuple(each.reshape(-1, *each.shape[2:]) for each in read.depths)
    soft = connector.projection(read.queries)
    is_placeholder = inputs["input_ids"] == placeholder_id(config)
    index = jnp.where(is_placeholder, jnp.cumsum(is_placeholder, axis=1) - 1, -1)
    embeddings = place(soft.reshape(rows, -1, soft.shape[-1]), system.llm.embed(inputs["input_ids"]), index)
    outputs = (_encoder_decoder if hasattr(system.llm, "encode") else _decoder)(system.llm, inputs, embeddings)
    outputs |= {"image_embeds": features, "qformer_last_hidden_state": depths[-1]}
    if not inputs.get("output_hidden_states"):
        return outputs
    by_part = {"vision": vision["hidden_states"], "qformer": depths}
    by_part |= {"language": outputs.pop("hidden_states")} if "hidden_states" in outputs else {}
    return outputs | {f"{part}_hidden_states": hidden_states for part, hidden_states in by_part.items()}


def llava(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """LlavaForConditionalGeneration and LlavaNextForConditionalGeneration.

    Inputs: input_ids [b t], in which placeholders stand where the soft tokens go, attention_mask, position_ids [b t], and as
    `mmjax.interop.llava_inputs` makes them pixel_values [tiles 3 height width] of all rows and soft_index [placeholders].

    Returns:
      The language model's outputs, and where there are pictures image_hidden_states [placeholders d]: their soft tokens.
    """
    tokens = inputs["input_ids"]
    embeddings = system.llm.embed(tokens)
    if "pixel_values" not in inputs:
        return _decoder(system.llm, inputs, embeddings)
    features = system.encoders["image"](jnp.transpose(inputs["pixel_values"], (0, 2, 3, 1)))
    soft = system.connectors["image"].connect(features[None])[:, inputs["soft_index"]]
    is_placeholder = tokens == placeholder_id(config)
    # All rows are read as one, since their pictures are counted through.
    index = jnp.where(is_placeholder, jnp.cumsum(is_placeholder).reshape(tokens.shape) - 1, -1)
    placed = place(soft, embeddings.reshape(1, -1, embeddings.shape[-1]), index.reshape(1, -1))
    return _decoder(system.llm, inputs, placed.reshape(embeddings.shape)) | {"image_hidden_states": soft[0]}


def retrieval(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Blip2ForImageTextRetrieval.

    Inputs: input_ids [b t] and attention_mask [b t] of the Q-Former's text (behind num_query_tokens placeholders where the
    config has an image_token_index), pixel_values, use_image_text_matching_head.

    Returns:
      logits_per_image and logits_per_text: cosine similarities [images texts], or with the matching head scores
      [b 2]; text_embeds, image_embeds; with output_hidden_states what the class keeps inside vision_model_output:
      vision_hidden_states.
    """
    vision = _vision(system.encoders["image"], {**inputs, "interpolate_pos_encoding": False})
    depths = _asked(inputs, vision_hidden_states=vision.get("hidden_states"))
    return _retrieval(system, vision["last_hidden_state"], inputs, config) | depths


def _retrieval(system: Any, features: Float[Array, "b p e"], inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    qformer = system.connectors["image"]
    tokens, mask = inputs["input_ids"], _mask(inputs) > 0
    if config.get("image_token_index") is not None:
        tokens, mask = tokens[:, qformer.config.queries :], mask[:, qformer.config.queries :]
    if inputs.get("use_image_text_matching_head"):
        joint = qformer(features[:, None], None, tokens[:, None], mask[:, None])
        scores = qformer.heads.matching(joint.queries[:, 0]).mean(1)
        text = jnp.concatenate([joint.queries, joint.text], axis=2)[:, 0]
        return {"logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": text, "image_embeds": features}
    image = normalise(qformer.heads.image_projection(qformer(features[:, None]).queries[:, 0]))
    text = normalise(qformer.heads.text_projection(qformer(None, None, tokens[:, None], mask[:, None]).text[:, 0, 0]))
    scores = jnp.einsum("iqd,td->iqt", image, text).max(1)
    return {"logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": text, "image_embeds": image}


def blip2_vision(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Blip2VisionModelWithProjection: pixel_values -> image_embeds [b q d] of length one, and the vision tower's outputs."""
    vision, qformer = _vision(system.encoders["image"], inputs), system.connectors["image"]
    features: Any = vision["last_hidden_state"]
    queries = qformer(features[:, None]).queries[:, 0]
    return {"image_embeds": normalise(qformer.heads.image_projection(queries)), **vision}


def blip2_headless(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """InstructBlipModel and InstructBlipVideoModel: as `blip2`, without logits."""
    outputs = blip2(system, inputs, config)
    return {name: value for name, value in outputs.items() if name != "logits"}


def qformer(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Blip2QFormerModel, InstructBlipQFormerModel and InstructBlipVideoQFormerModel.

    Inputs: query_embeds [b q d] and the encoder_hidden_states [b p e] that they read, for InstructBLIP also, or only,
    input_ids [b u]; attention_mask [b q+u].

    Returns:
      last_hidden_state [b q+u d], its first position as pooler_output, and hidden_states where they are asked for.
    """
    given = {name: inputs[name][:, None] for name in ("query_embeds", "encoder_hidden_states", "input_ids") if name in inputs}
    queries, tokens = given.get("query_embeds"), given.get("input_ids")
    mask = None
    if tokens is not None:
        before = 0 if queries is None else queries.shape[2]
        mask = inputs["attention_mask"][:, None, before:] > 0 if "attention_mask" in inputs else jnp.ones(tokens.shape, bool)
    features = given.get("encoder_hidden_states") if queries is not None else None
    read = system.connectors["image"](features, None, tokens, mask, query_embeddings=queries, depths=True)
    depths = tuple(each[:, 0] for each in read.depths)
    outputs = {"last_hidden_state": depths[-1], "pooler_output": depths[-1][:, 0]}
    return outputs | _asked(inputs, hidden_states=depths)


def blip2_text(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Blip2TextModelWithProjection: input_ids, attention_mask [b t] -> text_embeds [b t e] of length one, last_hidden_state."""
    outputs = qformer(system, inputs, config)
    del outputs["pooler_output"]
    embeddings = system.connectors["image"].heads.text_projection(outputs["last_hidden_state"])
    return {"text_embeds": normalise(embeddings), **outputs}


def _mask(inputs: Inputs, prefix: str = "", tokens: Array | None = None) -> Int[Array, "b t"]:
    mask = inputs.get(f"{prefix}attention_mask")
    return jnp.ones_like(inputs["input_ids"] if tokens is None else tokens) if mask is None else mask


def _asked(inputs: Inputs, **hidden_states: Any) -> Outputs:
    """The hidden states, where they are asked for."""
    return hidden_states if inputs.get("output_hidden_states") else {}


def _logits(llm: Any, hidden: Float[Array, "b t d"]) -> Float[Array, "b t vocab"]:
    return llm.logits(hidden)[..., : llm.config.vocab]


def _decoder(llm: Any, inputs: Inputs, embeddings: Float[Array, "b t d"]) -> Outputs:
    with stack.record() as depths:
        hidden, _ = llm(embeddings, _positions(llm, inputs), (_mask(inputs) > 0).astype(jnp.int32))
    outputs = {"logits": _logits(llm, hidden), "last_hidden_state": hidden}
    return outputs | _asked(inputs, hidden_states=(*depths[0], hidden))


def _encoder_decoder(llm: T5, inputs: Inputs, embeddings: Float[Array, "b s d"]) -> Outputs:
    encoded, source_depths = _encode_source(llm, inputs, embeddings)
    text = inputs["decoder_input_ids"]
    with stack.record() as depths:
        written = (_mask(inputs, "decoder_", text) > 0).astype(jnp.int32)
        hidden, _ = llm(llm.embed(text), _slots(text), written, source=encoded)
    outputs = {"logits": _logits(llm, hidden), "last_hidden_state": hidden, "encoder_last_hidden_state": encoded.hidden}
    return outputs | _asked(inputs, encoder_hidden_states=source_depths, decoder_hidden_states=(*depths[0], hidden))


def _encode_source(llm: T5, inputs: Inputs, embeddings: Float[Array, "b s d"]) -> tuple[Encoded, tuple[Array, ...]]:
    """The source as the decoder sees it, and at every depth."""
    with stack.record() as depths:
        encoded = llm.encode(embeddings, _slots(inputs["input_ids"]), (_mask(inputs) > 0).astype(jnp.int32))
    return encoded, (*depths[0], encoded.hidden)


def _positions(llm: Any, inputs: Inputs) -> Int[Array, "b t"]:
    """As the class numbers them when it is not told: OPT counts what the mask lets through, the others count padding too."""
    if inputs.get("position_ids") is not None:
        return jnp.broadcast_to(inputs["position_ids"], inputs["input_ids"].shape)
    if isinstance(llm, OPT):
        length, most = inputs["input_ids"].shape[1], llm.config.max_positions
        if length > most:
            raise UserError(f"input_ids: expected {most} tokens at most, the positions of this OPT, got {length}")
        return jnp.maximum(jnp.cumsum(_mask(inputs), axis=1) - 1, 0)
    return _slots(inputs["input_ids"])


def _slots(tokens: Int[Array, "b t"]) -> Int[Array, "b t"]:
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def vision_tower(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """ViTModel, CLIPVisionModel and SiglipVisionModel: pixel_values [b 3 height width] -> last_hidden_state, pooler_output.

    With output_hidden_states also hidden_states: what each layer reads, and the last one's output; with
    interpolate_pos_encoding pictures of any size.
    """
    tower = system.encoders["image"]
    outputs = _vision(tower, inputs)
    if tower.config.pooling == "mean" or (tower.config.pooling == "class" and not tower.config.norm_pooled):
        return outputs  # a class without pooler
    return outputs | {"pooler_output": tower.pool(outputs["last_hidden_state"])}


def eva_tower(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """Blip2VisionModel, which normalises what it pools a second time."""
    tower = system.encoders["image"]
    outputs = _vision(tower, inputs)
    return outputs | {"pooler_output": tower.norm(tower.pool(outputs["last_hidden_state"]))}


def vision_projection(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """CLIPVisionModelWithProjection: as `vision_tower`, with image_embeds in place of the pooled output."""
    tower = system.encoders["image"]
    outputs = _vision(tower, inputs)
    return outputs | {"image_embeds": tower.projection(tower.pool(outputs["last_hidden_state"]))}


def classifier(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """ViTForImageClassification: pixel_values -> logits [b classes], and hidden_states where they are asked for."""
    tower = system.encoders["image"]
    outputs = _vision(tower, inputs)
    return {"logits": tower.classifier(tower.pool(outputs.pop("last_hidden_state"))), **outputs}


def text_tower(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """BertModel, RobertaModel, CLIPTextModel and SiglipTextModel.

    Inputs: input_ids, attention_mask, token_type_ids, position_ids [b t], output_hidden_states.

    Returns:
      last_hidden_state, pooler_output, and hidden_states where they are asked for, as of `vision_tower`.
    """
    tower = system.encoders["text"]
    outputs = _text(tower, inputs)
    if tower.config.pooling == "first":
        return outputs  # a class without pooler
    pooled = tower.pool(outputs["last_hidden_state"], inputs["input_ids"])
    return outputs | {"pooler_output": pooled if tower.projection is None else tower.projection(pooled)}


def text_projection(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """CLIPTextModelWithProjection: as `text_tower`, with text_embeds in place of the pooled output."""
    outputs = text_tower(system, inputs, config)
    return outputs | {"text_embeds": outputs.pop("pooler_output")}


def dual_encoder(system: Any, inputs: Inputs, config: Mapping[str, Any]) -> Outputs:
    """CLIPModel and SiglipModel: pixel_values, input_ids, attention_mask, position_ids.

    Returns:
      image_embeds and text_embeds of length one, and their logits_per_image [images texts] and logits_per_text.
    """
    inputs, tower = {**inputs, "output_hidden_states": False}, system.encoders["image"]
    images = tower.pool(_vision(tower, inputs)["last_hidden_state"])
    images = normalise(images if tower.projection is None else tower.projection(images))
    texts = normalise(text_tower(system, inputs, config)["pooler_output"])
    logits = system.similarity(images, texts)
    return {"logits_per_image": logits, "logits_per_text": logits.T, "image_embeds": images, "text_embeds": texts}


def _vision(tower: Any, inputs: Inputs) -> Outputs:
    pixels = jnp.transpose(inputs["pixel_values"], (0, 2, 3, 1))
    return _features(tower, inputs, pixels, bool(inputs.get("interpolate_pos_encoding")))


def _text(tower: Any, inputs: Inputs) -> Outputs:
    tokens, mask = inputs["input_ids"], inputs.get("attention_mask")
    given = [inputs.get(name) for name in ("token_type_ids", "position_ids")]
    types, positions = (None if ids is None else jnp.broadcast_to(ids, tokens.shape) for ids in given)
    return _features(tower, inputs, tokens, None if mask is None else mask > 0, types, positions)


def _features(tower: Any, inputs: Inputs, *arguments: Any) -> Outputs:
    """The features of an encoder, and where they are asked for what stood before its first block and behind each."""
    if not inputs.get("output_hidden_states"):
        return {"last_hidden_state": tower.finish(tower.encode(*arguments))}
    with stack.record() as read:
        last = tower.encode(*arguments)
    return {"last_hidden_state": tower.finish(last), "hidden_states": (*read[0], last)}
