"""Low-rank matrices in plans, cut models, on disk, and under adapters."""

import pytest
import torch

from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.modeling_sentei import LowRankLinear
from sentei.measure import measure
from sentei.models.load import load
from sentei.models.save import save
from sentei.plan import BlockPlan, Budget, Plan
from sentei.prune.cut import cut
from sentei.prune.planning import plan
from tiny import VARIANTS, tiny_model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (24, 32), generator=torch.Generator().manual_seed(1))


def ranked(model, ranks, compensation="least-squares", storage="factors"):
    """A plan that keeps all units and gives every block these ranks."""
    shape = family_of(model.config).shape(model.config)
    blocks = [
        BlockPlan(
            kv_groups=list(range(b.kv_groups)),
            query_heads=[list(range(b.heads_per_group))] * b.kv_groups,
            ffn=list(range(b.ffn)),
            ranks=ranks,
        )
        for b in shape.blocks
    ]
    names = {"method": "test", "score": "obs", "allocation": "global", "compensation": compensation}
    digest = measure(model, torch.ones(1, 4, dtype=torch.long), gradient_tokens=0).model_digest
    return Plan(
        model=digest, profile="", budget=Budget(sparsity=0.1), dense=shape, blocks=blocks, storage=storage, **names
    )


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("storage", ["factors", "pivoted"])
def test_full_ranks_are_the_dense_model(variant, storage, ids):
    model = tiny_model(variant)
    shape = family_of(model.config).shape(model.config)
    dense = shape.blocks[0].model_copy(update={"ffn": 0}) if any(b.experts for b in shape.blocks) else shape.blocks[0]
    full = {name: min(size) for name, size in shape.matrices(dense).items()}
    small = cut(model, ranked(model, full, storage=storage), ids)
    assert sum(isinstance(m, LowRankLinear) for m in small.modules()) == len(full) * 4
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, model(ids).logits, rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("storage", ["factors", "pivoted"])
def test_save_and_load_give_the_same_logits(storage, ids, tmp_path):
    model = tiny_model("llama-biases")
    decided = ranked(model, {"q_proj": 9, "v_proj": 7, "up_proj": 11, "down_proj": 13}, storage=storage)
    small = cut(model, decided, ids)
    family = family_of(small.config)
    assert sum(p.numel() for p in family.blocks(small).parameters()) == decided.shape().block_params()
    save(small, tmp_path / "model", plan=decided)
    again = load(tmp_path / "model", dtype="float32").model
    with torch.no_grad():
        assert torch.equal(small(ids).logits, again(ids).logits)
    with pytest.raises(InputError, match="low-rank matrices already"):
        measure(again, ids)


def test_data_choose_better_factors_than_the_weights_alone(ids):
    model = tiny_model("llama")
    ranks = {"gate_proj": 10, "up_proj": 10, "down_proj": 10}
    with torch.no_grad():
        wanted = model(ids).logits
        error = {
            name: (cut(model, ranked(model, ranks, name), ids)(ids).logits - wanted).square().mean().item()
            for name in ("none", "least-squares")
        }
    assert error["least-squares"] < 0.9 * error["none"]


def test_a_plan_names_what_is_wrong_with_its_ranks():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="did you mean 'q_proj'"):
        ranked(model, {"q_prj": 3})
    with pytest.raises(ValueError, match="rank 25 of k_proj exceeds"):
        ranked(model, {"k_proj": 25})


def test_ranks_need_gradients_and_an_engine_that_holds_them(ids):
    model = tiny_model("llama")
    with pytest.raises(InputError, match="needs gradients"):
        plan(measure(model, ids, gradient_tokens=0), Budget(sparsity=0.3), "low-rank")
    with pytest.raises(InputError, match="priced in nats"):
        plan(measure(model, ids), Budget(sparsity=0.3), "low-rank", score="obs")
    with pytest.raises(InputError, match="holds no low-rank"):
        plan(measure(model, ids), Budget(sparsity=0.3, target_engine="vllm"), "low-rank")


def test_auto_predicts_no_more_loss_than_either_kind_alone(ids):
    profile = measure(tiny_model("llama"), ids)
    budget = Budget(sparsity=0.4)
    losses = {m: plan(profile, budget, m).predicted["loss_increase"] for m in ("structural", "low-rank", "auto")}
    assert losses["auto"] <= 1.05 * min(losses["structural"], losses["low-rank"])  # menus are coarser than channels


