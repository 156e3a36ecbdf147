import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from recover.tune.adapting import IDS, impact_of, loss, pruned, train, wrapped
from sentei.errors import InputError
from sentei.files import read_json
from sentei.recover.tune.adapters import ADAPTERS, Context
from sentei.recover.tune.adapters.base import count, linears, trainable, uniform_rank
from sentei.recover.tune.adapters.files import load_adapter, merge, save_adapter
from sentei.recover.tune.adapters.layer import SparseLoraLinear, attach
from sentei.recover.tune.allocate import Share
from tiny import VARIANTS, tiny_model

OURS = ["lora+sparse", "lora", "rslora", "shira", "shira-gradient"]  # effective weights
PEFT = [*OURS, "dora"]


@torch.no_grad()
def logits(model):
    return model.eval()(IDS).logits


@pytest.mark.parametrize("name", list(ADAPTERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_adapter_starts_as_the_model_learns_and_merges_into_its_class(name, dtype):
    base, model = pruned(dtype=dtype), pruned(dtype=dtype)
    adapted = wrapped(name, model)
    if name in OURS or name == "full":
        assert torch.equal(logits(adapted), logits(base)), "an adapter starts from the model as it is"
    losses = train(adapted, lr=ADAPTERS[name].learning_rate * 20)
    assert losses[-1] < losses[0] - 0.1
    after = logits(adapted)
    merged = merge(adapted)
    assert type(merged) is type(base) and not hasattr(merged, "peft_config")
    assert {n: (v.shape, v.dtype) for n, v in merged.state_dict().items()} == {
        n: (v.shape, v.dtype) for n, v in base.state_dict().items()
    }
    if name == "dora":  # peft computes the change beside the weight, not in it
        torch.testing.assert_close(logits(merged), after, rtol=0, atol=2e-4 if dtype == torch.float32 else 1.0)
    else:
        assert torch.equal(logits(merged), after), "what is merged is what was trained, bit for bit"


@pytest.mark.parametrize("name", PEFT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_saved_adapters_load_bit_for_bit(name, dtype, tmp_path):
    adapted = wrapped(name, pruned(dtype=dtype))
    assert {p.dtype for p in trainable(adapted).values()} == {torch.float32}
    train(adapted, steps=2)
    save_adapter(adapted, tmp_path / "a")
    assert not {f.suffix for f in (tmp_path / "a").iterdir()} - {".json", ".safetensors"}
    assert read_json(tmp_path / "a" / "adapter_config.json")["base_model_name_or_path"] is None, "no path of a machine"
    loaded = load_adapter(pruned(dtype=dtype), tmp_path / "a")
    assert torch.equal(logits(loaded), logits(adapted)) and not trainable(loaded)
    more = load_adapter(pruned(dtype=dtype), tmp_path / "a", train=True)
    assert {n: p.shape for n, p in trainable(more).items()} == {n: p.shape for n, p in trainable(adapted).items()}
    assert train(more, steps=2) == train(adapted, steps=2), "training goes on from the same place"


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_family_with_skipped_parts(variant, tmp_path):
    adapted = wrapped("lora+sparse", pruned(variant))
    train(adapted, steps=2)
    before = logits(adapted)
    save_adapter(adapted, tmp_path / "a")
    assert torch.equal(logits(merge(adapted)), before)
    assert torch.equal(logits(merge(load_adapter(pruned(variant), tmp_path / "a"))), before)


@pytest.mark.parametrize("name", ["lora+sparse", "shira", "shira-gradient"])
@pytest.mark.parametrize("budget", [1, 137, 2000])
def test_sparse_adapters_spend_the_budget_exactly(name, budget):
    assert count(trainable(wrapped(name, pruned(), budget))) == budget


def test_low_rank_adapters_spend_what_a_uniform_rank_can():
    modules = linears(pruned())
    price = sum(sum(m.weight.shape) for m in modules.values())
    assert [uniform_rank(modules, b) for b in (1, price, 2 * price - 1, 2 * price)] == [1, 1, 1, 2]
    assert count(trainable(wrapped("lora", pruned(), 3 * price + 5))) == 3 * price
    lengths = sum(m.out_features for m in modules.values())
    assert count(trainable(wrapped("dora", pruned(), 2 * price + lengths))) == 2 * price + lengths


def test_full_trains_the_blocks_and_nothing_else():
    model = wrapped("full", pruned())
    assert all(".layers." in name for name in trainable(model)) and count(trainable(model)) == sum(
        p.numel() for p in model.model.layers.parameters()
    )
    with pytest.raises(InputError, match="no adapter"):
        save_adapter(model, "nowhere")


@pytest.mark.parametrize("name,options", [("lora", {}), ("rslora", {"use_rslora": True})])
def test_effective_lora_is_pefts_lora(name, options, tmp_path):
    """The same function and gradients as stock peft, and files that stock peft loads."""
    adapted = wrapped(name, pruned())
    train(adapted, steps=2)
    save_adapter(adapted, tmp_path / "a")
    stock = PeftModel.from_pretrained(pruned(), tmp_path / "a", is_trainable=True)
    assert not any(isinstance(m, SparseLoraLinear) for m in stock.modules())
    torch.testing.assert_close(logits(stock), logits(adapted), rtol=1e-4, atol=1e-4)
    grads = []
    for model in (adapted, stock):
        values = list(trainable(model).values())
        grads.append(torch.autograd.grad(loss(model, IDS), values))
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


def test_the_seed_decides_the_start():
    first, same, other = (dict(trainable(wrapped("lora", pruned(), seed=s))) for s in (0, 0, 1))
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)
    support = [wrapped("shira", pruned(), seed=s).state_dict() for s in (0, 0, 1)]
    spots = [{n: v for n, v in s.items() if "lora_I" in n} for s in support]
    assert all(torch.equal(spots[0][n], spots[1][n]) for n in spots[0])
    assert any(not torch.equal(spots[0][n], spots[2][n]) for n in spots[0])


def test_wrapping_leaves_the_global_generator_alone():
    model = pruned()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    wrapped("lora", model)
    assert torch.equal(torch.rand(1), expected)


def test_disabling_and_unmerging_give_the_base_back():
    adapted = wrapped("lora+sparse", pruned())
    train(adapted, steps=2)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), logits(pruned()))
    before = logits(adapted)
    adapted.merge_adapter()
    assert torch.equal(logits(adapted), before)
    adapted.unmerge_adapter()
    torch.testing.assert_close(logits(adapted), before, rtol=1e-3, atol=1e-3)
    layer = next(m for m in adapted.modules() if isinstance(m, SparseLoraLinear))
    wide = layer.get_base_layer().weight + layer.get_delta_weight("default")
    adapted.merge_adapter(safe_merge=True)
    torch.testing.assert_close(layer.get_base_layer().weight, wide)


