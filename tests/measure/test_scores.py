import itertools
from dataclasses import replace

import pytest
import torch

from sentei.errors import InputError
from sentei.measure.ranking import rank_ffn
from sentei.measure.scores import SCORES, obs
from sentei.measure.scores.newton import exact_direction, relaxed_system
from sentei.measure.scores.obs import Obs
from sentei.measure.statistics import BlockStats, Matrices, PartStats


def part(n=12, out=8, tokens=400, seed=0, gradients=True):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, n, generator=g) @ torch.randn(n, n, generator=g) + 0.5
    weight, grad = torch.randn(out, n, generator=g), torch.randn(tokens, out, generator=g)
    output_grad = grad.T @ grad / tokens if gradients else None
    return PartStats.of(
        Matrices(weight, x.T @ x / tokens, torch.eye(out), output_grad),
        mean=x.mean(0),
        norm=weight.square().sum(0),
        energy=1.0,
        taylor=torch.rand(n, generator=g) if gradients else None,
    )


def refit_loss(stats, removed, weight=None):
    """Squared error of the best refit without `removed`, from the normal equations."""
    weight = (stats.weight if weight is None else weight).double()
    gram = stats.gram.double()
    kept = [j for j in range(gram.shape[0]) if j not in removed]
    new = torch.linalg.solve(gram[kept][:, kept], gram[kept] @ weight.T)  # [kept, out]
    delta = weight.clone()
    delta[:, kept] -= new.T
    return torch.trace(delta @ gram @ delta.T).item()


@pytest.mark.parametrize("seed", range(5))
def test_newtons_fifty_steps_are_one_solve(seed):
    """The paper's iteration (arXiv 2412.12441, algorithm 1) from any start is at z* = 1 − c·u after one step."""
    stats = part(seed=seed)
    a = relaxed_system(stats)
    n, penalty, ratio = a.shape[0], 3.0, 0.3
    ones, kept = torch.ones(n, dtype=torch.float64), (1 - 0.3) * n
    z = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    steps = []
    for _ in range(50):
        gradient = a @ (z - ones) + penalty * (z.sum() - kept) * ones
        z = z - torch.linalg.solve(a + penalty * torch.outer(ones, ones), gradient)
        steps.append(z)
    torch.testing.assert_close(steps[0], steps[-1], rtol=0, atol=1e-8)
    u = exact_direction(stats, ridge=0.0)
    c = penalty * ratio * n / (1 + penalty * u.sum())
    torch.testing.assert_close(steps[-1], 1 - c * u, rtol=0, atol=1e-8)


def test_newton_is_wanda_where_inputs_do_not_correlate():
    stats = part()
    stats.matrices = replace(stats.matrices, gram=torch.diag(stats.gram.diagonal()))
    newton, wanda = (SCORES[name].start(stats, torch.Generator()) for name in ("newton", "wanda-sp"))
    units = torch.arange(12)[:, None]
    torch.testing.assert_close(newton.losses(units), wanda.losses(units), rtol=1e-2, atol=1e-6)


def test_obs_loss_is_that_of_the_refit():
    stats = part()
    remover = Obs(stats.weight, stats.gram)
    total = 0.0
    gone = []
    for columns in ([3], [7, 1], [0]):
        total += remover.remove(torch.tensor([columns]))
        gone += columns
        assert total == pytest.approx(refit_loss(stats, gone), rel=2e-2)


def test_obs_announces_what_removing_will_cost():
    remover = Obs(part().weight, part().gram)
    units = torch.tensor([[0, 1, 2], [6, 7, 8]])
    announced = remover.losses(units)[1].item()
    assert remover.remove(units[1:]) == pytest.approx(announced, rel=1e-9)


