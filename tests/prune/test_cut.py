import copy

import pytest
import torch

from sentei.errors import InfeasibleError, InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.measure import measure
from sentei.plan import Budget, Plan
from sentei.prune.compensation import COMPENSATIONS, RIDGES, Fit
from sentei.prune.cut import cut
from sentei.prune.methods import LOW_RANK, METHODS
from sentei.prune.planning import plan
from tiny import tiny_model


def sample(loaded, windows, length, seed):
    """Text that the model itself writes: real language for it, and as much as needed."""
    torch.manual_seed(seed)
    start = torch.full((windows, 1), loaded.model.config.bos_token_id)
    with torch.no_grad():
        return loaded.model.generate(
            start, max_new_tokens=length - 1, min_new_tokens=length - 1, do_sample=True, top_k=0, pad_token_id=0
        )


@pytest.fixture(scope="module")
def text(stories):
    return sample(stories, 96, 64, 0), sample(stories, 48, 64, 1)


@pytest.fixture(scope="module")
def profile(stories, text):
    return measure(stories, text[0], gradient_tokens=4096)


@torch.no_grad()
def loss(model, windows):
    """Nats per token."""
    logits = model(windows).logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten()).item()


@pytest.fixture(scope="module")
def damage(stories, text, profile):
    """Loss increase on text that was not used for the cut, of the Wanda-sp score at 30 % by compensation."""
    dense = loss(stories.model, text[1])
    budget = Budget(sparsity=0.3)
    plans = {name: plan(profile, budget, "wanda-sp", compensation=name) for name in COMPENSATIONS}
    return {name: loss(cut(stories, p, text[0]), text[1]) - dense for name, p in plans.items()}


def test_least_squares_beats_none_by_far(damage):
    assert damage["least-squares"] < 0.75 * damage["none"], damage


def test_pulling_the_residual_stream_back_beats_plain_least_squares(damage):
    assert damage["residual"] < 0.97 * damage["least-squares"], damage


def test_bias_on_top_does_not_hurt(damage):
    assert damage["least-squares+bias"] < 1.1 * damage["least-squares"], damage


def test_auto_beats_every_preset(stories, text, profile):
    dense = loss(stories.model, text[1])
    found = {}
    for name in METHODS:
        found[name] = loss(cut(stories, plan(profile, Budget(sparsity=0.3), name), text[0]), text[1]) - dense
    assert min(found, key=found.get) == "auto", found
    others = sorted(value for name, value in found.items() if name not in ("auto", "structural"))
    assert found["structural"] < 0.95 * others[0], found


def test_without_compensation_the_cut_is_plain_surgery(tiny, ids):
    budget = Budget(sparsity=0.3)
    decided = plan(measure(tiny, ids), budget, "wanda-sp")
    small, surgery = cut(tiny, decided, None), prune(tiny, decided)
    with torch.no_grad():
        assert torch.equal(small(ids).logits, surgery(ids).logits)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_meets_the_budget_on_every_family(tiny, ids, method):
    family = family_of(tiny.config)
    only_attention = METHODS[method].kinds == (LOW_RANK,) and family.ffn_part.experts  # experts get no ranks
    sparsity = 0.05 if only_attention else 0.25
    decided = plan(measure(tiny, ids), Budget(sparsity=sparsity), method)
    small = cut(tiny, decided, ids)
    params = sum(p.numel() for p in family.blocks(small).parameters())
    assert params == decided.predicted["block_params"] == family.shape(small.config).block_params()
    assert params <= (1 - sparsity) * decided.dense.block_params()
    with torch.no_grad():
        assert torch.isfinite(small(ids).logits).all()


def test_nothing_cut_changes_nothing(tiny, ids):
    decided = plan(measure(tiny, ids), Budget(sparsity=0.0), "auto")
    with torch.no_grad():
        assert torch.allclose(cut(tiny, decided, ids)(ids).logits, tiny(ids).logits, atol=1e-5)


