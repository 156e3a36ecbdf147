"""What is measured of experts: each on the tokens that the router sends to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.families import family_of
from sentei.measure import Profile, measure
from sentei.plan import by_expert
from tiny import MIXTURES, tiny_model

TOKENS = torch.randint(3, 128, (6, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def channels_of(model: Any, index: int) -> list[Tensor]:
    """Channels of each expert of a block on all tokens, weighted as the router says, `[tokens, n]`; by the formulas."""
    family = family_of(model.config)
    block = family.blocks(model)[index]
    seen: list[Tensor] = []
    handle = block.mlp.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].flatten(0, 1)))
    model(TOKENS)
    handle.remove()
    (x,) = seen
    weights, picked = (x @ block.mlp.gate.weight.T).softmax(-1).topk(model.config.num_experts_per_tok)
    if getattr(model.config, "norm_topk_prob", True):
        weights = weights / weights.sum(-1, keepdim=True)
    shares = torch.zeros(len(x), 4).scatter(1, picked, weights)
    members = family.members(block, "ffn")
    inner = [torch.nn.functional.silu(x @ m["gate_proj"].weight.T) * (x @ m["up_proj"].weight.T) for m in members]
    return [one * shares[:, i : i + 1] for i, one in enumerate(inner)]


@pytest.mark.parametrize("variant", MIXTURES)
def test_statistics_are_those_of_the_tokens_that_are_sent(variant: str) -> None:
    model = tiny_model(variant)
    profile = measure(model, TOKENS)
    for index in (0, 2):
        stats = profile.blocks[index].ffn
        x = torch.cat(channels_of(model, index), dim=1)
        torch.testing.assert_close(stats.mean, x.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(stats.input_energy, x.square().mean(0), rtol=1e-4, atol=1e-5)
        assert not stats.ranks, "experts get no ranks"


def test_taylor_is_that_of_a_plain_backward_pass() -> None:
    model = tiny_model("mixtral").requires_grad_(True)
    profile, family = measure(model, TOKENS, gradient_tokens=TOKENS.numel()), family_of(model.config)
    model.zero_grad()
    logits = model(TOKENS).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, TOKENS[:, 1:].flatten(), reduction="sum").backward()
    for stats, block in zip(profile.blocks, family.blocks(model), strict=True):
        wanted = []
        for own in family.members(block, "ffn"):
            *inner, down = ((w.weight * w.weight.grad).abs() / TOKENS.numel() for w in own.values())
            wanted.append(sum(value.sum(1) for value in inner) + down.sum(0))
        torch.testing.assert_close(stats.ffn.taylor, torch.cat(wanted).detach(), rtol=1e-3, atol=1e-6)


def test_a_token_that_counts_twice_is_there_twice() -> None:
    model = tiny_model("mixtral")
    weights = torch.ones(TOKENS.shape)
    weights[0] = 2
    twice, plain = (
        measure(model, data, gradient_tokens=0) for data in (Windows(TOKENS, weights), torch.cat([TOKENS[:1], TOKENS]))
    )
    for one, other in zip(twice.blocks, plain.blocks, strict=True):
        torch.testing.assert_close(one.ffn.input_energy, other.ffn.input_energy, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one.ffn.mean, other.ffn.mean, rtol=1e-4, atol=1e-6)


def test_an_expert_that_no_token_is_sent_to_costs_nothing_and_goes_first() -> None:
    model = tiny_model("mixtral", num_experts_per_tok=1)
    with torch.no_grad():
        for block in model.model.layers:  # of the first two, one is above zero
            block.mlp.gate.weight[1] = -block.mlp.gate.weight[0]
            block.mlp.gate.weight[2] = 0
    assert [bool(own.any()) for own in channels_of(model, 0)] == [True, True, False, True]
    for score, curves in measure(model, TOKENS).blocks[0].curves.items():
        assert set(curves.ffn_order[:40]) == set(range(80, 120)), score
        assert curves.ffn_loss[40] == 0 < curves.ffn_loss[41], score


def test_the_orders_of_experts_are_merged(tmp_path: Any) -> None:
    """Along the merged order no loss is below the one before it, but where an expert's own order has that."""
    model = tiny_model("qwen3_moe")
    profile = measure(model, TOKENS)
    profile.save(tmp_path / "profile")
    for block, again in zip(profile.blocks, Profile.load(tmp_path / "profile").blocks, strict=True):
        assert again.curves == block.curves
        curves = block.curves["obs-fisher"]
        steps = torch.tensor(curves.ffn_loss).diff()
        dearest = torch.zeros(4)
        for channel, step in zip(curves.ffn_order, steps, strict=True):
            expert = channel // 24
            dearest[expert] = max(dearest[expert], step)
            assert dearest[expert] >= dearest.max() - 1e-12
    assert by_expert([0, 23, 24, 95], (24,) * 4) == [[0, 23], [0], [], [23]]


def test_gram_matrices_of_experts_are_not_kept() -> None:
    with pytest.raises(InputError, match=r"experts, whose Gram matrices are not kept.*measure without --keep-grams"):
        measure(tiny_model("mixtral"), TOKENS, keep_grams=True)