def test_a_basis_is_where_a_starts():
    model = pruned()
    name, module = next(iter(linears(model).items()))
    basis = torch.linalg.qr(torch.randn(module.in_features, 2))[0].T
    adapted = attach(model, LoraConfig(r=1), {name: Share(2, basis=basis)}, seed=0)
    A = next(p for n, p in trainable(adapted).items() if "lora_A" in n)
    torch.testing.assert_close(A, basis / 3**0.5)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    adapted = wrapped("lora+sparse", pruned())
    save_adapter(adapted, tmp_path / "a")
    with pytest.raises(InputError, match=r"proj is \[.*use the model that the adapter was trained for"):
        load_adapter(pruned(seed=4), tmp_path / "a")
    with pytest.raises(InputError, match=r"exists and is not empty"):
        save_adapter(adapted, tmp_path / "a")
    side = tmp_path / "a" / "sentei_adapter.json"
    kept = side.read_text()
    side.write_text('{"modules": {"model.layers.0.mlp.up_proj": 3}}')
    with pytest.raises(InputError, match="up_proj: Input should be a valid dictionary; got 3"):
        load_adapter(pruned(), tmp_path / "a")
    side.write_text(kept)
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    name, _ = state.popitem()
    save_file(state, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=f"{name} has shape None"):
        load_adapter(pruned(), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match="cannot be read as an adapter"):
        load_adapter(pruned(), tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        load_adapter(pruned(), tmp_path / "a")


def test_the_side_car_says_what_every_module_has(tmp_path):
    adapted = wrapped("lora+sparse", pruned())
    save_adapter(adapted, tmp_path / "a")
    modules = json.loads((tmp_path / "a" / "sentei_adapter.json").read_text())["modules"]
    assert sum(m["rank"] * sum(m["shape"]) + m["entries"] for m in modules.values()) == 500


def test_merging_what_diverged_names_the_module():
    adapted = wrapped("lora+sparse", pruned())
    name, value = next((n, p) for n, p in trainable(adapted).items() if "lora_S" in n)
    value.data.fill_(float("nan"))
    with pytest.raises(InputError, match=f"{name.split('.lora_S')[0].removeprefix('base_model.model.')}.*not finite"):
        merge(adapted)


def test_a_second_adapter_and_options_without_meaning_are_refused():
    adapted = wrapped("lora", pruned())
    with pytest.raises(ValueError, match="one adapter a model"):
        adapted.add_adapter("second", LoraConfig(r=1, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="no dropout"):
        attach(pruned(), LoraConfig(lora_dropout=0.1), {n: Share(1) for n in linears(pruned())}, seed=0)


def test_a_dense_stock_model_works_too():
    model = tiny_model("qwen2")
    assert len(linears(model)) == 7 * 4, "not the head, not the embedding"
    adapted = wrapped("lora+sparse", model)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    assert type(merge(adapted)) is type(tiny_model("qwen2"))


def test_modules_without_gain_stay_plain():
    model = pruned()
    impact = impact_of(model)
    dead = next(iter(linears(model)))
    impact.gradient[dead].zero_()
    adapted = ADAPTERS["lora+sparse"].wrap(model, 500, Context(lambda: impact))
    assert not isinstance(adapted.get_base_model().get_submodule(dead), SparseLoraLinear)


def test_no_warning_on_the_way(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapted = wrapped("lora+sparse", pruned())
        save_adapter(adapted, tmp_path / "a")
        merge(load_adapter(pruned(), tmp_path / "a"))


def test_fewer_tensors_are_held_than_by_stock_peft():
    def held(model):
        sizes = []
        own = {p.data_ptr() for p in model.parameters()}

        def pack(t):
            if t.data_ptr() not in own:
                sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss(model, IDS)
        return sum(sizes)

    ours = wrapped("lora", pruned(), 3000)
    rank = next(p.shape[0] for n, p in trainable(ours).items() if "lora_A" in n)
    names = sorted(linears(pruned()))
    stock = get_peft_model(pruned(), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))
    assert held(ours) < held(stock)
