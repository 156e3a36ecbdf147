"""Evaluations side by side: one after the other here, or in processes that hold an evaluator each.

Whatever has `width` and `map` can carry a search.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sentei.errors import InputError, SenteiError
from sentei.prune.space import Genome
from sentei.search.goal import Evaluator

if TYPE_CHECKING:
    from sentei.metrics.score import Outcome

Task = tuple[Genome, int, int]  # genome, rows from, to before


@runtime_checkable
class Mapper(Protocol):
    """Evaluates tasks; `width`: how many at a time."""

    width: int

    def map(self, tasks: Sequence[Task]) -> list[Outcome]:
        """One outcome per task, in order."""
        ...


class Serial:
    """One evaluator, here."""

    width = 1

    def __init__(self, evaluate: Evaluator) -> None:
        self.evaluate = evaluate

    def map(self, tasks: Sequence[Task]) -> list[Outcome]:
        """One outcome per task, in order."""
        return [self.evaluate(*task) for task in tasks]


class Processes:
    """Processes of their own, started anew (not forked), each with an evaluator and its share of the threads.

    Args:
        factory: makes the evaluator in the process; has to be picklable: a function of a module, or a `partial` of one.
        count: how many processes.
        threads: of each; default: an equal share of the machine's.

    Example:
        with Processes(partial(open_evaluator, "RUN/library"), count=4) as workers:
            evolve(space, workers, goal)
    """

    def __init__(self, factory: Callable[[], Evaluator], count: int, threads: int | None = None) -> None:
        self.width = count
        self._factory = factory
        self._threads = threads or max(1, (os.cpu_count() or 1) // count)
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker | None] = [None] * count

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, tasks: Sequence[Task]) -> list[Outcome]:
        """One outcome per task, in order. A task whose process dies is tried once more.

        Raises:
            InputError: an evaluator raised it.
            SenteiError: an evaluator raised something else, or a task's process died twice.
        """
        waiting, done, tries = list(range(len(tasks)))[::-1], {}, [0] * len(tasks)
        busy: dict[Connection, tuple[int, int]] = {}  # place of the worker, task
        try:
            while waiting or busy:
                for place in {*range(self.width)} - {place for place, _ in busy.values()}:
                    if waiting:
                        number = waiting.pop()
                        busy[self._send(place, tasks[number])] = place, number
                for connection in wait(list(busy)):
                    assert isinstance(connection, Connection)
                    place, number = busy.pop(connection)
                    try:
                        kind, value = connection.recv()
                    except (EOFError, OSError):
                        tries[number] += 1
                        self._buried(place, tasks[number], again=tries[number] > 1)
                        waiting.append(number)
                        continue
                    if kind != "outcome":
                        raise InputError(value) if kind == "input" else SenteiError(value)
                    done[number] = value
        except BaseException:
            self.close()  # what is still under way belongs to no one
            raise
        return [done[number] for number in range(len(tasks))]

    def close(self) -> None:
        """Ends the processes."""
        for worker in filter(None, self._workers):
            worker.end()
        self._workers = [None] * self.width

    def _send(self, place: int, task: Task) -> Connection:
        worker = self._workers[place]
        if worker is None:
            worker = self._workers[place] = _Worker(self._context, self._factory, self._threads)
        with contextlib.suppress(OSError):  # it died idle: seen when its answer is read
            worker.connection.send(task)
        return worker.connection

    def _buried(self, place: int, task: Task, *, again: bool) -> None:
        """Takes a dead worker away.

        Raises:
            SenteiError: it was the second one that died of this task.
        """
        worker = self._workers[place]
        assert worker is not None
        self._workers[place] = None
        said = worker.end()
        if again:
            genome, start, stop = task
            raise SenteiError(
                f"worker {place} ({said}) died of rows {start} to {stop} of genome {list(genome)}, "
                "for the second time; out of memory? use fewer workers"
            )


class _Worker:
    """One process and the connection to it."""

    def __init__(self, context: Any, factory: Callable[[], Evaluator], threads: int) -> None:
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self._process.start()
        theirs.close()
        self.connection.send(factory)

    def end(self) -> str:
        """Ends the process, and says which it was and how it ended."""
        self.connection.close()
        self._process.join(timeout=1)
        self._process.terminate()
        self._process.join()
        return f"process {self._process.pid}, exit code {self._process.exitcode}"


def _serve(connection: Connection, threads: int) -> None:
    """What runs in the process: the factory comes first, so that the number of threads is set before torch is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which ends its workers
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the command: waiting threads do not spin
    evaluate: Evaluator | None = None
    make = connection.recv()
    while True:
        try:
            genome, start, stop = connection.recv()
        except EOFError:
            return
        try:
            if evaluate is None:
                evaluate = make()
                if "torch" in sys.modules:
                    sys.modules["torch"].set_num_threads(threads)
            connection.send(("outcome", evaluate(genome, start, stop)))
        except InputError as error:
            connection.send(("input", str(error)))
        except Exception:  # whatever it is, the search has to hear of it: only this process has the traceback
            connection.send(("other", f"an evaluator failed:\n{traceback.format_exc()}"))
