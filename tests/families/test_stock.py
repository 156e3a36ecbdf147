"""Models of equal blocks become stock classes."""

from __future__ import annotations

import pytest
import torch

from sentei.families import family_of
from sentei.families.stock import as_stock, stock_of
from sentei.families.surgery import prune
from sentei.plan import BlockPlan
from tiny import make_plan, tiny_model, whole

FULL, TWO = list(range(40)), BlockPlan(kv_groups=[0, 2], query_heads=[[0, 1]] * 2, ffn=list(range(8, 40)))
GONE = BlockPlan(kv_groups=[], query_heads=[], ffn=[])


def cut(model, blocks, compensation="none"):
    return prune(model, make_plan(model, blocks, compensation))


def shape_of(model):
    return family_of(model.config).shape(model.config)


def same(one, other, ids):
    with torch.no_grad():
        torch.testing.assert_close(one(ids).logits, other(ids).logits)


def test_equal_ffn_widths(tiny, ids):
    shape = shape_of(tiny)
    if shape.blocks[0].experts:
        return  # see test_equal_experts
    pruned = cut(tiny, [block.model_copy(update={"ffn": FULL[5:]}) for block in whole(shape)])
    stock = as_stock(pruned)
    if tiny.config.model_type == "qwen2":  # 6 heads of 8 are not the hidden size, 42
        assert stock is None
        return
    assert type(stock) is type(tiny) and getattr(stock.config, family_of(tiny.config).ffn_size) == 35
    same(stock, pruned, ids)


def thinned(size, experts, removed):
    """Channels of a block whose first `experts` experts lose their first `removed` channels, and whose others go."""
    each = size.experts[0]
    return [i * each + channel for i in range(experts) for channel in range(removed, each)]


@pytest.mark.parametrize(("experts", "removed", "fits"), [(4, 8, True), (3, 8, True), (1, 0, True), (4, 5, False)])
@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe"])
def test_equal_experts(ids, variant, experts, removed, fits):
    """Fused products want rows of 16 bytes, so that other widths than multiples of 8 stay in our class."""
    model = tiny_model(variant)
    shape = shape_of(model)
    plans = zip(whole(shape), shape.blocks, strict=True)
    pruned = cut(model, [p.model_copy(update={"ffn": thinned(size, experts, removed)}) for p, size in plans])
    stock = as_stock(pruned)
    assert (stock is not None) == fits
    if stock is not None:
        assert type(stock) is type(model) and stock.config.num_experts == experts
        assert stock.config.num_experts_per_tok == min(experts, 2)
        assert shape_of(stock) == shape_of(pruned).model_copy(update={"top_k": min(experts, 2)})
        same(stock, pruned, ids)


def test_blocks_with_and_without_experts_are_not_alike():
    model = tiny_model("qwen3_moe-mixed")
    assert as_stock(cut(model, whole(shape_of(model)))) is None


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("llama", "MistralForCausalLM"),  # 42 is no multiple of 4 heads
        ("llama-tied", "MistralForCausalLM"),
        ("llama-biases", None),
        ("mistral-window", "MistralForCausalLM"),
        ("qwen2", None),
        ("qwen3", "Qwen3ForCausalLM"),
        ("qwen3-biases", "Qwen3ForCausalLM"),
    ],
)
def test_fewer_heads(ids, variant, expected):
    pruned = cut(tiny_model(variant), [TWO] * 4)
    stock = as_stock(pruned)
    assert (type(stock).__name__ if stock is not None else None) == expected
    if stock is not None:
        same(stock, pruned, ids)
        assert stock.lm_head.weight is stock.model.embed_tokens.weight or "tied" not in variant


def test_llama_as_mistral_sees_as_far_as_before():
    stock = as_stock(cut(tiny_model("llama"), [TWO] * 4))
    assert stock.config.sliding_window is None and not hasattr(stock.config, "pretraining_tp")


@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen3"])
def test_whole_blocks_that_are_gone_are_left_out(ids, variant):
    model = tiny_model(variant)
    blocks = whole(shape_of(model))
    blocks[2] = GONE
    pruned = cut(model, blocks)
    stock = as_stock(pruned)
    assert stock.config.num_hidden_layers == 3 == len(stock.model.layers)
    same(stock, pruned, ids)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(stock.generate(ids, **options), pruned.generate(ids, **options))


def test_windows_move_with_their_blocks(ids):
    model = tiny_model("qwen2-window", hidden_size=48)
    blocks = whole(shape_of(model))
    blocks[1] = GONE
    stock = as_stock(cut(model, blocks))
    assert stock.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert stock.config.max_window_layers == 1
    same(stock, cut(model, blocks), ids)


@pytest.mark.parametrize("odd", [TWO, BlockPlan(kv_groups=[], query_heads=[], ffn=FULL), "bias"])
def test_unequal_blocks_and_new_biases_stay(odd):
    model = tiny_model("mistral")
    if odd == "bias":
        assert as_stock(cut(model, [TWO] * 4, "bias")) is None
        return
    blocks = whole(shape_of(model))
    blocks[1] = odd
    assert as_stock(cut(model, blocks)) is None


def test_a_dense_model_is_its_own_stock_form(tiny, ids):
    stock = stock_of(tiny)
    assert as_stock(stock) is stock and as_stock(tiny).state_dict().keys() == stock.state_dict().keys()
    same(stock, tiny, ids)


def test_no_weights_are_copied():
    pruned = cut(tiny_model("qwen3"), [TWO] * 4)
    one, other = (m.model.layers[1].mlp.up_proj.weight for m in (pruned, as_stock(pruned)))
    assert one.data_ptr() == other.data_ptr()
