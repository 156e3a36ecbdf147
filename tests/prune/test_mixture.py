"""Cutting mixtures of experts: what goes, what it costs, and how what stays is fitted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.surgery import prune
from sentei.measure import measure
from sentei.models.load import digest
from sentei.plan import BlockPlan, Budget
from sentei.prune.cut import cut
from sentei.prune.planning import plan
from tiny import MIXTURES, make_plan, tiny_model, whole

TOKENS = torch.randint(3, 128, (32, 32), generator=torch.Generator().manual_seed(2))


def shape_of(model: Any) -> Any:
    return family_of(model.config).shape(model.config)


def first_block(model: Any, channels: list[int], compensation: str = "none") -> Any:
    """A plan that keeps everything but some channels of block 0."""
    blocks = whole(shape_of(model))
    blocks[0] = blocks[0].model_copy(update={"ffn": channels})
    return make_plan(model, blocks, compensation).model_copy(update={"model": digest(model)})


@torch.no_grad()
def output_of(model: Any) -> Tensor:
    """What the FFN part of block 0 puts out, `[tokens, hidden]`."""
    seen: list[Tensor] = []
    mlp = family_of(model.config).blocks(model)[0].mlp
    handle = mlp.register_forward_hook(lambda _m, _i, out: seen.append(out.flatten(0, 1)))
    model(TOKENS)
    handle.remove()
    return seen[0]


@torch.no_grad()
def channels_of(model: Any) -> Tensor:
    """Channels of all experts of block 0, zero for tokens that are sent elsewhere: `[tokens, channels]`."""
    family, columns = family_of(model.config), []
    for expert in family.experts(family.blocks(model)[0]):
        seen: dict[str, Tensor] = {}
        handles = [
            expert.register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.update(tokens=inputs[1])),
            expert.down_proj.register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.update(x=inputs[0])),
        ]
        model(TOKENS)
        for handle in handles:
            handle.remove()
        columns.append(torch.zeros(TOKENS.numel(), seen["x"].shape[1]).index_copy(0, seen["tokens"], seen["x"]))
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("compensation", ["least-squares", "residual"])
@pytest.mark.parametrize(("picked", "near"), [(1, 1.08), (2, 1.1)])
def test_experts_are_fitted_nearly_as_well_as_all_at_once(picked: int, near: float, compensation: str) -> None:
    """Against the least squares over the channels of all experts, without a ridge. Nothing before the part was cut."""
    model = tiny_model("mixtral", num_experts_per_tok=picked)
    kept = [i for i in range(160) if i % 2]
    plain = prune(model, first_block(model, kept))
    fitted = cut(model, first_block(model, kept, compensation), TOKENS)
    wanted, x = output_of(model).double(), channels_of(plain).double()
    best = (x @ torch.linalg.lstsq(x, wanted).solution - wanted).square().sum()
    before, after = ((output_of(small) - wanted).square().sum() for small in (plain, fitted))
    assert best <= after * 1.001 and after < near * best and after < 0.9 * before


def test_a_bias_is_the_mean_of_what_goes() -> None:
    model = tiny_model("mixtral", num_experts_per_tok=1)
    kept = [i for i in range(160) if i % 4]
    fitted, wanted = cut(model, first_block(model, kept, "bias"), TOKENS), output_of(model)
    torch.testing.assert_close(output_of(fitted).mean(0), wanted.mean(0), rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["mixtral", "qwen3_moe"])
def test_an_expert_goes_with_its_row_of_the_router(variant: str) -> None:
    """The others keep their rows; where fewer are left than a token is sent to, all of them compute it."""
    model = tiny_model(variant)
    each = shape_of(model).blocks[0].experts[0]
    for left in ([0, 2, 3], [3]):
        channels = [e * each + c for e in left for c in range(each)]
        small = cut(model, first_block(model, channels, "least-squares"), TOKENS)
        mlp, dense = (family_of(m.config).blocks(m)[0].mlp for m in (small, model))
        assert torch.equal(mlp.gate.weight, dense.gate.weight[left]) and len(mlp.experts) == len(left)
        assert mlp.gate.top_k == min(2, len(left)) and model.model.layers[0].mlp.gate.top_k == 2
        assert torch.equal(mlp.experts[0].gate_proj.weight, dense.experts[left[0]].gate_proj.weight)
        assert torch.isfinite(small(TOKENS).logits).all()


@pytest.mark.parametrize("variant", MIXTURES)
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_budget_of_flops_keeps_every_expert(variant: str, share: float) -> None:
    model = tiny_model(variant)
    made = plan(measure(model, TOKENS), Budget(flops=share), "structural")
    dense, small = made.dense, made.shape()
    assert small.flops(1024) <= share * dense.flops(1024)
    pairs = [(len(a.experts), len(b.experts)) for a, b in zip(dense.blocks, small.blocks, strict=True) if b.ffn]
    assert all(before == after for before, after in pairs)


def test_flops_are_those_of_the_experts_that_compute_a_token() -> None:
    """By hand: attention, its norms, router and two of four experts of 40 channels."""
    shape = shape_of(tiny_model("mixtral"))
    attention = 48 * (48 + 24 + 24 + 48) + 48
    ffn = 2 * 3 * 40 * 48 + 4 * 48 + 48
    assert shape.flops(10) == 4 * (2 * (attention + ffn) + 4 * 8 * 6 * 10)


def test_widths_that_an_engine_fixes_are_the_same_in_all_experts() -> None:
    profile = measure(tiny_model("qwen3_moe"), TOKENS)
    uniform = plan(profile, Budget(sparsity=0.3, target_engine="uniform"), "structural").shape()
    assert len({block.experts for block in uniform.blocks}) == 1 and uniform.blocks[0].experts == (8,) * 4
    for block in plan(profile, Budget(sparsity=0.3, ffn_multiple=4), "structural").shape().blocks:
        assert len(set(block.experts)) <= 1 and all(width % 4 == 0 for width in block.experts)


def test_refinement_trains_experts() -> None:
    model = tiny_model("mixtral")
    made = plan(measure(model, TOKENS), Budget(sparsity=0.3), "flap", refine="block")
    refined, plain = (cut(model, decided, TOKENS) for decided in (made, made.model_copy(update={"refine": "none"})))
    with torch.no_grad():
        dense, *found = (net.base_model(TOKENS).last_hidden_state for net in (model, refined, plain))
        errors = [(states - dense).square().mean() for states in found]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("engine", ["gguf", "vllm", "onnx", "openvino"])
def test_engines_that_hold_no_experts_are_refused(engine: Any) -> None:
    profile = measure(tiny_model("mixtral"), TOKENS)
    with pytest.raises(InputError, match=f"has experts, and sentei writes no mixture of experts for engine '{engine}'"):
        plan(profile, Budget(sparsity=0.3, target_engine=engine), "structural")


def test_ranks_of_experts_are_refused() -> None:
    model = tiny_model("mixtral")
    block = BlockPlan(kv_groups=[0], query_heads=[[0]], ffn=[0, 50], ranks={"up_proj": 1})
    with pytest.raises(ValueError, match="block 0: rank 1 of up_proj: experts have no low-rank matrices"):
        make_plan(model, [block, *whole(shape_of(model))[1:]])
