"""Loading from directories, and what every kind of bad input gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sentei.errors import InputError
from sentei.families.stock import stock_of
from sentei.models.load import Loaded, as_loaded, digest, load
from tiny import MIXTURES, tiny_model, tiny_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A stock model directory as transformers writes it."""
    directory = tmp_path / "model"
    tiny_model("llama-tied").save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def refused(source, **options) -> str:
    """The message that a bad source gets: one line."""
    with pytest.raises(InputError) as caught:
        load(source, **{"dtype": "float32", "device": "cpu", **options})
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def edit_config(directory: Path, **changes) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(directory: Path, **changes) -> None:
    """Replaces tensors (dots in names are given as double underscores); None removes one."""
    file = directory / "model.safetensors"
    tensors = load_file(file) | {name.replace("__", "."): value for name, value in changes.items()}
    save_file({name: value for name, value in tensors.items() if value is not None}, file, metadata={"format": "pt"})


def test_stock_directory_of_every_family(tiny, ids, tmp_path):
    stock_of(tiny).save_pretrained(tmp_path / "m")
    loaded = load(tmp_path / "m", dtype="float32")
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny(ids).logits)
    assert loaded.digest == digest(tiny) and loaded.name == "m" and loaded.tokenizer is None
    assert not loaded.model.training


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("variant", MIXTURES)
def test_experts_may_be_stored_as_one_tensor(variant, streamed, ids, tmp_path):
    """As transformers 5 has them in memory, and saves them where it is told not to go back to the usual form."""
    model = tiny_model(variant)
    state = {name: value.clone() for name, value in model.state_dict().items() if ".experts." not in name}
    for i, block in enumerate(model.model.layers):
        if experts := list(getattr(block.mlp, "experts", ())):
            inner = [torch.cat([expert.gate_proj.weight, expert.up_proj.weight]) for expert in experts]
            state[f"model.layers.{i}.mlp.experts.gate_up_proj"] = torch.stack(inner).detach()
            state[f"model.layers.{i}.mlp.experts.down_proj"] = torch.stack(
                [e.down_proj.weight for e in experts]
            ).detach()
    model.config.save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    loaded = load(tmp_path, dtype="float32", streamed=streamed)
    assert loaded.digest == digest(model)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_a_model_of_several_shards(ids, tmp_path):
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        assert torch.equal(load(tmp_path, dtype="float32").model(ids).logits, model(ids).logits)


def test_the_tokenizer_and_generation_config_come_along(saved):
    (saved / "generation_config.json").write_text('{"temperature": 0.25, "do_sample": true}')
    loaded = load(saved, device="cpu")
    assert loaded.tokenizer("w5 w6").input_ids == [5, 6]
    assert loaded.model.generation_config.temperature == 0.25


def test_dtype_stored_is_the_checkpoints(tmp_path):
    tiny_model("llama").to(torch.float16).save_pretrained(tmp_path)
    assert load(tmp_path, dtype="stored").model.dtype == torch.float16
    edit_config(tmp_path, dtype=None)
    assert load(tmp_path, dtype="stored").model.dtype == torch.float16, "as the weights are"
    edit_config(tmp_path, dtype="float64")
    with pytest.raises(InputError, match=r"config\.json: dtype 'float64'; --dtype stored knows bfloat16"):
        load(tmp_path, dtype="stored")


def test_the_default_dtype_is_what_is_fast_here(saved, monkeypatch):
    monkeypatch.setattr("sentei.machine.fast_dtype", lambda device: "float32")
    assert load(saved, device="cpu").model.dtype == torch.float32
    monkeypatch.setattr("sentei.machine.fast_dtype", lambda device: "bfloat16")
    assert load(saved, device="cpu").model.dtype == torch.bfloat16


def test_digest_does_not_depend_on_the_dtype_loaded_but_on_every_weight(saved):
    one = load(saved, dtype="float32")
    assert one.digest == load(saved, dtype="bfloat16").digest
    with torch.no_grad():
        one.model.model.layers[3].mlp.down_proj.weight[0, 0] += 1
    assert digest(one.model) != one.digest


def test_as_loaded(saved):
    model = tiny_model("llama")
    loaded = as_loaded(model, name="mine")
    assert (loaded.model, loaded.name, loaded.digest) == (model, "mine", digest(model))
    tokenizer = tiny_tokenizer()
    again = as_loaded(loaded, tokenizer=tokenizer)
    assert isinstance(again, Loaded) and (again.name, again.tokenizer) == ("mine", tokenizer)
    assert as_loaded(load(saved).model).name == "model"