def test_cut_leaves_the_dense_model_alone_and_repeats_exactly(ids):
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    decided = plan(measure(model, ids), Budget(sparsity=0.3), "auto")
    one, two = cut(model, decided, ids), cut(model, decided, ids)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


def test_a_pruned_model_can_be_pruned_again(ids):
    model = tiny_model("qwen2")
    small = cut(model, plan(measure(model, ids), Budget(sparsity=0.2), "auto"), ids)
    again = plan(measure(small, ids), Budget(sparsity=0.2), "auto")
    smaller = cut(small, again, ids)
    assert again.dense == family_of(small.config).shape(small.config)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters())


def test_a_plan_for_another_model_is_refused(ids):
    decided = plan(measure(tiny_model("llama"), ids), Budget(sparsity=0.2), "random")
    with pytest.raises(InputError, match="the plan is for another model"):
        cut(tiny_model("llama-tied"), decided, ids)


def test_data_are_asked_for_only_where_they_are_needed(ids):
    model = tiny_model("llama")
    decided = plan(measure(model, ids), Budget(sparsity=0.2), "numerical")
    with pytest.raises(InputError, match="calibration data are needed"):
        cut(model, decided, None)


def test_the_fit_is_least_squares():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2000, 10, generator=g) + 1, torch.randn(6, 10, generator=g)
    target = x @ torch.randn(10, 6, generator=g) + 2 + 0.1 * torch.randn(2000, 6, generator=g)
    for name in ("least-squares", "least-squares+bias"):
        fit = Fit(COMPENSATIONS[name], weight)
        for rows in range(0, 2000, 100):
            fit.add(x[rows : rows + 100], target[rows : rows + 100])
        solved = fit.solve()
        found, bias, ridge = solved.weight, solved.bias, solved.ridge
        assert ridge <= RIDGES[1]  # plenty of data, little noise
        inputs = torch.cat([x, torch.ones(2000, 1)], 1) if bias is not None else x
        wanted = torch.linalg.lstsq(inputs.double(), target.double()).solution
        torch.testing.assert_close(found.T, wanted[:10], rtol=0, atol=2e-2)
        if bias is not None:
            torch.testing.assert_close(bias, wanted[10], rtol=0, atol=5e-2)


def test_the_ridge_grows_where_data_are_few_and_noisy():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 40, generator=g), torch.zeros(3, 40)
    fit = Fit(COMPENSATIONS["least-squares"], weight)
    for rows in range(0, 64, 4):
        fit.add(x[rows : rows + 4], torch.randn(4, 3, generator=g))  # nothing to learn
    assert fit.solve().ridge == RIDGES[-1]


def test_plans_survive_the_disk_and_say_what_is_wrong(tmp_path, ids):
    decided = plan(measure(tiny_model("llama"), ids), Budget(sparsity=0.2), "auto")
    decided.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == decided
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "typo.json").write_text(text.replace('"blocks"', '"block"', 1))
    with pytest.raises(InputError, match=r"typo\.json.*"):
        Plan.load(tmp_path / "typo.json")
    (tmp_path / "torn.json").write_text(text[:100])
    with pytest.raises(InputError, match="is not JSON"):
        Plan.load(tmp_path / "torn.json")


def test_a_budget_above_the_dense_model_is_refused(ids):
    profile = measure(tiny_model("llama"), ids)
    with pytest.raises(InfeasibleError, match="ask for less"):
        plan(profile, Budget(params=10**9), "random")


def test_an_unknown_method_names_the_nearest(ids):
    with pytest.raises(InputError, match="did you mean 'numerical'"):
        plan(measure(tiny_model("llama"), ids), Budget(sparsity=0.1), "numericle")


