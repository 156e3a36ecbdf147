import pytest
import torch

from sentei.errors import InputError
from sentei.measure import measure
from sentei.measure.scores import SCORES
from sentei.plan import Budget
from sentei.prune.methods import METHODS
from sentei.prune.planning import curves_of, plan
from tiny import tiny_model

GRADIENT_FREE = ("numerical", "flap", "wanda-sp", "magnitude", "random", "shortgpt")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 128, (4, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def profile(ids):
    return measure(tiny_model("llama"), ids, keep_grams=True)


@pytest.fixture(scope="module")
def without_gradients(ids):
    return measure(tiny_model("llama"), ids, gradient_tokens=0)


@pytest.mark.parametrize("name", GRADIENT_FREE)
def test_methods_without_gradients_choose_the_same_whether_the_profile_has_them(name, profile, without_gradients):
    budget = Budget(sparsity=0.3)
    one, two = (plan(p, budget, name, seed=3) for p in (profile, without_gradients))
    assert one.blocks == two.blocks and one.weigh != "gradient"


def test_gradients_that_are_missing_are_no_reason_to_compare_by_something_else(without_gradients):
    with pytest.raises(InputError, match=r"--weigh gradient.*--weigh energy"):
        plan(without_gradients, Budget(sparsity=0.3), "structural", score="flap")
    assert plan(without_gradients, Budget(sparsity=0.3), "structural", score="flap", weigh="energy").weigh == "energy"


def test_flap_removes_the_lowest_standardised_scores_of_all_parts(profile):
    """Sorted as the paper does: no channel that stays has a lower z-score than one that goes, in any block."""
    decided = plan(profile, Budget(sparsity=0.15), "flap", compensation="none", protect="attention:all")
    stays, goes = [], []
    for block, kept in zip(profile.blocks, decided.blocks, strict=True):
        part = block.ffn
        variance = (part.gram.diagonal() - part.mean.square()).clamp_min(0)
        scores = (variance * part.weight.square().sum(0)).double()
        z = (scores - scores.mean()) / scores.std()
        mask = torch.zeros(len(z), dtype=torch.bool)
        mask[kept.ffn] = True
        stays += z[mask].tolist()
        goes += z[~mask].tolist()
    assert goes and max(goes) <= min(stays) + 1e-6


def test_standardised_heads_cost_what_they_weigh(profile):
    """The loss of an option over the parameters that go with it is the heads' mean score above the lowest of all."""
    found = curves_of(profile, SCORES["flap"], "standardise")
    shape = profile.shape
    for block, full in zip(found, shape.blocks, strict=True):
        assert block.attention[0].loss == 0.0 and all(option.loss > 0 for option in block.attention[1:])
        assert all(a <= b for a, b in zip(block.ffn_loss, block.ffn_loss[1:], strict=False))
        whole = next(o for o in block.attention if not o.kv_groups)
        params = shape.attention_params(full)
        channel = 3 * shape.hidden
        # a mean of standardised values is 0, so that every part costs the same shift per parameter
        assert whole.loss / params == pytest.approx(block.ffn_loss[-1] / (full.ffn * channel), rel=1e-5)


def test_share_makes_every_part_cost_one(profile):
    for block in curves_of(profile, SCORES["magnitude"], "share"):
        whole = next(o for o in block.attention if not o.kv_groups)
        assert whole.loss == pytest.approx(1.0) and block.ffn_loss[-1] == pytest.approx(1.0)


def test_taylor_sums_are_no_nats_and_price_no_ranks(profile):
    budget = Budget(sparsity=0.3)
    for name in ("adapt", "llm-pruner"):
        decided = plan(profile, budget, name)
        assert "loss_increase" not in decided.predicted
        assert all("nats" not in block.reason for block in decided.blocks)
    with pytest.raises(InputError, match="score 'taylor' is none; use --method structural, or --score obs-fisher"):
        plan(profile, budget, "auto", score="taylor")
    assert plan(profile, budget, "structural", score="taylor").score == "taylor"


def test_the_plan_says_what_was_protected_and_how_parts_were_compared(profile):
    budget = Budget(sparsity=0.2)
    for name, method in METHODS.items():
        decided = plan(profile, budget, name)
        assert (str(decided.protect), decided.weigh) == (method.protect, method.weigh) and decided.method == name
    own = plan(profile, budget, "structural", protect="first:1,last:1", weigh="energy", score="obs")
    assert own.method == "structural (changed)" and str(own.protect) == "first:1,last:1" and own.weigh == "energy"
    for i in (0, 3):
        assert own.blocks[i].kv_groups == [0, 1, 2] and len(own.blocks[i].ffn) == 40
    with pytest.raises(InputError, match="protect: "):
        plan(profile, budget, "structural", protect="fist:1")
    with pytest.raises(InputError, match="weigh"):
        plan(profile, budget, "structural", weigh="gradeint")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_leaves_alone_what_is_protected(profile, name):
    decided = plan(profile, Budget(sparsity=0.15), name, protect="first:1,last:1,attention:2")
    whole = [(len(b.kv_groups), b.heads_per_group, len(b.ffn)) == (3, 2, 40) and not b.ranks for b in decided.blocks]
    assert whole[0] and whole[3] and not all(whole)
    assert (len(decided.blocks[1].kv_groups), decided.blocks[1].heads_per_group) == (3, 2)
    assert not {"q_proj", "k_proj", "v_proj", "o_proj"} & set(decided.blocks[1].ranks)


def test_sizes_that_an_engine_cannot_hold_are_priced(profile):
    from sentei.prune.planning import ANY_SIZE, warning

    free = plan(profile, Budget(sparsity=0.3), "structural")
    bound = plan(profile, Budget(sparsity=0.3, target_engine="vllm", ffn_multiple=20), "structural")
    assert ANY_SIZE not in free.predicted and warning(free) is None
    assert bound.predicted[ANY_SIZE] == pytest.approx(free.predicted["loss_increase"])
    assert bound.predicted["loss_increase"] >= bound.predicted[ANY_SIZE]
    dear = bound.model_copy(update={"predicted": bound.predicted | {"loss_increase": 2.0, ANY_SIZE: 0.5}})
    said = warning(dear)
    assert said is not None and "vllm" in said and "+2 nats" in said and "+0.5 with any size" in said
    assert warning(dear.model_copy(update={"predicted": dear.predicted | {"loss_increase": 0.6}})) is None