def test_pivoted_storage_keeps_higher_ranks_for_the_same_budget(ids):
    profile = measure(tiny_model("llama"), ids)
    plans = {s: plan(profile, Budget(sparsity=0.4), "sieve", storage=s) for s in ("factors", "pivoted")}
    ranks = {s: sum(sum(b.ranks.values()) for b in p.blocks) for s, p in plans.items()}
    assert ranks["pivoted"] > 1.1 * ranks["factors"]
    assert all(0.4 <= p.predicted["removed"] < 0.41 for p in plans.values())


def test_adapters_train_on_low_rank_matrices_and_merge_into_them(ids, tmp_path):
    """LoRA and low-rank + sparse adapters see the factors as the plain linears that they are."""
    from sentei.recover.tune.adapters import ADAPTERS, Context
    from sentei.recover.tune.adapters.base import linears

    model = tiny_model("llama")
    small = cut(model, ranked(model, {"q_proj": 9, "up_proj": 11}), ids)
    names = [name for name in linears(small) if name.endswith((".a", ".b"))]
    assert len(names) == 2 * 2 * 4
    before = small(ids).logits
    adapted = ADAPTERS["lora"].wrap(small, 20_000, Context(lambda: None, 0, "gradient"))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.05, generator=torch.Generator().manual_seed(3))
        tuned = adapted(ids).logits
        merged = adapted.merge_and_unload()(ids).logits
    assert not torch.allclose(tuned, before, atol=1e-3)
    torch.testing.assert_close(merged, tuned, rtol=1e-3, atol=1e-3)


def test_eight_bits_on_top_of_low_rank(ids):
    """Dynamic 8-bit quantisation finds the factors, and hurts them about as little as the dense matrices."""
    model = tiny_model("llama")
    small = cut(model, ranked(model, {"q_proj": 12, "up_proj": 20}), ids)
    errors = []
    with torch.no_grad():
        for net in (model, small):
            quantised = torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear}, dtype=torch.qint8)
            errors.append(((quantised(ids).logits - net(ids).logits).norm() / net(ids).logits.norm()).item())
    assert "quantized" in type(quantised.model.layers[0].self_attn.q_proj.a).__module__
    assert errors[1] <= 2 * errors[0]


def test_refinement_is_part_of_a_plan(ids):
    model = tiny_model("llama")
    decided = plan(measure(model, ids), Budget(sparsity=0.3), "auto", refine="block")
    plain = cut(model, decided.model_copy(update={"refine": "none"}), ids)
    refined = cut(model, decided, ids)
    with torch.no_grad():
        wanted = model(ids).logits
        errors = [(small(ids).logits - wanted).square().mean().item() for small in (plain, refined)]
    assert errors[1] < errors[0]
    with pytest.raises(InputError, match="unknown refine 'blok'"):
        plan(measure(model, ids), Budget(sparsity=0.3), "auto", refine="blok")


def test_auto_has_no_ranks_where_the_engine_holds_none(ids):
    profile = measure(tiny_model("llama"), ids)
    pivoted = {"method": "auto", "storage": "pivoted"}  # else too small a model for ranks to pay
    ranks = {
        engine: sum(len(b.ranks) for b in plan(profile, Budget(sparsity=0.5, target_engine=engine), **pivoted).blocks)
        for engine in ("transformers", "gguf", "uniform")
    }
    assert ranks["transformers"] > 0 == ranks["gguf"] == ranks["uniform"]


def test_choose_takes_the_kind_that_loses_least_and_leaves_the_model_alone(ids):
    from sentei.data.windows import Windows
    from sentei.search.choose import choose

    model = tiny_model("llama")
    before = model(ids).logits
    made = choose(model, measure(model, ids, keep_grams=True), Budget(sparsity=0.4), Windows(ids))
    losses = {k: v for k, v in made.predicted.items() if k.startswith("loss_increase_in_place")}
    assert len(losses) == 3
    kind = {(True, True): "mixed", (True, False): "structural", (False, True): "low_rank"}
    thinned = any(len(b.ffn) < 40 or len(b.kv_groups) < 3 or b.heads_per_group < 2 for b in made.blocks)
    named = kind[thinned, any(b.ranks for b in made.blocks)]
    assert losses[f"loss_increase_in_place_{named}"] == min(losses.values())
    assert torch.equal(model(ids).logits, before)
