from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from search.landscape import ACCURACY, Landscape, outcome, space
from sentei.errors import InputError
from sentei.search.cache import Cache
from sentei.search.goal import Goal
from sentei.search.ledger import Allowance, Ledger, Spent


@pytest.fixture
def land() -> Landscape:
    return Landscape(space(), rows=80)


def ledger(land: Landscape, **options: object) -> Ledger:
    made = Ledger(land.space, land, land.goal(), **options)  # type: ignore[arg-type]
    land.calls.clear()
    return made


def test_only_what_is_missing_is_evaluated_and_counted(land: Landscape) -> None:
    book = ledger(land)
    a, b = land.space.at(0.2), land.space.at(0.4)
    book.measure([a, b, a], 20)
    assert land.calls == [(a, 0, 20), (b, 0, 20)] and book.evaluations == 0.5
    book.measure([a, land.space.dense])
    assert land.calls[2:] == [(a, 20, 80)] and book.evaluations == 1.25
    again = book.measure([a, b], 20)
    assert len(land.calls) == 3 and [len(trial.outcome.score) for trial in again] == [20, 20]
    whole = land(a, 0, 80)
    assert (book.trials[a].outcome.score == whole.score).all() and (book.trials[a].outcome.loss == whole.loss).all()
    assert [row["rows"] for row in book.history] == [20, 20, 80]
    assert [row["met"] for row in book.history][:2] == [None, None]
    json.dumps(book.history, allow_nan=False)


def test_feasible_comes_first_then_size_then_loss(land: Landscape) -> None:
    book = ledger(land)
    assert book.best.genome == land.space.dense, "what meets the goal for certain"
    trials = book.measure([land.space.at(share) for share in (0.05, 0.6, 0.1, 0.9 - 0.1)])
    met = [trial for trial in trials if book.goal.met(trial.outcome)]
    assert len(met) == 2 and book.best.cost == min(trial.cost for trial in met)
    ranked = sorted(trials, key=book.rank)
    assert [trial.genome for trial in ranked[:2]] == [trial.genome for trial in sorted(met, key=lambda t: t.cost)]
    assert book.goal.margin(ranked[2].outcome) >= book.goal.margin(ranked[3].outcome)


def test_of_two_of_one_size_the_better_is_best() -> None:
    land = Landscape(space(), rows=40)
    goal = Goal(outcome(np.ones(40)), 0.1, ACCURACY)
    losses = {land.space.dense: 1.0}

    def flat(genome: tuple[int, ...], start: int, stop: int) -> object:
        return outcome(np.ones(stop - start), np.full(stop - start, losses[genome]))

    a, b = land.space.at(0.3), land.space.at(0.31)
    losses |= {a: 2.0, b: 3.0}
    book = Ledger(land.space, flat, goal)  # type: ignore[arg-type]
    book.measure([b, a])
    assert book.best.genome == b, "size before loss"


def test_the_allowance_is_never_overdrawn(land: Landscape) -> None:
    book = ledger(land, allowance=Allowance(evaluations=2.3))
    shares = [land.space.at(share) for share in (0.1, 0.2, 0.3, 0.4)]
    with pytest.raises(Spent, match="evaluations"):
        book.measure(shares)
    assert book.evaluations == 2 and len(land.calls) == 2
    book.measure(shares[2:3], 24)
    assert book.evaluations == pytest.approx(2.3)
    with pytest.raises(Spent):
        book.measure(shares[2:3], 25)


def test_nothing_is_started_that_cannot_end_in_time(land: Landscape) -> None:
    now = [100.0]

    def slow(genome: tuple[int, ...], start: int, stop: int) -> object:
        now[0] += 10 * (stop - start) / land.rows
        return land(genome, start, stop)

    goal = land.goal()
    shares = [land.space.at(share) for share in (0.1, 0.2, 0.3, 0.4)]
    allowance = Allowance(deadline=129.0, clock=lambda: now[0])
    book = Ledger(land.space, slow, goal, allowance=allowance)  # type: ignore[arg-type]
    with pytest.raises(Spent, match="deadline"):
        book.measure(shares)
    assert now[0] == 120, "two of 10 s; a third would end at 130"
    book.measure(shares[2:3], 40)
    assert now[0] == 125, "half of the rows still fit"
    known = Allowance(deadline=129.0, clock=lambda: now[0], pace=10)
    with pytest.raises(Spent, match="deadline"):
        Ledger(land.space, slow, goal, allowance=known).measure(shares)  # type: ignore[arg-type]
    assert now[0] == 125, "the dense model's pace is known beforehand"


def test_the_journal_gives_back_every_bit(land: Landscape, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    a, b = land.space.at(0.2), land.space.at(0.4)
    book = ledger(land, cache=Cache(land.space, 80, journal, "me"))
    book.measure([a, b], 20)
    book.measure([a])
    land.calls.clear()
    again = ledger(land, cache=Cache(land.space, 80, journal, "me"))
    again.measure([a, b], 20)
    again.measure([a])
    assert not land.calls and again.history == book.history and again.evaluations == book.evaluations
    for genome in (a, b):
        for name in ("score", "loss", "weight"):
            mine, theirs = getattr(book.trials[genome].outcome, name), getattr(again.trials[genome].outcome, name)
            assert mine.tobytes() == theirs.tobytes()


def test_a_broken_candidate_is_kept_as_it_is(tmp_path: Path) -> None:
    land = Landscape(space(), rows=4)
    cache = Cache(land.space, 4, tmp_path / "j")
    cache.add(land.space.smallest, 0, outcome([0, 0], [np.inf, 1.0]))
    read = Cache(land.space, 4, tmp_path / "j").get(land.space.smallest, 2, outcome([1]))
    assert read.loss.tolist() == [np.inf, 1.0]


def test_a_torn_line_is_cut_off(land: Landscape, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    cache = Cache(land.space, 80, journal)
    cache.add(land.space.smallest, 0, outcome([1, 0]))
    whole = journal.read_bytes()
    for torn in (whole + b'{"genome": [1,', whole[:20], b""):
        journal.write_bytes(torn)
        Cache(land.space, 80, journal).add(land.space.dense, 0, outcome([1]))
        read = Cache(land.space, 80, journal)
        assert read.rows(land.space.dense) == 1
        assert read.rows(land.space.smallest) == (2 if torn.startswith(whole) else 0)


def test_a_journal_of_something_else_is_refused(land: Landscape, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    Cache(land.space, 80, journal, "a")
    for other in ((land.space, 80, "b"), (land.space, 81, "a"), (space(seed=1), 80, "a")):
        with pytest.raises(InputError, match="j:1 is of another model"):
            Cache(other[0], other[1], journal, other[2])
    journal.write_text(journal.read_text() + "{}\n")
    with pytest.raises(InputError, match="j:2 is no evaluation"):
        Cache(land.space, 80, journal, "a")


def test_an_evaluator_that_forgets_rows(land: Landscape) -> None:
    book = Ledger(land.space, lambda genome, start, stop: land(genome, start, stop - 1), land.goal())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="19 rows for 0 to 20"):
        book.measure([land.space.at(0.2)], 20)
