"""hf, uniform, dense-fold, nemotron-nas: what is refused, what files hold, and that plain transformers agrees."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sentei.errors import InputError
from sentei.families.surgery import prune
from sentei.plan import BlockPlan, BlockShape
from sentei.ship.decilm.configuration_decilm import DeciLMConfig, ffn_width
from sentei.ship.export import export
from sentei.ship.nemotron_nas import block_config
from sentei.ship.parity import parity
from ship.shipping import TEXTS, cut_like, loaded, randomly_cut
from tiny import VARIANTS, make_plan, tiny_model

ONE_SIZE = [BlockPlan(kv_groups=[0, 2], query_heads=[[0, 1]] * 2, ffn=list(range(3, 35)))] * 4


def exported(model, to, tmp_path, **options):
    facts = export(model, to, tmp_path / "x", texts=TEXTS, check=False, **options)
    return facts, json.loads((tmp_path / "x" / "config.json").read_text()), load_file(tmp_path / "x/model.safetensors")


def agrees(model, tmp_path, engine="transformers"):
    found = parity(model, tmp_path / "x", engine=engine, texts=TEXTS, lengths=(5, 40), tokens=90)
    assert found.passed and found.delta < 2e-4, found.verdict()
    assert (found.prefill.positions, found.decode.positions) == (90, 38)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("bias", [False, True])
def test_hf_holds_everything(variant, bias, tmp_path):
    model = randomly_cut(variant, bias=bias)
    facts, config, _ = exported(model, "hf", tmp_path)
    assert facts["lossless"] and not facts["padding_bytes"] and config["per_layer_config"]
    agrees(model, tmp_path)


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "llama-biases", "mistral", "qwen2"])
@pytest.mark.parametrize("bias", [False, True])
def test_nemotron_nas_pads_what_it_cannot_say(variant, bias, tmp_path):
    model = randomly_cut(variant, bias=bias)
    facts, config, tensors = exported(model, "nemotron-nas", tmp_path)
    assert config["model_type"] == "nemotron-nas" and config["architectures"] == ["DeciLMForCausalLM"]
    assert len(config["block_configs"]) == config["num_hidden_layers"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] and config["rope_scaling"] is None
    held = sum(p.numel() for p in model.model.parameters())
    assert facts["padding_bytes"] == 4 * (sum(t.numel() for t in tensors.values()) - held) > 0
    agrees(model, tmp_path)


def test_tensors_of_missing_parts_are_left_out(tmp_path):
    model = cut_like(tiny_model("llama", hidden_size=48, intermediate_size=512), [512, 256, 0, 0], [1, 0, 1, 0])
    facts, config, tensors = exported(model, "nemotron-nas", tmp_path)
    assert not facts["padding_bytes"] and config["num_hidden_layers"] == 3  # the block without any part is gone
    assert [block["attention"]["no_op"] for block in config["block_configs"]] == [False, True, False]
    assert [block["ffn"]["no_op"] for block in config["block_configs"]] == [False, False, True]
    assert config["block_configs"][0]["attention"]["n_heads_in_group"] == 2
    assert tensors["model.layers.1.mlp.up_proj.weight"].shape == (256, 48)
    missing = ("layers.1.self_attn", "layers.1.input_layernorm", "layers.2.mlp", "layers.2.post_attention_layernorm")
    assert not [name for name in tensors if any(part in name for part in missing)]
    agrees(model, tmp_path)


def test_every_width_survives_the_factor_even_at_six_digits():
    for hidden in (576, 960, 1536, 2048, 3584, 4096, 5120, 8192):
        for width in range(256, 8 * hidden, 256):
            factor = 1.5 * width / hidden
            assert ffn_width(factor, hidden) == ffn_width(round(factor, 6), hidden) == width


def test_engines_find_attributes_and_null_sizes_in_the_config(tmp_path):
    model = cut_like(tiny_model("llama", hidden_size=48, intermediate_size=512), [512, 256, 0, 512])
    _, values, _ = exported(model, "nemotron-nas", tmp_path)
    config = DeciLMConfig.from_pretrained(tmp_path / "x")
    assert config.block_configs[2].ffn.no_op and config.block_configs[1].attention.n_heads_in_group == 2
    assert config.intermediate_size is None and config.num_key_value_heads is None
    assert not hasattr(config.block_configs[0].ffn, "intermediate_size")
    again = json.loads(config.to_json_string(use_diff=False))
    assert again["block_configs"] == values["block_configs"] and again["num_attention_heads"] == 6
    entry = block_config(BlockShape(kv_groups=3, heads_per_group=2, ffn=512), 48)
    assert entry["ffn"]["ffn_mult"] == 16 and entry["attention"]["n_heads_in_group"] == 2


STANDALONE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sentei": raise ImportError("sentei is hidden")
sys.meta_path.insert(0, Block())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("x", trust_remote_code=True, dtype=torch.float32)
ids = load_file("ids.safetensors")["ids"]
options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
with torch.no_grad():
    save_file({"logits": model(ids).logits}, "out.safetensors")
print(type(model).__name__)
"""


