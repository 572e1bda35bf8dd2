"""Two processes that talk over gloo: a function runs in both, and what each of them made comes back."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PROCESSES = 2
PATIENCE = 120  # seconds

_server = get_context("forkserver")  # it imports once, and every process is a fork of it
_server.set_forkserver_preload(["tests.peft.workers.training" if find_spec("peft") else "torch"])


@dataclass(frozen=True)
class Outcome:
    """What one process returned, or the name and the message of what it raised."""

    value: Any = None
    error: str = ""


def run(function: Callable[..., Any], *args: Any, folder: Path) -> list[Outcome]:
    """``function(*args)`` in every process of a group; the function is a module's, the folder is empty."""
    processes = [
        _server.Process(target=_work, args=(rank, folder, function, args), daemon=True)
        for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    ends = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert ends == [0] * PROCESSES, f"processes ended with {ends}; None is one that hung"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


def _work(rank: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PATIENCE),
    )
    try:
        outcome = Outcome(function(*args))
    except Exception as error:
        outcome = Outcome(error=f"{type(error).__name__}: {error}")
    torch.save(outcome, folder / f"{rank}.pt")
    distributed.barrier()
    os._exit(0)  # a group cannot end after a backward cut short, nor, once in fifty runs, python after any
