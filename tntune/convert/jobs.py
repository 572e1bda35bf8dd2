"""Jobs: several processes that work on layers at a time, with the results of one."""

import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

import torch

from tntune.errors import SpecError, TntuneError, WorkerError

__all__ = ["WORKER_BYTES", "Jobs", "check_jobs"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

WORKER_BYTES = 320 * 2**20
"""What a process holds once it has loaded torch and tntune."""

_AHEAD = 2  # results that may wait for an earlier one, for each process


def check_jobs(jobs: int) -> None:
    """Raise SpecError unless a number of processes is at least 1.

    Example:
        >>> check_jobs(0)
        Traceback (most recent call last):
        tntune.errors.SpecError: jobs must be at least 1, not 0
    """
    if jobs < 1:
        raise SpecError(f"jobs must be at least 1, not {jobs}")


class Jobs:
    """Processes that share work: ``list(jobs.map(work, items)) == list(map(work, items))``.

    One job is this process itself. More are started (by spawn, on every system) when first needed, share the
    threads of this one, leave interrupts to it, and end with the block, whatever ends it; where this process
    is killed they end by themselves.

    Args:
        count: Number of processes.

    Example:
        >>> with Jobs(1) as jobs:
        ...     list(jobs.map(abs, [-2, 1]))
        [2, 1]
    """

    def __init__(self, count: int) -> None:
        check_jobs(count)
        self.count = count
        self._workers: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> "Jobs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe, process in self._workers.items():
            process.kill()
            process.join()
            pipe.close()
        self._workers.clear()

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """Results in the order of the items; they must all be taken before the next call.

        Args:
            work: What is done with an item; with several jobs it is pickled, as items and results are.
            items: What to work on.

        Raises:
            TntuneError, OSError: As the work raises them.
            WorkerError: Where the work raises anything else in a process of its own, or the process dies.
        """
        if self.count == 1:
            yield from map(work, items)
            return
        waiting = list(items)
        self._start(min(self.count, len(waiting)))
        tasks = _Tasks(work, waiting, self._workers)
        for number in range(len(waiting)):
            yield tasks.result(number)

    def _start(self, count: int) -> None:
        """That many processes, unless they are there."""
        context = get_context("spawn")
        threads = max(1, torch.get_num_threads() // self.count)
        for _ in range(count - len(self._workers)):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
            process.start()
            theirs.close()
            self._workers[ours] = process


class _Tasks:
    """One map: which worker has which item, and the results that came before their turn."""

    def __init__(
        self, work: Callable[[Any], Any], items: list[Any], workers: dict[Connection, BaseProcess]
    ) -> None:
        self.work, self.items, self.workers = work, items, workers
        self.free = list(workers)
        self.told: set[Connection] = set()
        self.held: dict[Connection, int] = {}
        self.results: dict[int, tuple[bool, Any]] = {}
        self.sent = 0

    def result(self, number: int) -> Any:
        """The result of the item of that number, or its error; the numbers before it are taken."""
        while number not in self.results:
            while self.free and self.sent < min(len(self.items), number + _AHEAD * len(self.workers)):
                self._send(self.free.pop())
            for pipe in wait(list(self.held)):
                self._receive(pipe)  # type: ignore[arg-type]  # it is one of those that were given
        done, value = self.results.pop(number)
        if not done:
            raise value
        return value

    def _send(self, pipe: Connection) -> None:
        """The next item, and before a worker's first the work."""
        work = None if pipe in self.told else self.work
        self.told.add(pipe)
        self.held[pipe] = self.sent
        message = pickle.dumps((work, self.items[self.sent]))
        try:
            pipe.send_bytes(message)
        except OSError:
            raise self._lost(pipe) from None
        self.sent += 1

    def _receive(self, pipe: Connection) -> None:
        """What a worker made of its item."""
        try:
            message = pipe.recv_bytes()
        except (EOFError, OSError):
            raise self._lost(pipe) from None
        self.results[self.held.pop(pipe)] = pickle.loads(message)
        self.free.append(pipe)

    def _lost(self, pipe: Connection) -> WorkerError:
        process = self.workers[pipe]
        process.join()
        code = process.exitcode or 0
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return WorkerError(
            f"a worker process {how} before its work was done, and nothing was written; fewer jobs take less "
            "memory, and a script needs `if __name__ == '__main__':` around what it asks jobs for"
        )


def _serve(pipe: Connection, threads: int) -> None:
    """What a worker does: apply the work to item after item, until nobody is there to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    work: Any = None
    with suppress(EOFError, OSError):
        while True:
            message = pipe.recv_bytes()
            try:
                told, item = pickle.loads(message)
                work = work if told is None else told
                answer = pickle.dumps((True, work(item)))
            except (TntuneError, OSError) as error:
                answer = pickle.dumps((False, error))
            except Exception:
                answer = pickle.dumps((False, WorkerError(f"a worker failed:\n{traceback.format_exc()}")))
            pipe.send_bytes(answer)