def test_checkpoints_of_the_bare_decoder_and_old_buffers(saved, ids):
    tensors = load_file(saved / "model.safetensors")
    bare = {name.removeprefix("model."): value for name, value in tensors.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(bare, saved / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load(saved, dtype="float32").model(ids).logits, tiny_model("llama-tied")(ids).logits)


def test_missing_path(tmp_path):
    assert f"{tmp_path / 'nowhere'} does not exist" in refused(tmp_path / "nowhere")
    assert "does not exist" in refused(str(tmp_path / "nowhere"))
    assert "./nowhere" in refused("./nowhere") or "nowhere does not exist" in refused("./nowhere")


def test_a_file_that_is_no_model(saved):
    assert "is a file" in refused(saved / "config.json")


def test_unknown_hub_id_offline_names_the_nearest_built_in_model():
    message = refused("smollm2-135m-instrukt")
    assert "did you mean 'smollm2-135m-instruct'?" in message and "Hugging Face" in message


def test_unknown_dtype():
    assert "unknown dtype 'bfloat' (did you mean 'bfloat16'?)" in refused("x", dtype="bfloat")


def test_directory_without_config(saved):
    (saved / "config.json").unlink()
    assert "has no config.json" in refused(saved)


def test_broken_config(saved):
    (saved / "config.json").write_text('{"model_type": "llama",\n oops}')
    assert "config.json:2:2 is not JSON" in refused(saved)


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 4}, {"hidden_size": "wide"}, {"num_key_value_heads": 4}, {"num_attention_heads": 0}],
)
def test_config_that_makes_no_model(saved, change):
    edit_config(saved, **change)
    message = refused(saved)
    assert "config.json does not make a llama model" in message or "is no multiple" in message


def test_unknown_architecture(saved):
    edit_config(saved, model_type="bloom")
    assert "unknown architecture 'bloom'; known: gemma2" in refused(saved)


def test_no_weights(saved):
    (saved / "model.safetensors").unlink()
    assert "has no weights" in refused(saved)


def test_pickled_weights_are_never_read(saved):
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch unpickled'\ntR.")
    message = refused(saved)
    assert "only pickled weights (pytorch_model.bin)" in message and "convert" in message


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights(saved, keep):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors is truncated or corrupt" in refused(saved)


def test_corrupt_header(saved):
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:8] + b"x" * 50 + file.read_bytes()[58:])
    assert "model.safetensors is truncated or corrupt" in refused(saved)


def test_missing_shard(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="30KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    assert gone.name in refused(tmp_path)


@pytest.fixture(params=[False, True])
def sharded(request, tmp_path):
    """A model of several shards, and whether it is read block by block."""
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="30KB")
    return tmp_path, {"streamed": request.param}


def test_an_index_that_names_a_tensor_which_its_file_does_not_hold(sharded):
    directory, how = sharded
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    tensor = next(name for name, file in index["weight_map"].items() if file == names[1])
    index["weight_map"] |= {tensor: names[0], "model.layers.0.self_attn.rotary_emb.inv_freq": names[0]}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"index.json says that {names[0]} holds {tensor}, which it does not; fetch" in refused(directory, **how)


