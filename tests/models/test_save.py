"""Saving: what comes back is what went in, here and where sentei is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from sentei.errors import InputError, SenteiError
from sentei.families import family_of, modeling_sentei
from sentei.families.surgery import prune
from sentei.models.load import digest, load
from sentei.models.save import save
from sentei.plan import BlockPlan, Plan
from tiny import make_plan, random_blocks, tiny_model, tiny_tokenizer, whole

STANDALONE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sentei": raise ImportError("sentei is hidden")
sys.meta_path.insert(0, Block())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("m", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("m", trust_remote_code={trust}, dtype=torch.float32)
ids = load_file("ids.safetensors")["ids"]
options = dict(attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
cached, plain = model.generate(ids, **options), model.generate(ids, use_cache=False, **options)
assert torch.equal(cached, plain), "cache changes the text"
assert len(tokenizer.decode(cached[0])) > 10
with torch.no_grad():
    hidden = AutoModel.from_pretrained("m", trust_remote_code={trust}, dtype=torch.float32)(ids).last_hidden_state
    save_file({{"logits": model(ids).logits, "from_hidden": model.lm_head(hidden)}}, "out.safetensors")
print(type(model).__name__, type(model).__module__.split(".")[0], "sentei" in sys.modules)
"""


def close(got, wanted):
    """Equal but for fp32 rounding: another process may sum in another order."""
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def cut(model, seed=1, compensation="none"):
    plan = make_plan(model, random_blocks(family_of(model.config).shape(model.config), seed), compensation)
    return prune(model, plan), plan


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def standalone(directory: Path, ids, trust: bool = True) -> tuple[str, dict]:
    """Loads `directory`/m in a process that cannot import sentei; gives what it printed and the logits it got."""
    from safetensors.torch import load_file, save_file

    save_file({"ids": ids}, directory / "ids.safetensors")
    script = STANDALONE.format(trust=trust)
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "hf"), "PATH": "", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-"], input=script, cwd=directory, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip().splitlines()[-1], load_file(directory / "out.safetensors")


@pytest.mark.parametrize("compensation", ["none", "bias"])
def test_saved_and_loaded_gives_equal_logits(tiny, ids, tmp_path, compensation):
    pruned, plan = cut(tiny, compensation=compensation)
    with torch.no_grad():
        for name, value in pruned.named_parameters():
            if name.endswith("_proj.bias"):
                value.normal_()  # as a compensation would set it
    save(pruned, tmp_path / "m", tokenizer=tiny_tokenizer(), plan=plan)
    loaded = load(tmp_path / "m", dtype="float32")
    assert type(loaded.model) is type(pruned)
    assert torch.equal(logits(loaded.model, ids), logits(pruned, ids))
    assert loaded.digest == digest(pruned, tiny_tokenizer()) and loaded.tokenizer("w9").input_ids == [9]
    assert family_of(loaded.model.config).shape(loaded.model.config) == plan.shape()


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen2-window", "qwen3"])
def test_loads_and_generates_without_sentei(variant, ids, tmp_path):
    pruned, plan = cut(tiny_model(variant), compensation="bias")
    save(pruned, tmp_path / "m", tokenizer=tiny_tokenizer(), plan=plan)
    printed, got = standalone(tmp_path, ids)
    assert printed == f"{type(pruned).__name__} transformers_modules False"
    close(got["logits"], logits(pruned, ids))
    close(got["from_hidden"], got["logits"])


def test_real_model_without_sentei(stories, tmp_path):
    pruned, plan = cut(stories.model, seed=4)
    save(pruned, tmp_path / "m", tokenizer=stories.tokenizer, plan=plan)
    ids = stories.tokenizer("Once upon a time", return_tensors="pt").input_ids
    printed, got = standalone(tmp_path, ids)
    assert printed.startswith("SenteiLlamaForCausalLM transformers_modules")
    close(got["logits"], logits(pruned, ids))


def test_a_uniform_plan_is_a_stock_model_without_custom_code(ids, tmp_path):
    model = tiny_model("llama")
    blocks = [BlockPlan(kv_groups=[0, 2], query_heads=[[0, 1]] * 2, ffn=list(range(3, 35)))] * 4
    pruned = prune(model, make_plan(model, blocks))
    save(pruned, tmp_path / "m", tokenizer=tiny_tokenizer(), plan=make_plan(model, blocks))
    assert not list((tmp_path / "m").glob("*.py"))
    printed, got = standalone(tmp_path, ids, trust=False)
    assert printed == "MistralForCausalLM transformers False"
    close(got["logits"], logits(pruned, ids))
    assert "no custom code" in (tmp_path / "m" / "README.md").read_text()


