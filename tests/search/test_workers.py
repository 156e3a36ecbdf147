from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from search.labour import Labour
from sentei.errors import InputError, SenteiError
from sentei.prune.space import Gene, Space
from sentei.search.goal import Goal
from sentei.search.ledger import Ledger
from sentei.search.workers import Mapper, Processes, Serial


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Processes]:
    with Processes(partial(Labour, str(tmp_path)), 2, threads=1) as workers:
        yield workers


def made(path: Path) -> int:
    return len(list(path.glob("made-*")))


def test_outcomes_come_in_order_and_evaluators_stay(two: Processes, tmp_path: Path) -> None:
    tasks = [((i, 2), 0, 3 + i) for i in (1, 2, 3, 4, 5)]
    for _ in range(2):
        found = two.map(tasks)
        assert [len(outcome.score) for outcome in found] == [4, 5, 6, 7, 8]
        assert [outcome.score[0] for outcome in found] == [3, 4, 5, 6, 7]
    assert made(tmp_path) == 2, "one evaluator per process, made once"
    assert found[0].threads == "1"
    assert isinstance(two, Mapper) and two.width == 2


def test_a_worker_that_dies_is_replaced_and_its_genome_tried_again(two: Processes, tmp_path: Path) -> None:
    found = two.map([((i, 0), 0, 2) for i in (6, 7, 5)])
    assert [outcome.score[0] for outcome in found] == [6, 7, 5]
    assert (tmp_path / "died").exists()
    assert two.map([((i, 0), 0, 2) for i in (1, 2, 3)])[2].score[0] == 3, "and the work goes on"


def test_a_genome_that_kills_twice_is_named(two: Processes) -> None:
    with pytest.raises(SenteiError, match=r"exit code 14\) died of rows 2 to 4 of genome \[8, 1\]"):
        two.map([((8, 1), 2, 4)])


def test_errors_of_evaluators_come_through_and_the_next_batch_works(two: Processes) -> None:
    with pytest.raises(InputError, match="row 3: the metric"):
        two.map([((9,), 0, 1)])
    with pytest.raises(SenteiError, match="ZeroDivisionError: no such thing"):
        two.map([((10,), 0, 1)])


def test_a_ledger_does_not_see_how_many_work(two: Processes, tmp_path: Path) -> None:
    from search.landscape import ACCURACY, outcome

    space = Space(tuple(Gene(name, (9, 6, 4, 1), (0.0, 1.0, 2.0, 3.0)) for name in "abc"))
    goal = Goal(outcome([1.0] * 20), 0.05, ACCURACY)
    genomes = [(1, 0, 0), (2, 3, 1), (3, 3, 3), (1, 0, 0), (0, 0, 1)]
    books = [Ledger(space, workers, goal) for workers in (two, Labour(str(tmp_path)))]  # type: ignore[arg-type]
    for book in books:
        book.measure(genomes, 5)
        book.measure(genomes[1:])
    assert books[0].history == books[1].history and books[0].best.genome == books[1].best.genome
    assert len(books[0].history) == 4 + 4


def test_serial_is_the_same_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    serial = Serial(Labour(str(tmp_path)))
    assert isinstance(serial, Mapper) and serial.width == 1
    assert [outcome.score[0] for outcome in serial.map([((1,), 0, 1), ((3,), 0, 1)])] == [1, 3]


def test_workers_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, sentei.search.evolve, sentei.search.genetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