def test_a_shard_that_is_truncated_or_missing(sharded):
    directory, how = sharded
    last = sorted(directory.glob("*.safetensors"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert f"{last.name} is truncated or corrupt" in refused(directory, **how)
    last.unlink()
    assert f"missing are {last.name}; fetch them again" in refused(directory, **how)


def test_what_is_wrong_with_the_last_block_of_a_streamed_model_is_seen_before_the_first_is_read(saved):
    name = "model__layers__3__mlp__up_proj__weight"
    for value, said in ((torch.zeros(39, 42), "has shape [39, 42], expected"), (None, "1 of 39 tensors are missing")):
        edit_weights(saved, **{name: value})
        assert said in refused(saved, streamed=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_named(saved, value):
    bad = torch.ones(42)
    bad[3] = value
    edit_weights(saved, model__layers__2__input_layernorm__weight=bad)
    assert "model.layers.2.input_layernorm.weight has 1 NaN or Inf of 42 values" in refused(saved)


def test_values_that_overflow_the_wanted_dtype_are_named(saved):
    edit_weights(saved, model__norm__weight=torch.full((42,), 1e5))
    assert "model.norm.weight has 42 NaN or Inf of 42 values (as torch.float16)" in refused(saved, dtype="float16")
    load(saved, dtype="bfloat16")


def test_wrong_shape(saved):
    edit_weights(saved, model__layers__1__mlp__up_proj__weight=torch.zeros(39, 42))
    assert "model.layers.1.mlp.up_proj.weight has shape [39, 42], expected [40, 42] from config.json" in refused(saved)


def test_missing_tensor(saved):
    edit_weights(saved, model__layers__1__mlp__up_proj__weight=None)
    assert "1 of 39 tensors are missing, first model.layers.1.mlp.up_proj.weight" in refused(saved)


def test_unexpected_tensor(saved):
    edit_weights(saved, model__layers__1__self_attn__o_proj__bias=torch.zeros(42))
    assert "model.layers.1.self_attn.o_proj.bias is not part of this architecture" in refused(saved)


def test_quantised_weights(saved):
    edit_weights(saved, model__norm__weight=torch.zeros(42, dtype=torch.int8))
    assert "model.norm.weight is I8: quantised" in refused(saved)
    edit_config(saved, quantization_config={"quant_method": "gptq"})
    assert "holds quantised weights" in refused(saved)
    edit_config(saved, quantization_config=None)
    edit_weights(saved, model__norm__weight=torch.ones(42).to(torch.float8_e4m3fn))
    assert "model.norm.weight is F8_E4M3: quantised" in refused(saved)


def test_a_head_that_should_be_tied_but_differs(saved):
    embedding = load_file(saved / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(saved, lm_head__weight=embedding.clone())
    load(saved)
    edit_weights(saved, lm_head__weight=embedding + 1)
    assert "lm_head.weight differs from the embedding" in refused(saved)


def test_broken_tokenizer(saved):
    (saved / "tokenizer.json").write_text("{}")
    assert "has a tokenizer that cannot be loaded" in refused(saved)


def test_remote_code_is_run_only_when_asked(saved):
    (saved / "code.py").write_text("raise SystemExit('remote code was run')")
    edit_config(saved, model_type="mine", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    assert "unknown architecture 'mine'" in refused(saved)
    with pytest.raises(SystemExit):
        load(saved, trust_remote_code=True)


def test_a_directory_that_looks_like_a_hub_id_wins(saved, monkeypatch):
    shutil.copytree(saved, saved.parent / "org" / "name")
    monkeypatch.chdir(saved.parent)
    assert load("org/name").name == "name"


def test_one_file_goes_before_an_index_as_in_transformers(saved, ids):
    """What an earlier save of another size left behind is not read."""
    tiny_model("llama-tied", vocab_size=130).save_pretrained(saved / "old", max_shard_size="30KB")
    for file in (saved / "old").glob("model*"):
        shutil.copyfile(file, saved / file.name)
    with torch.no_grad():
        assert torch.equal(load(saved, dtype="float32").model(ids).logits, tiny_model("llama-tied")(ids).logits)


@pytest.mark.parametrize(
    "index",
    [[], None, 3, "x", {}, {"weight_map": None}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": {"a": 1}}],
)
def test_an_index_of_another_kind(saved, index):
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is no index: expected" in refused(saved)


@pytest.mark.parametrize("name", ["../elsewhere/model.safetensors", "/etc/model.safetensors", "a/../../b.safetensors"])
def test_an_index_that_leaves_its_directory(saved, name):
    (saved / "model.safetensors").rename(saved / "part.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    message = refused(saved)
    assert "outside of its directory" in message and name in message


def rename_weights(directory: Path, rename) -> None:
    tensors = load_file(directory / "model.safetensors")
    save_file({rename(name): value for name, value in tensors.items()}, directory / "model.safetensors")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"_orig_mod.{name.removeprefix('model.')}",
        lambda name: name.replace("model.layers.1.", "model.layers.1._orig_mod."),
    ],
)
def test_names_that_a_wrapper_changed(saved, ids, rename):
    rename_weights(saved, rename)
    with torch.no_grad():
        assert torch.equal(load(saved, dtype="float32").model(ids).logits, tiny_model("llama-tied")(ids).logits)


def test_one_tensor_twice(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["_orig_mod.model.norm.weight"] = torch.zeros(42)
    save_file(tensors, saved / "model.safetensors")
    assert "are the same tensor" in refused(saved)


def test_an_adapter_names_its_base_and_how_to_merge(saved):
    (saved / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base", "r": 4}')
    message = refused(saved)
    assert "adapter" in message and "some/base" in message and "merge_and_unload" in message
    (saved / "adapter_config.json").write_text("[]")
    assert "a model that it does not name" in refused(saved)


def test_adapter_weights_inside_of_a_model(saved):
    edit_weights(saved, model__layers__0__self_attn__q_proj__lora_A__weight=torch.zeros(4, 42))
    assert "lora_A.weight is part of a LoRA adapter" in refused(saved)


@pytest.mark.parametrize("layers", [0, 3, 5, 10**6, 10**12, -1])
def test_a_depth_that_the_weights_do_not_have(saved, layers):
    edit_config(saved, num_hidden_layers=layers)
    message = refused(saved)
    assert f"num_hidden_layers {layers}, the weights have 4 blocks" in message


@pytest.mark.parametrize("name", ["hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 10**6, 10**15])
def test_sizes_that_the_weights_do_not_have(saved, name, value):
    edit_config(saved, **{name: value})
    refused(saved)


def test_a_head_without_an_embedding_is_both(saved, ids):
    embedding = load_file(saved / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(saved, lm_head__weight=embedding.clone(), model__embed_tokens__weight=None)
    with torch.no_grad():
        assert torch.equal(load(saved, dtype="float32").model(ids).logits, tiny_model("llama-tied")(ids).logits)


def test_no_head_and_no_word_of_a_tie(saved):
    edit_config(saved, tie_word_embeddings=False)
    assert "has no lm_head.weight" in refused(saved) and "tie_word_embeddings" in refused(saved)