@pytest.mark.parametrize("method", ["structural", "flap", "wanda-sp"])
@pytest.mark.parametrize("budget", [{"sparsity": 0.25}, {"bytes": 170_000, "context": 16}])
def test_a_model_with_added_biases_is_cut_again_within_the_budget(ids, method, budget):
    profile = measure(tiny_model("llama"), ids)
    once = cut(tiny_model("llama"), plan(profile, Budget(sparsity=0.2), "wanda-sp", compensation="bias"), ids)
    shape = family_of(once.config).shape(once.config)
    assert any(b.o_bias for b in shape.blocks) and any(b.down_bias for b in shape.blocks)
    wanted = Budget(**budget)
    decided = plan(measure(once, ids), wanted, method)
    twice = cut(once, decided, ids)
    params = sum(p.numel() for p in family_of(once.config).blocks(twice).parameters())
    assert params == decided.predicted["block_params"]
    assert wanted.cost(decided.shape()) <= wanted.target(decided.dense)
    assert family_of(once.config).shape(twice.config) == decided.shape()


@pytest.mark.parametrize("pair", [("residual", "residual+bias"), ("least-squares", "least-squares+bias")])
def test_a_bias_that_has_no_place_is_not_fitted(ids, pair):
    """A whole FFN goes: no part that stays is cut, so none gets a bias, and the weights are fitted without one."""
    model = tiny_model("llama")
    decided = plan(measure(model, ids), Budget(sparsity=0.0), "structural")
    decided.blocks[0] = decided.blocks[0].model_copy(update={"ffn": []})
    with_bias = [decided.model_copy(update={"compensation": name}) for name in pair]
    plain, biased = (cut(model, p, ids).state_dict() for p in with_bias)
    assert plain.keys() == biased.keys() and all(torch.equal(plain[key], biased[key]) for key in plain)
    assert not torch.equal(plain["model.layers.1.mlp.down_proj.weight"], model.model.layers[1].mlp.down_proj.weight)


def test_low_rank_models_say_what_to_measure_instead(ids):
    small = cut(tiny_model("llama"), plan(measure(tiny_model("llama"), ids), Budget(sparsity=0.3), "low-rank"), ids)
    with pytest.raises(InputError, match="low-rank matrices already; measure the model that it was made from"):
        measure(small, ids)


def test_the_bias_is_the_dense_mean_of_what_went(ids):
    """FLAP's, in every block: removed columns times the mean of their dense inputs, whatever was cut before."""
    model = tiny_model("llama-tied")
    decided = plan(measure(model, ids), Budget(sparsity=0.2), "flap", protect="none")
    small = cut(model, decided, ids)
    family = family_of(model.config)
    seen = {}
    handles = [
        linear.register_forward_pre_hook(lambda _m, x, key=(i, name): seen.__setitem__(key, x[0].flatten(0, 1).mean(0)))
        for i, block in enumerate(family.blocks(model))
        for name, linear in (("ffn", block.mlp.down_proj), ("attention", block.self_attn.o_proj))
    ]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    checked = 0
    for i, (kept, block) in enumerate(zip(decided.blocks, family.blocks(small), strict=True)):
        if 0 < len(kept.ffn) < 40:
            gone = [j for j in range(40) if j not in kept.ffn]
            weight = family.blocks(model)[i].mlp.down_proj.weight[:, gone]
            torch.testing.assert_close(block.mlp.down_proj.bias, weight @ seen[i, "ffn"][gone], rtol=1e-4, atol=1e-5)
            checked += 1
        if kept.kv_groups and (len(kept.kv_groups), kept.heads_per_group) != (3, 2):
            stay = {g * 2 + h for g, heads in zip(kept.kv_groups, kept.query_heads, strict=True) for h in heads}
            gone = [j for j in range(48) if j // 8 not in stay]
            weight = family.blocks(model)[i].self_attn.o_proj.weight[:, gone]
            wanted = weight @ seen[i, "attention"][gone]
            torch.testing.assert_close(block.self_attn.o_proj.bias, wanted, rtol=1e-4, atol=1e-5)
            checked += 1
    assert checked >= 4, checked