def test_nemotron_nas_generates_in_plain_transformers_without_sentei(ids, tmp_path):
    model = randomly_cut("llama", bias=True)
    exported(model, "nemotron-nas", tmp_path)
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", STANDALONE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.strip() == "DeciLMForCausalLM", ran.stderr[-2000:]
    with torch.no_grad():
        wanted = model.model(ids).logits
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")["logits"], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "bias", "arch"),
    [
        ("llama", False, "LlamaForCausalLM"),
        ("llama", True, "LlamaForCausalLM"),
        ("mistral", False, "MistralForCausalLM"),
        ("mistral", True, "LlamaForCausalLM"),  # Mistral has no biases
        ("qwen2", False, "LlamaForCausalLM"),  # head counts that Qwen2's stock code misreads elsewhere
        ("mistral-window", False, "MistralForCausalLM"),
        ("qwen3", False, "Qwen3ForCausalLM"),
        ("qwen3-biases", False, "Qwen3ForCausalLM"),
    ],
)
def test_dense_fold_is_a_stock_class_of_one_size(variant, bias, arch, tmp_path):
    sizes = {"hidden_size": 48} if variant == "llama" else {}
    model = randomly_cut(variant, bias=bias, **sizes)
    facts, config, tensors = exported(model, "dense-fold", tmp_path)
    assert facts["arch"] == arch == config["architectures"][0] and "auto_map" not in config
    assert not list((tmp_path / "x").glob("*.py"))
    held = sum(p.numel() for p in model.model.parameters())
    assert facts["padding_bytes"] == 4 * (sum(t.numel() for t in tensors.values()) - held) > 0
    agrees(model, tmp_path)


def test_low_rank_pairs_are_multiplied_back(tmp_path):
    from sentei.families import family_of
    from sentei.families.surgery import skeleton

    dense = tiny_model("llama", hidden_size=48)
    shape = family_of(dense.config).shape(dense.config)
    low = shape.blocks[1].model_copy(update={"ranks": {"q_proj": 5, "down_proj": 7}})
    model = skeleton(dense, shape.model_copy(update={"blocks": (low, *shape.blocks[:3])}))
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())) * 0.2)
    pair = loaded(model)
    with pytest.raises(InputError, match="no low-rank matrices; use --to"):
        exported(pair, "nemotron-nas", tmp_path)
    with pytest.raises(InputError, match="no low-rank matrices; use --to dense-fold"):
        exported(pair, "uniform", tmp_path)
    facts, _, tensors = exported(pair, "dense-fold", tmp_path)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (48, 40) and facts["padding_bytes"] > 0
    agrees(pair, tmp_path)


def test_uniform_needs_blocks_of_one_size_and_no_code(tmp_path):
    dense = tiny_model("llama")
    model = loaded(prune(dense, make_plan(dense, ONE_SIZE)))
    facts, config, _ = exported(model, "uniform", tmp_path)
    assert facts["arch"] == "MistralForCausalLM" and config["sliding_window"] is None and "auto_map" not in config
    agrees(model, tmp_path)
    with pytest.raises(InputError, match=r"blocks have .* to .*; use --to dense-fold .* --target-engine uniform"):
        export(randomly_cut("llama"), "uniform", tmp_path / "y")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("variant", "to", "why"),
    [
        ("qwen3", "nemotron-nas", "no norms on q and k; use --to"),
        ("mistral-window", "nemotron-nas", "no sliding window, this model sees 5 tokens back; use --to"),
        ("qwen2-window", "nemotron-nas", "no sliding window"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_alternative(variant, to, why, tmp_path):
    with pytest.raises(InputError, match=why):
        exported(randomly_cut(variant), to, tmp_path)
    assert not list(tmp_path.iterdir())


def test_biases_that_no_stock_class_has_are_refused(tmp_path):
    with pytest.raises(InputError, match="biases have no place in any stock class"):
        exported(randomly_cut("qwen3", bias=True), "dense-fold", tmp_path)
    facts, _, _ = exported(randomly_cut("llama", bias=True), "nemotron-nas", tmp_path)
    assert "biases" in facts["unreachable"]["trtllm"] and "trtllm" not in facts["engines"]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("variant", "to", "bias"),
    [
        ("llama", "nemotron-nas", False),
        ("llama-tied", "nemotron-nas", True),
        ("qwen2", "nemotron-nas", False),
        ("llama", "dense-fold", True),
        ("mistral", "uniform", False),
        ("qwen3", "dense-fold", False),
    ],
)
def test_parity_in_mlx(variant, to, bias, tmp_path):
    pytest.importorskip("mlx_lm")
    dense = tiny_model(variant, hidden_size=48, intermediate_size=512)
    if to == "uniform":
        model = loaded(prune(dense, make_plan(dense, ONE_SIZE)))
    else:
        attention = None if to == "dense-fold" else [True, False, True, True]
        model = cut_like(dense, [512, 200, 0, 256], attention, "bias" if bias else "none")
    exported(model, to, tmp_path)
    agrees(model, tmp_path, "mlx")


@pytest.mark.engine
def test_mlx_is_not_named_where_it_would_compute_something_else(tmp_path):
    """Each of these fails parity in MLX-LM 0.32 when it is tried all the same."""
    pytest.importorskip("mlx_lm")
    for number, variant in enumerate(("mistral-window", "qwen2", "qwen3-biases")):
        model = loaded(tiny_model(variant))
        facts = export(model, "uniform", tmp_path / str(number), check=False)
        assert "mlx" in facts["unreachable"] and "mlx" not in facts["engines"]
        with pytest.raises(InputError, match="unknown engine for this export 'mlx'"):
            parity(model, tmp_path / str(number), engine="mlx", texts=TEXTS)
