"""Cutting must equal masking: removing units changes nothing that zeroing them does not."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sentei.families import family_of
from sentei.families.surgery import fill, head_rows, prune, skeleton
from sentei.plan import BlockPlan, by_expert
from tiny import VARIANTS, make_plan, random_blocks, tiny_model, whole


@torch.no_grad()
def masked(model, plan):
    """The dense model with the removed units zeroed where their output enters the residual stream."""
    model = copy.deepcopy(model)
    family = family_of(model.config)
    for block, kept, size in zip(family.blocks(model), plan.blocks, plan.dense.blocks, strict=True):
        o_proj = family.linears(block, "attention").get("o_proj")
        if o_proj is not None:
            mask = torch.zeros(o_proj.in_features)
            if kept.kv_groups:
                mask[head_rows(kept, size.heads_per_group, plan.dense.head_dim)[0]] = 1
            o_proj.weight *= mask
            if not kept.kv_groups and o_proj.bias is not None:
                o_proj.bias.zero_()
        members = family.members(block, "ffn")
        each = by_expert(kept.ffn, size.experts) if size.experts else [kept.ffn]
        for own, linears in zip(each, members, strict=True) if members else ():
            down_proj = linears["down_proj"]
            mask = torch.zeros(down_proj.in_features)
            mask[own] = 1
            down_proj.weight *= mask
            if not own and down_proj.bias is not None:
                down_proj.bias.zero_()
        if family.experts(block) and any(each):
            mask_router(family.router(block), [bool(own) for own in each])
    return model


def mask_router(router, kept):
    """A router that chooses as if the experts that are gone had never been there."""

    def forward(hidden):
        scores = (hidden.flatten(0, -2) @ router.weight.T).masked_fill(~torch.tensor(kept), -torch.inf).softmax(-1)
        weights, picked = scores.topk(min(router.top_k, sum(kept)))
        if getattr(router, "norm_topk_prob", True):  # Mixtral's always does
            weights = weights / weights.sum(-1, keepdim=True)
        return scores, weights, picked

    router.forward = forward


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def shape_of(model):
    return family_of(model.config).shape(model.config)


@pytest.mark.parametrize("seed", range(4))
def test_pruned_equals_masked(tiny, ids, seed):
    plan = make_plan(tiny, random_blocks(shape_of(tiny), seed))
    torch.testing.assert_close(logits(prune(tiny, plan), ids), logits(masked(tiny, plan), ids), atol=2e-4, rtol=1e-4)


def test_masking_matters(tiny, ids):
    """The comparison above could not fail if the tiny models did not feel a cut."""
    plan = make_plan(tiny, random_blocks(shape_of(tiny), 0))
    assert (logits(tiny, ids) - logits(masked(tiny, plan), ids)).abs().max() > 0.1


@st.composite
def plans(draw):
    model = tiny_model(draw(st.sampled_from(sorted(VARIANTS))), num_hidden_layers=2)
    return model, make_plan(model, random_blocks(shape_of(model), draw(st.integers(0, 10_000))))


@settings(max_examples=25, deadline=None)
@given(plans())
def test_pruned_equals_masked_for_any_plan(case):
    model, plan = case
    ids = torch.arange(3, 15)[None]
    pruned = prune(model, plan)
    torch.testing.assert_close(logits(pruned, ids), logits(masked(model, plan), ids), atol=2e-4, rtol=1e-4)
    assert sum(p.numel() for p in pruned.parameters()) == plan.shape().params()


def test_within_group_heads_may_differ_from_group_to_group(grouped, ids):
    blocks = whole(shape_of(grouped))
    blocks[1] = BlockPlan(kv_groups=[0, 2], query_heads=[[1], [0]], ffn=list(range(40)))
    plan = make_plan(grouped, blocks)
    torch.testing.assert_close(
        logits(prune(grouped, plan), ids), logits(masked(grouped, plan), ids), atol=2e-4, rtol=1e-4
    )


def test_cutting_nothing_changes_nothing(tiny, ids):
    torch.testing.assert_close(logits(prune(tiny, make_plan(tiny, whole(shape_of(tiny)))), ids), logits(tiny, ids))


def test_cutting_twice_equals_cutting_once(grouped, ids):
    blocks = whole(shape_of(grouped))
    blocks[1] = BlockPlan(kv_groups=[0, 2], query_heads=[[0, 1]] * 2, ffn=list(range(10, 40)))
    once = prune(grouped, make_plan(grouped, blocks))
    again = whole(shape_of(once))
    again[1] = BlockPlan(kv_groups=[1], query_heads=[[1]], ffn=[0, 5])
    again[2] = BlockPlan(kv_groups=[], query_heads=[], ffn=[0])
    twice = prune(once, make_plan(once, again))
    blocks[1] = BlockPlan(kv_groups=[2], query_heads=[[1]], ffn=[10, 15])
    blocks[2] = again[2]
    torch.testing.assert_close(logits(twice, ids), logits(prune(grouped, make_plan(grouped, blocks)), ids))


def test_new_biases_start_at_zero_and_old_ones_stay(tiny, ids):
    blocks = random_blocks(shape_of(tiny), 3, skip=0)
    plain, biased = (prune(tiny, make_plan(tiny, blocks, name)) for name in ("none", "bias"))
    torch.testing.assert_close(logits(plain, ids), logits(biased, ids))
    family = family_of(tiny.config)
    if not shape_of(tiny).qk_norm_over_heads:
        assert all(family.linears(b, "attention")["o_proj"].bias is not None for b in family.blocks(biased))
    members = [own for block in family.blocks(biased) for own in family.members(block, "ffn")]
    assert members and all(own["down_proj"].bias is not None for own in members)


@pytest.mark.parametrize("seed", [1, 2])
def test_generation_with_and_without_cache_agree(tiny, ids, seed):
    pruned = prune(tiny, make_plan(tiny, random_blocks(shape_of(tiny), seed, skip=0.5)))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    assert torch.equal(pruned.generate(ids, **options), pruned.generate(ids, use_cache=False, **options))


def test_the_first_windowed_block_may_lose_its_attention(ids):
    """The cache length of windowed blocks is read from the first of them, which then never fills it."""
    model = tiny_model("qwen2-window")
    blocks = whole(shape_of(model))
    blocks[1] = BlockPlan(kv_groups=[], query_heads=[], ffn=[1])
    pruned = prune(model, make_plan(model, blocks))
    assert pruned.config.layer_types[1] == "full_attention"
    with torch.no_grad():
        first = pruned(ids[:, :9], use_cache=True)
        rest = pruned(ids[:, 9:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), logits(pruned, ids), atol=2e-4, rtol=1e-4)


def test_skeleton_copies_what_is_outside_blocks_and_leaves_the_dense_model_alone(tiny):
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    plan = make_plan(tiny, random_blocks(shape_of(tiny), 1))
    new = skeleton(tiny, plan.shape())
    family = family_of(tiny.config)
    names = [name for name in before if not name.startswith(family.blocks_at)]
    assert {f"{family.embedding_at}.weight", f"{family.norm_at}.weight"} < set(names)
    for name in names:
        assert torch.equal(new.state_dict()[name], before[name])
        assert new.state_dict()[name].data_ptr() != tiny.state_dict()[name].data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    assert not new.training


def test_tied_heads_stay_tied():
    model = tiny_model("llama-tied")
    pruned = prune(model, make_plan(model, random_blocks(shape_of(model), 1)))
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


def test_dtype_is_kept_and_rotary_frequencies_stay_exact(ids):
    model = tiny_model("llama").to(torch.bfloat16)
    plan = make_plan(model, random_blocks(shape_of(model), 1))
    pruned = prune(model, plan)
    assert {value.dtype for value in pruned.parameters()} == {torch.bfloat16}
    assert torch.equal(pruned.model.rotary_emb.inv_freq, tiny_model("llama").model.rotary_emb.inv_freq)
    torch.testing.assert_close(logits(pruned, ids), logits(masked(model, plan), ids), atol=0.5, rtol=0.05)


def test_pruned_models_can_be_trained(tiny, ids):
    pruned = prune(tiny, make_plan(tiny, random_blocks(shape_of(tiny), 2), "bias")).train()
    pruned(ids, labels=ids).loss.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in pruned.parameters())


def test_attention_implementation_can_be_changed_afterwards(ids):
    model = tiny_model("llama")
    pruned = prune(model, make_plan(model, random_blocks(shape_of(model), 4)))
    expected = logits(pruned, ids)
    pruned.set_attn_implementation("eager")
    with torch.no_grad():
        out = pruned(ids, output_attentions=True)
    torch.testing.assert_close(out.logits, expected, atol=1e-4, rtol=1e-4)
    assert any(weights is not None for weights in out.attentions)


def test_fill_works_block_by_block(tiny, ids):
    plan = make_plan(tiny, random_blocks(shape_of(tiny), 6))
    family = family_of(tiny.config)
    new = skeleton(tiny, plan.shape())
    for i in reversed(range(4)):
        fill(family, family.blocks(new)[i], family.blocks(tiny)[i], plan.blocks[i], plan.dense)
    assert torch.equal(logits(new, ids), logits(prune(tiny, plan), ids))


def test_real_model(stories):
    ids = stories.tokenizer("Once upon a time, there was a little girl named Lily.", return_tensors="pt").input_ids
    plan = make_plan(stories.model, random_blocks(shape_of(stories.model), 0))
    torch.testing.assert_close(
        logits(prune(stories.model, plan), ids), logits(masked(stories.model, plan), ids), atol=1e-4, rtol=1e-4
    )