def correlated(kind, n=256, out=64):
    """Weights and a Gram matrix whose inputs say the same in pairs, or in groups of eight, or have few directions."""
    g = torch.Generator().manual_seed(5)
    sources, noise = {"pairs": (n // 2, 0.05), "groups": (n // 8, 0.3), "few": (n // 4, 0.01)}[kind]
    z = torch.randn(4 * n, sources, generator=g)
    x = z @ torch.randn(sources, n, generator=g) / sources**0.5 if kind == "few" else z.repeat(1, n // sources)
    x = x + noise * torch.randn(4 * n, n, generator=g)
    return torch.randn(out, n, generator=g), x.T @ x / len(x)


@pytest.mark.parametrize("kind", ["pairs", "groups", "few"])
def test_an_order_in_batches_loses_what_one_at_a_time_does(kind, monkeypatch):
    """The predicted loss after a tenth, a third and two thirds is within 1 %, and that of a refit."""
    weight, gram = correlated(kind)
    monkeypatch.setattr(obs, "BATCH", 16)  # 16 batches of 16
    order, losses = Obs(weight, gram).order()
    assert sorted(order.tolist()) == list(range(256))
    one, reference = Obs(weight, gram), []
    alive = torch.arange(256)
    while len(alive):
        cheapest = alive[one.losses(alive[:, None]).argmin()]
        reference.append(one.remove(cheapest[None, None]))
        alive = alive[alive != cheapest]
    together, reference = losses.cumsum(0), torch.tensor(reference).cumsum(0)
    for count in (25, 85, 170):
        assert together[count].item() == pytest.approx(reference[count].item(), rel=0.01)
        assert together[count].item() == pytest.approx(ridged_loss(weight, gram, order[: count + 1]), rel=0.01)


def ridged_loss(weight, gram, removed):
    """Squared error of the best refit without `removed`, under the score's ridge."""
    weight, gram = weight.double(), gram.double()
    gram = gram + obs.RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()
    kept = torch.ones(len(gram), dtype=torch.bool).index_fill(0, removed, False)
    schur = gram[~kept][:, ~kept] - gram[~kept][:, kept] @ torch.linalg.solve(gram[kept][:, kept], gram[kept][:, ~kept])
    return torch.trace(weight[:, ~kept] @ schur @ weight[:, ~kept].T).item()


def test_an_order_goes_on_where_inputs_and_weights_are_zero():
    weight, gram = correlated("groups")
    weight[:, :40], gram[:40], gram[:, :40] = 0.0, 0.0, 0.0
    order, losses = Obs(weight, gram).order()
    assert set(order[:40].tolist()) == set(range(40)) and not losses[:40].any() and (losses[40:] > 0).all()


def test_obs_finds_the_best_pair_here_and_beats_every_simple_score():
    stats = part(n=8, seed=3)
    best = min(refit_loss(stats, pair) for pair in itertools.combinations(range(8), 2))
    found = {}
    for name in ("obs", "wanda-sp", "flap", "magnitude", "newton"):
        order, _ = rank_ffn(stats_block(stats), SCORES[name], torch.Generator())
        found[name] = refit_loss(stats, order[:2])
    assert found["obs"] == min(found.values())
    assert found["obs"] <= 1.5 * best


def stats_block(stats):
    return BlockStats(attention=None, ffn=stats, angle=0.9)


@pytest.mark.parametrize("name", [n for n in SCORES if n != "block-influence"])
def test_curves_start_at_zero_never_fall_and_name_every_channel_once(name):
    stats = part(n=40)
    order, losses = rank_ffn(stats_block(stats), SCORES[name], torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(40))
    assert losses[0] == 0 and len(losses) == 41
    assert all(b >= a for a, b in itertools.pairwise(losses))


def test_fisher_metric_changes_what_matters():
    """With all gradient in output 0, only output 0's weights decide."""
    stats = part(seed=1)
    first = torch.zeros(8, 8)
    first[0, 0] = 1.0
    stats.matrices = replace(stats.matrices, gram=torch.eye(12), output_grad=first)
    order, _ = rank_ffn(stats_block(stats), SCORES["obs-fisher"], torch.Generator())
    assert order == stats.weight[0].abs().argsort().tolist()


@pytest.mark.parametrize("name", ["taylor", "obs-fisher"])
def test_scores_that_need_gradients_say_so(name):
    with pytest.raises(InputError, match="needs gradients; measure again"):
        SCORES[name].start(part(gradients=False), torch.Generator())


def test_an_unknown_score_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'wanda-sp'"):
        SCORES["wanda_sp"]
