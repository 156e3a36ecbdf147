import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from sentei.data.windows import Windows
from sentei.errors import InputError
from sentei.families import family_of
from sentei.families.modeling_sentei import LowRankLinear
from sentei.families.surgery import prune
from sentei.progress import Progress
from sentei.prune import refine as module
from sentei.prune.refine import Settings, refine_blocks
from tiny import make_plan, random_blocks, tiny_model, whole

QUICK = Settings(steps=24, learning_rate=3e-3, batch_tokens=64)


def cut_pair(variant="llama", seed=1, **sizes):
    """A tiny model with less wild weights, and a cut of it."""
    dense = tiny_model(variant, **sizes)
    with torch.no_grad():
        for p in dense.parameters():
            if p.ndim > 1:
                p.mul_(0.3)
    shape = family_of(dense.config).shape(dense.config)
    return dense, prune(dense, make_plan(dense, random_blocks(shape, seed)))


def tokens(count=16, length=12, seed=0):
    return torch.randint(3, 128, (count, length), generator=torch.Generator().manual_seed(seed))


def squared_error(dense, pruned, ids):
    with torch.no_grad():
        return (
            (dense.base_model(ids).last_hidden_state - pruned.base_model(ids).last_hidden_state).square().mean().item()
        )


PAIR = cut_pair(num_hidden_layers=1)


def test_refined_blocks_are_nearer_to_the_dense_ones_on_fresh_tokens(tiny, ids):
    shape = family_of(tiny.config).shape(tiny.config)
    pruned = prune(tiny, make_plan(tiny, random_blocks(shape, 3)))
    before = squared_error(tiny, pruned, tokens(seed=9))
    found = refine_blocks(tiny, pruned, Windows(tokens(64)), Settings(steps=40, learning_rate=1e-2, batch_tokens=96))
    assert squared_error(tiny, pruned, tokens(seed=9)) < 0.95 * before
    assert found.blocks and all(b.after <= b.before for b in found.blocks)
    assert all((b.step == 0) == (b.after == b.before) for b in found.blocks)
    behind_norms = family_of(tiny.config).ffn_part.after is not None  # there few steps help less often
    assert sum(b.after < b.before for b in found.blocks) >= (1 if behind_norms else len(found.blocks) / 2)


def test_the_dense_model_and_all_but_the_blocks_stay():
    dense, pruned = cut_pair()
    dense_before, before = copy.deepcopy(dense.state_dict()), copy.deepcopy(pruned.state_dict())
    refine_blocks(dense, pruned, Windows(tokens()), QUICK)
    assert all(torch.equal(dense_before[key], value) for key, value in dense.state_dict().items())
    changed = {key for key, value in pruned.state_dict().items() if not torch.equal(before[key], value)}
    assert changed and all(key.startswith("model.layers.") for key in changed)
    assert all(p.requires_grad for p in pruned.parameters()) and not any(
        p.grad is not None for p in pruned.parameters()
    )


def test_only_the_output_matrices_where_asked():
    dense, pruned = cut_pair()
    before = copy.deepcopy(pruned.state_dict())
    refine_blocks(dense, pruned, Windows(tokens()), Settings(steps=8, learning_rate=1e-3, parameters="output"))
    changed = {key.split(".")[-2] for key, value in pruned.state_dict().items() if not torch.equal(before[key], value)}
    assert changed and changed <= {"o_proj", "down_proj"}


def test_what_equals_the_dense_block_is_not_trained():
    dense, _ = cut_pair()
    shape = family_of(dense.config).shape(dense.config)
    blocks = whole(shape)
    blocks[2] = blocks[2].model_copy(update={"ffn": blocks[2].ffn[::2]})
    pruned = prune(dense, make_plan(dense, blocks))
    found = refine_blocks(dense, pruned, Windows(tokens()), QUICK)
    assert [b.block for b in found.blocks] == [2, 3]  # the last gets other inputs, which it may mend


def test_a_block_stays_as_it_was_where_nothing_helps():
    dense, pruned = cut_pair()
    before = copy.deepcopy(pruned.state_dict())
    found = refine_blocks(dense, pruned, Windows(tokens()), Settings(steps=4, learning_rate=1e4))
    assert all(b.step == 0 and b.after == b.before for b in found.blocks)
    assert all(torch.equal(before[key], value) for key, value in pruned.state_dict().items())


def test_a_block_without_parts_is_passed_through():
    dense, _ = cut_pair()
    shape = family_of(dense.config).shape(dense.config)
    blocks = whole(shape)
    blocks[1] = blocks[1].model_copy(update={"kv_groups": [], "query_heads": [], "ffn": []})
    pruned = prune(dense, make_plan(dense, blocks))
    found = refine_blocks(dense, pruned, Windows(tokens()), QUICK)
    assert [b.block for b in found.blocks] == [2, 3]


@pytest.mark.parametrize("pivoted", [False, True])
def test_low_rank_matrices_are_refined(pivoted):
    dense, _ = cut_pair()
    pruned = copy.deepcopy(dense)
    for block in pruned.model.layers:
        up = block.mlp.up_proj
        u, s, v = torch.linalg.svd(up.weight.detach())
        low = LowRankLinear(up.in_features, up.out_features, 8, bias=False, pivoted=pivoted)
        with torch.no_grad():
            low.a.weight.copy_(v[:8])
            low.b.weight.copy_((u[:, :8] * s[:8])[8 if pivoted else 0 :])
        block.mlp.up_proj = low
    before = copy.deepcopy(pruned.state_dict())
    error = squared_error(dense, pruned, tokens(seed=5))
    refine_blocks(dense, pruned, Windows(tokens(64)), Settings(steps=40, learning_rate=1e-2, batch_tokens=96))
    assert squared_error(dense, pruned, tokens(seed=5)) < 0.9 * error
    changed = {key for key, value in pruned.state_dict().items() if not torch.equal(before[key], value)}
    assert {"model.layers.0.mlp.up_proj.a.weight", "model.layers.0.mlp.up_proj.b.weight"} <= changed
    assert not any("order" in key for key in changed)


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    dense, pruned = cut_pair()
    states = []
    for seed in (0, 0, 1):
        refined = copy.deepcopy(pruned)
        refine_blocks(dense, refined, Windows(tokens()), Settings(steps=8, batch_tokens=24, seed=seed))
        states.append(refined.state_dict())
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert not all(torch.equal(states[0][key], value) for key, value in states[2].items())


