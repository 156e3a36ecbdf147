"""GGUF files as they are on disk: read back with the `gguf` package."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.models.load import as_loaded, load
from sentei.plan import BlockShape, ModelShape
from sentei.ship.base import Options
from sentei.ship.gguf import QUANTISER, ROUTE
from sentei.ship.gguf_layout import lay_out, misfit
from ship.byte_level import TEMPLATE, WORDS, byte_tokenizer, cut_model, whole_model
from tiny import tiny_model, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def written(loaded: Any, path: Path, dtype: str = "F32") -> tuple[dict[str, Any], dict[str, np.ndarray], Any]:
    """The facts, the tensors (dequantised, in torch's order) and the reader."""
    assert ROUTE.refuse(loaded) is None
    facts = ROUTE.write(loaded, path, Options(dtype))
    reader = gguf.GGUFReader(path)
    shapes = {t.name: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(shapes[t.name]) for t in reader.tensors}
    return facts, values, reader


def said(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


blocks = st.lists(
    st.builds(
        BlockShape,
        kv_groups=st.integers(0, 3),
        heads_per_group=st.integers(1, 2),
        ffn=st.integers(0, 600),
    ),
    min_size=1,
    max_size=6,
).map(lambda found: (BlockShape(kv_groups=1, heads_per_group=1, ffn=8), *found))


@given(blocks, st.sampled_from(["llama", "qwen2", "qwen3"]), st.sampled_from([1, 32, 256]))
def test_layout_is_legal_and_loses_nothing(found, name, multiple):
    family = FAMILIES[name]
    shape = ModelShape(hidden=48, head_dim=8, vocab=264, tied=True, qk_norm=family.qk_norm, blocks=found)
    layout = lay_out(family, shape, multiple)
    assert misfit(family, shape) is None
    assert [b.index for b in layout.blocks] == [i for i, b in enumerate(found) if b.kv_groups or b.ffn]
    for block in layout.blocks:
        wanted = found[block.index]
        assert wanted.ffn <= block.ffn < wanted.ffn + max(multiple, 32) + multiple and block.ffn % multiple == 0
        assert block.ffn > 0, "a block without an FFN loses its attention in deci"
        if wanted.kv_groups or name != "qwen3":
            assert (block.groups, block.heads) == (wanted.kv_groups, wanted.kv_groups * wanted.heads_per_group)
    sizes = {(b.heads, b.groups, b.ffn) for b in layout.blocks}
    assert layout.arch in ({"llama", "deci"} if name != "qwen3" else {"qwen3", "openelm"})
    assert len(sizes) == 1 or layout.arch in ("deci", "openelm")


def test_sizes_per_block_and_what_was_removed(tmp_path):
    loaded = cut_model("llama", 0)  # FFN gone in 0, attention gone in 2
    shape = family_of(loaded.model.config).shape(loaded.model.config)
    facts, values, reader = written(loaded, tmp_path / "m.gguf")
    assert facts["arch"] == said(reader, "general.architecture") == "deci"
    heads = [b.kv_groups * b.heads_per_group for b in shape.blocks]
    assert said(reader, "deci.attention.head_count") == heads and heads[2] == 0
    assert said(reader, "deci.attention.head_count_kv") == [b.kv_groups for b in shape.blocks]
    assert said(reader, "deci.feed_forward_length") == [b.ffn or 32 for b in shape.blocks] and not shape.blocks[0].ffn
    assert said(reader, "deci.attention.key_length") == said(reader, "deci.rope.dimension_count") == shape.head_dim
    assert not any(name.startswith("blk.2.attn") for name in values)
    assert not values["blk.0.ffn_down.weight"].any() and not values["blk.0.ffn_gate.weight"].any()
    assert facts["padding_bytes"] == 4 * (3 * 32 * shape.hidden + shape.hidden)
    layer = loaded.model.model.layers[3]
    np.testing.assert_array_equal(values["blk.3.ffn_up.weight"], layer.mlp.up_proj.weight.detach())
    np.testing.assert_array_equal(values["blk.3.attn_v.weight"], layer.self_attn.v_proj.weight.detach())
    turned = values["blk.3.attn_q.weight"].reshape(heads[3], 4, 2, -1)  # neighbours are (i, i + 4)
    plain = layer.self_attn.q_proj.weight.detach().numpy().reshape(heads[3], 2, 4, -1)
    np.testing.assert_array_equal(turned, plain.swapaxes(1, 2))


def test_equal_blocks_are_plain_llama_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("SENTEI_CACHE", str(tmp_path / "cache"))
    loaded = whole_model("llama")
    facts, _, reader = written(loaded, tmp_path / "m.gguf")
    assert (facts["arch"], facts["padding_bytes"], facts["notes"]) == ("llama", 0, [])
    assert said(reader, "llama.feed_forward_length") == loaded.model.config.intermediate_size
    again = load(tmp_path / "m.gguf", dtype="float32")
    assert again.digest == loaded.digest
    assert again.tokenizer("ab <s>c").input_ids == loaded.tokenizer("ab <s>c").input_ids
    assert again.tokenizer.chat_template == TEMPLATE


def test_qwen3_is_openelm_with_fused_rows_and_zero_heads(tmp_path):
    loaded = cut_model("qwen3", 1, tie_word_embeddings=True)  # attention gone in 1, FFN gone in 2
    facts, values, _ = written(loaded, tmp_path / "m.gguf")
    assert facts["arch"] == "openelm" and "output.weight" not in values
    part = loaded.model.model.layers[0].self_attn
    fused = torch.cat([part.q_proj.weight, part.k_proj.weight, part.v_proj.weight]).detach()
    np.testing.assert_array_equal(values["blk.0.attn_qkv.weight"], fused)
    assert values["blk.1.attn_qkv.weight"].shape == (24, 48) and not values["blk.1.attn_qkv.weight"].any()
    assert not values["blk.1.attn_output.weight"].any() and not values["blk.2.ffn_down.weight"].any()
    assert facts["padding_bytes"] == 4 * (32 * 48 + 48 + 16 + 3 * 32 * 48 + 48)


ERRORS = {
    "F16": 2.0**-11,
    "BF16": 2.0**-8,
    "Q8_0": 1 / 127,
    "Q5_1": 1 / 30,
    "Q5_0": 1 / 15,
    "Q4_1": 1 / 14,
    "Q4_0": 1 / 7,
}


@pytest.mark.parametrize(("dtype", "error"), ERRORS.items())
def test_rounding(tmp_path, dtype, error):
    loaded = cut_model("llama", 0, skip=0.0, hidden_size=96, head_dim=16)
    _, exact, _ = written(loaded, tmp_path / "exact.gguf")
    facts, values, reader = written(loaded, tmp_path / "m.gguf", dtype)
    assert facts["dtype"] == dtype
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down.weight"] == dtype
    for name, value in exact.items():
        got = values[name][tuple(slice(n) for n in value.shape)]
        scale = np.abs(value).max(-1, keepdims=True) if dtype[0] == "Q" else np.abs(value)
        assert (np.abs(got - value) <= error * scale + 1e-7).all(), name
    width = said(reader, "deci.feed_forward_length")
    if dtype[0] == "Q":
        assert all(w % 32 == 0 for w in width) and facts["padding_bytes"] > 0
        assert not values["blk.1.ffn_up.weight"][loaded.model.model.layers[1].mlp.up_proj.out_features :].any()
    else:
        assert facts["padding_bytes"] == 0


def test_rows_that_do_not_fill_blocks_are_f16_and_said(tmp_path):
    facts, _, reader = written(whole_model("llama"), tmp_path / "m.gguf", "Q8_0")  # 48 columns
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["token_embd.weight"] == "F16" and kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert "token_embd" in facts["notes"][0] and "F16" in facts["notes"][0]


def test_values_beyond_f16(tmp_path):
    loaded = whole_model("llama")
    loaded.model.model.layers[1].mlp.up_proj.weight.data[0, 0] = 7e4
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight.*BF16 or F32"):
        ROUTE.write(loaded, tmp_path / "m.gguf", Options("F16"))


def test_a_window_limits_the_context(tmp_path):
    facts, _, reader = written(whole_model("mistral-window"), tmp_path / "m.gguf")
    assert said(reader, "llama.context_length") == 5 and "5 tokens" in facts["notes"][0]
    facts, _, reader = written(whole_model("mistral"), tmp_path / "n.gguf")
    assert said(reader, "llama.context_length") == 256 and not facts["notes"]


def test_vocabulary_special_tokens_and_template(tmp_path):
    _, _, reader = written(whole_model("llama"), tmp_path / "m.gguf")
    tokens, types = said(reader, "tokenizer.ggml.tokens"), said(reader, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == WORDS and tokens[259:261] == ["ab", "[PAD260]"]
    assert types[:4] == [3, 3, 3, 1] and types[260] == 5  # control, normal, unused
    assert said(reader, "tokenizer.ggml.bos_token_id") == 1 and said(reader, "tokenizer.ggml.eos_token_id") == 2
    assert said(reader, "tokenizer.ggml.add_bos_token") is False
    assert said(reader, "tokenizer.chat_template") == TEMPLATE


def test_refusals_say_why_and_what_instead():
    def reason(loaded: Any) -> str:
        found = ROUTE.refuse(loaded)
        assert found is not None and "\n" not in found
        return found

    assert "dense-fold" in reason(cut_model("qwen3", 0)) and "uniform" in reason(cut_model("qwen3", 0))
    assert "biases" in reason(whole_model("qwen3-biases"))
    assert "biases" in reason(cut_model("qwen3", 0, bias=True, tie_word_embeddings=True))
    assert "'dynamic'" in reason(_turned("llama", "dynamic"))
    assert "'llama3'" in reason(_turned("qwen3", "llama3", low_freq_factor=1.0, high_freq_factor=4.0))
    assert "attention_factor" in reason(_turned("llama", "yarn", attention_factor=1.2))
    assert "gelu" in reason(whole_model("llama", hidden_act="gelu"))
    assert "WordLevel" in reason(as_loaded(tiny_model("llama"), tiny_tokenizer()))
    assert "tokenizer" in reason(as_loaded(tiny_model("llama")))
    assert "100 embeddings" in reason(as_loaded(tiny_model("llama", vocab_size=100), byte_tokenizer()))


def _turned(variant: str, kind: str, **more: Any) -> Any:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128, **more}
    return whole_model(variant, rope_parameters=rope)


def test_low_rank_is_refused_by_name():
    block = BlockShape(kv_groups=1, heads_per_group=1, ffn=8, ranks={"up_proj": 3})
    reason = misfit(FAMILIES["llama"], ModelShape(hidden=48, head_dim=8, vocab=9, tied=True, blocks=(block,)))
    assert reason is not None and "up_proj" in reason and "dense-fold" in reason


def test_k_quants_need_the_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=f"{QUANTISER}, which is not on PATH.*Q8_0"):
        ROUTE.write(whole_model("llama"), tmp_path / "m.gguf", Options("Q4_K_M"))
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_k_quants_by_the_tool(tmp_path, monkeypatch, fails):
    tool = tmp_path / "bin" / QUANTISER
    tool.parent.mkdir()
    done = "echo bad type >&2; exit 1" if fails else 'cp "$1" "$2"; echo "$3" > "$2.type"'
    tool.write_text(f"#!/bin/sh\n{done}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    out = tmp_path / "m.gguf"
    if fails:
        with pytest.raises(InputError, match="code 1: bad type"):
            ROUTE.write(whole_model("llama"), out, Options("Q4_K_M"))
    else:
        facts = ROUTE.write(cut_model("llama", 0), out, Options("Q4_K_M"))
        assert facts["dtype"] == "Q4_K_M" and (tmp_path / "m.gguf.type").read_text() == "Q4_K_M\n"
        assert all(w % 256 == 0 for w in said(gguf.GGUFReader(out), "deci.feed_forward_length"))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