def test_a_dense_model_is_saved_as_it_is(tiny, ids, tmp_path):
    save(tiny, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == [type(tiny).__name__] and "auto_map" not in config
    assert torch.equal(logits(load(tmp_path / "m", dtype="float32").model, ids), logits(tiny, ids))


def test_what_is_written(tmp_path):
    model = tiny_model("qwen3")
    model.config.sentei_source = "org/base"
    pruned, plan = cut(model)
    save(pruned, tmp_path / "m", tokenizer=tiny_tokenizer(), plan=plan)
    out = tmp_path / "m"
    assert Plan.load(out / "plan.json") == plan
    assert (out / "modeling_sentei.py").read_bytes() == Path(modeling_sentei.__file__).read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_sentei.SenteiQwen3Model"
    assert config["allow_global_per_layer_attribute_access"] and config["per_layer_config"]
    assert config["prune_provenance"]["plan_sha256"] == plan.digest()
    assert "_name_or_path" not in config
    card = (out / "README.md").read_text()
    assert card.startswith("---\nbase_model: org/base\n") and "trust_remote_code=True" in card
    assert card.count("\n| ") == 5 and f"{plan.shape().params():,} parameters" in card
    assert not [path for path in tmp_path.iterdir() if path.name != "m"], "scratch was left behind"


@pytest.mark.parametrize(
    ("rope", "scaling"),
    [
        ({"rope_type": "default", "rope_theta": 5e5}, None),
        ({"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_both_spellings_of_rope(ids, tmp_path, rope, scaling):
    pruned, plan = cut(tiny_model("llama", rope_parameters=rope))
    save(pruned, tmp_path / "m", plan=plan)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["rope_parameters"], config["rope_theta"], config["rope_scaling"]) == (rope, 5e5, scaling)
    assert torch.equal(logits(load(tmp_path / "m", dtype="float32").model, ids), logits(pruned, ids))
    del config["rope_parameters"]  # as an old reader sees it
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(load(tmp_path / "m", dtype="float32").model, ids), logits(pruned, ids))


def test_licence_files_of_the_base_model_come_along(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "LICENSE").write_text("do what you like")
    pruned, plan = cut(load(tmp_path / "base").model)
    save(pruned, tmp_path / "m", plan=plan)
    assert (tmp_path / "m" / "LICENSE").read_text() == "do what you like"
    assert "see LICENSE" in (tmp_path / "m" / "README.md").read_text()


def test_the_chat_template_and_generation_config_come_along(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    pruned, plan = cut(tiny_model("llama"))
    pruned.generation_config.max_new_tokens = 7
    save(pruned, tmp_path / "m", tokenizer=tokenizer, plan=plan)
    loaded = load(tmp_path / "m")
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "w4 w5"}], tokenize=False) == "w4 w5"
    assert loaded.model.generation_config.max_new_tokens == 7


def test_cut_again_after_loading(ids, tmp_path):
    pruned, plan = cut(tiny_model("qwen2-window"))
    save(pruned, tmp_path / "m", plan=plan)
    loaded = load(tmp_path / "m", dtype="float32").model
    again = whole(plan.shape())
    again[3] = BlockPlan(kv_groups=[], query_heads=[], ffn=[])
    twice = prune(loaded, make_plan(loaded, again))
    save(twice, tmp_path / "n")
    assert torch.equal(logits(load(tmp_path / "n", dtype="float32").model, ids), logits(twice, ids))


def test_a_directory_in_use_is_refused_and_untouched(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("keep")
    with pytest.raises(InputError, match="not empty"):
        save(tiny_model("llama"), tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["mine"]
    with pytest.raises(InputError, match="was not written by sentei"):
        save(tiny_model("llama"), tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "mine").read_text() == "keep"
    save(tiny_model("llama"), tmp_path / "n")
    save(tiny_model("qwen3"), tmp_path / "n", overwrite=True)
    assert load(tmp_path / "n").model.config.model_type == "qwen3"


def test_overwriting_the_directory_that_a_model_came_from(ids, tmp_path):
    pruned, plan = cut(tiny_model("llama"))
    save(pruned, tmp_path / "m", plan=plan)
    loaded = load(tmp_path / "m", dtype="float32").model  # its weights are mapped from the file
    save(loaded, tmp_path / "m", overwrite=True)
    assert torch.equal(logits(load(tmp_path / "m", dtype="float32").model, ids), logits(pruned, ids))


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(InputError, match="No space left on device; free space"):
        save(tiny_model("llama"), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_sizes_that_do_not_divide_are_refused_when_loading(tmp_path):
    pruned, plan = cut(tiny_model("llama"))
    save(pruned, tmp_path / "m", plan=plan)
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    config["per_layer_config"]["0"] = {"num_attention_heads": 5, "num_key_value_heads": 2}
    file.write_text(json.dumps(config))
    with pytest.raises(InputError, match="layer 0: num_attention_heads 5 is no multiple"):
        load(tmp_path / "m")


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("computed", ["float32", "bfloat16"])
def test_a_saved_model_is_stored_as_its_source(tmp_path, stored, computed):
    source = tiny_model("llama", tie_word_embeddings=True).to(getattr(torch, stored))
    save(source, tmp_path / "source", tokenizer=tiny_tokenizer())
    loaded = load(tmp_path / "source", dtype=computed)
    assert str(loaded.model.dtype) == f"torch.{computed}"
    pruned, plan = cut(loaded.model)
    for model, name, size in (
        (pruned, "pruned", plan.shape().params()),
        (loaded.model, "dense", source.num_parameters()),
    ):
        save(model, tmp_path / name, plan=plan if model is pruned else None)
        values = json.loads((tmp_path / name / "config.json").read_text())
        assert values["dtype"] == stored and "sentei_dtype" not in values
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{stored}"}
        assert sum(tensor.numel() for tensor in tensors.values()) == size, "the tied head is stored once"
        assert str(model.dtype) == f"torch.{computed}", "the model in memory stays as it was"


def test_values_that_the_checkpoints_dtype_does_not_reach(tmp_path):
    model = tiny_model("llama").to(torch.bfloat16)
    model.config.sentei_dtype = "float16"
    with torch.no_grad():
        model.model.norm.weight[0] = 1e5
    with pytest.raises(SenteiError, match=r"norm\.weight has values beyond ±65504, the range of float16"):
        save(model, tmp_path / "m")
    assert not list(tmp_path.iterdir())