def test_padding_does_not_count():
    dense, pruned = cut_pair()
    ids, weights = tokens(16, 12), torch.ones(16, 12)
    weights[8:, 7:] = 0
    results = []
    for filler in (0, 77):
        padded, refined = ids.clone(), copy.deepcopy(pruned)
        padded[8:, 7:] = filler
        refine_blocks(dense, refined, Windows(padded, weights), QUICK)
        results.append(refined.state_dict())
    assert all(torch.equal(results[0][key], value) for key, value in results[1].items())


def test_errors_count_by_the_weights_of_their_tokens():
    dense, pruned = PAIR
    weights = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    work = module._Refiner(family_of(pruned.config), dense, pruned, Windows(tokens(8, 6), weights), QUICK)
    work.run_dense(0)
    where = torch.tensor([2, 5]), slice(0, 4)
    off = torch.arange(4.0)[None, :, None]  # by so much is each token's output wrong
    wanted = (weights[where] * off[..., 0].square()).sum().item() * dense.config.hidden_size
    assert work._error(work.out[where] + off, where).item() == pytest.approx(wanted, rel=1e-4)


def test_bf16_models_are_trained_in_fp32_and_stay_bf16():
    dense, pruned = cut_pair()
    dense, pruned = dense.bfloat16(), pruned.bfloat16()
    before = squared_error(dense, pruned, tokens(seed=5))
    found = refine_blocks(dense, pruned, Windows(tokens(64)), Settings(steps=40, learning_rate=1e-2, batch_tokens=96))
    assert all(p.dtype == torch.bfloat16 for p in pruned.parameters())
    assert squared_error(dense, pruned, tokens(seed=5)) < 0.9 * before
    assert any(b.after < b.before for b in found.blocks)


def test_the_residual_share_moves_the_target():
    """With share 0 a block aims at what the dense one would add; with 1 at the dense stream itself."""
    dense, pruned = cut_pair()
    windows = Windows(tokens())
    for share in (0.0, 1.0):
        work = module._Refiner(family_of(pruned.config), dense, pruned, windows, Settings(residual=share))
        work.run_dense(0)
        work.cut += 1.0
        where = torch.tensor([0, 3]), slice(0, 12)
        target = work.out[where] + (1.0 - share)
        assert work._error(target, where).item() == pytest.approx(0, abs=1e-6)
        assert work._error(target + 1, where).item() == pytest.approx(2 * 12 * dense.config.hidden_size, rel=1e-4)


class Told(Progress):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def test_progress_says_memory_and_time_beforehand_and_counts_every_step(monkeypatch):
    dense, pruned = cut_pair()
    told, bars = Told(), []
    original = Progress.stage

    def stage(self, name, total=None, unit=""):
        context = original(self, name, total, unit)
        bars.append((name, total, unit))
        return context

    monkeypatch.setattr(Progress, "stage", stage)
    found = refine_blocks(dense, pruned, Windows(tokens()), QUICK, progress=told)
    assert bars == [("refine", 4 * QUICK.steps, "steps")]
    assert "GB of memory" in told.lines[0] and "about" in told.lines[1]
    assert found.record()["settings"]["steps"] == 24 and found.tokens == 16 * 12
    assert found.seconds >= sum(b.seconds for b in found.blocks) > 0


@given(steps=st.integers(1, 500))
def test_the_rate_rises_then_falls(steps):
    settings = Settings(steps=steps, learning_rate=1.0)
    rates = [settings.rate(step) for step in range(steps)]
    peak = rates.index(max(rates))
    assert math.isclose(rates[peak], 1.0) and all(r > 0 for r in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)


@examples(max_examples=25)
@given(count=st.integers(2, 40))
def test_every_window_is_trained_on_or_held_out(count):
    dense, pruned = PAIR
    work = module._Refiner(family_of(dense.config), dense, pruned, Windows(tokens(count, 4)), QUICK)
    assert sorted([*work.held.tolist(), *work.train_rows.tolist()]) == list(range(count))
    assert len(work.held) == max(1, count // 8) and len(work.train_rows) >= 1
    batches, seen = work._batches(0), set()
    while len(seen) < len(work.train_rows):
        seen |= set(next(batches)[0].tolist())
    assert seen == set(work.train_rows.tolist())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, expected more than 0"),
        ({"parameters": "some"}, "parameters is some, expected all or output"),
        ({"residual": 1.5}, "residual is 1.5, expected 0 to 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_nonsense_settings_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Settings(**values)


def test_too_few_windows_and_no_weight_are_refused():
    dense, pruned = PAIR
    with pytest.raises(InputError, match="1 calibration window; it needs two"):
        refine_blocks(dense, pruned, Windows(tokens(1)), QUICK)
    weights = torch.ones(4, 6)
    weights[3] = 0
    with pytest.raises(InputError, match="held-out windows have weight 0"):
        refine_blocks(dense, pruned, Windows(tokens(4, 6), weights), QUICK)
