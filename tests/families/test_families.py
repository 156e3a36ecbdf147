"""What families say about sizes, and walking a model block by block."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sentei.errors import InputError
from sentei.families import FAMILIES, family_of
from sentei.families.surgery import prune
from tiny import ALL, make_plan, random_blocks, tiny_model


def count(model: torch.nn.Module) -> int:
    return sum(value.numel() for value in model.parameters())


def test_shape_counts_every_parameter_of_a_dense_model(tiny):
    shape = family_of(tiny.config).shape(tiny.config)
    assert shape.params() == count(tiny)
    assert shape.block_params() == count(family_of(tiny.config).blocks(tiny))


@pytest.mark.parametrize("compensation", ["none", "least-squares+bias"])
def test_shape_counts_every_parameter_of_a_pruned_model(tiny, compensation):
    family = family_of(tiny.config)
    plan = make_plan(tiny, random_blocks(family.shape(tiny.config), seed=5), compensation)
    pruned = prune(tiny, plan)
    assert plan.shape().params() == count(pruned)
    assert plan.shape().block_params() == count(family.blocks(pruned))
    assert family.shape(pruned.config) == plan.shape()


def test_family_of_a_pruned_type_is_the_stock_family():
    assert family_of("sentei_qwen3") is FAMILIES["qwen3"] is family_of(SimpleNamespace(model_type="qwen3"))


@pytest.mark.parametrize("model_type", ["bloom", "sentei_bloom", None])
def test_unknown_architecture_says_what_is_known_and_how_to_add_one(model_type):
    expected = r"unknown architecture .*llama, mistral, .*qwen2, qwen3.*add-a-family"
    with pytest.raises(InputError, match=expected) as caught:
        family_of(SimpleNamespace(model_type=model_type))
    assert "\n" not in str(caught.value)


def test_heads_that_do_not_divide_into_groups_are_refused():
    config = tiny_model("mistral").config
    config.num_key_value_heads = 4
    with pytest.raises(InputError, match="layer 0: num_attention_heads 6 is no multiple of num_key_value_heads 4"):
        family_of(config).shape(config)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cut", [False, True])
def test_walking_block_by_block_equals_the_model(tiny, ids, cut, attention):
    family = family_of(tiny.config)
    model = prune(tiny, make_plan(tiny, random_blocks(family.shape(tiny.config), seed=7))) if cut else tiny
    if attention == "sdpa" and not model._supports_sdpa:
        pytest.skip(f"{type(model).__name__} has soft caps, which sdpa has not")
    model.set_attn_implementation(attention)
    with torch.no_grad():
        hidden = family.embed(model, ids)
        for i, block in enumerate(family.blocks(model)):
            hidden = block(hidden, **family.block_inputs(model, hidden, i))
        logits = family.logits(model, hidden)
        torch.testing.assert_close(logits, model(ids).logits)


def test_removed_parts_are_none_and_have_no_weights():
    model = tiny_model("llama")
    family = family_of(model.config)
    blocks = random_blocks(family.shape(model.config), seed=0, skip=1.0)
    pruned = prune(model, make_plan(model, blocks))
    first, second = family.blocks(pruned)[:2]
    assert family.attention(first) is not None and family.ffn(first) is None
    assert family.attention(second) is None and family.ffn(second) is None
    assert not list(second.parameters())


def test_every_registered_family_is_tested():
    assert {name for name, _ in ALL.values()} == set(FAMILIES)


def test_shape_says_how_far_blocks_see_and_in_what_dtype_they_are_stored():
    def windows(variant, **sizes):
        config = tiny_model(variant, **sizes).config
        return [b.window for b in family_of(config).shape(config).blocks]

    assert windows("llama") == windows("mistral") == windows("qwen2") == [None] * 4
    assert windows("mistral-window") == [5] * 4
    assert windows("qwen2-window") == [None, 5, 5, 5]
    model = tiny_model("llama")
    family = family_of(model.config)
    for declared, itemsize in (("bfloat16", 2), (torch.float32, 4), ("float16", 2)):
        model.config.sentei_dtype = declared
        assert family.shape(model.config).itemsize == family.shape(model.to(torch.float16).config).itemsize == itemsize
    model.config.sentei_dtype = "float17"
    with pytest.raises(InputError, match="dtype 'float17'"):
        family.shape(model.config)
