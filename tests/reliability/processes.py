"""Two processes that train together, one of which is killed: the other is told, and files are whole."""

import os
import signal
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.reliability.campaign import Campaign, Tally, drawn
from tests.reliability.killing import ended, forked
from tests.reliability.trainee import METHODS, batch, evaluated, loss_of, tower, trained
from tntune.adapters import FactorGenerator, load_adapters, save_adapters, unload

__all__ = ["CAMPAIGNS"]

STEPS, PROCESSES = 4, 2
PATIENCE = 60
"""Seconds after which a process hangs."""


def _ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model)


def _fsdp1(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def _fsdp2(model: nn.Module) -> nn.Module:
    """Units of shared maps, which the call of the model generates, of blocks, and of the rest."""
    for module in list(model.modules()):
        if isinstance(module, FactorGenerator) and module.map.sites > 1:
            fully_shard(module, reshard_after_forward=False)  # factors may be views of its tensors
    for block in list(model.children()):
        fully_shard(block)
    wrapped: nn.Module = fully_shard(model)
    return wrapped


WRAPPINGS = {"DDP": _ddp, "FSDP1": _fsdp1, "FSDP2": _fsdp2}


def _work(rank: int, method: str, wrapping: str, place: Path, death: tuple[int, str] | None) -> None:
    """Train, and save after every step; die at that point, if any."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{place}/meeting",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=PATIENCE / 2),
    )
    wrapped = WRAPPINGS[wrapping](tower(method))
    optimizer = torch.optim.SGD(trained(wrapped).values(), lr=0.05)
    for step in range(STEPS):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = loss_of(wrapped, batch(step, 8).chunk(PROCESSES)[rank])
        _die(death, (step, "forward"))
        loss.backward()
        _die(death, (step, "backward"))
        optimizer.step()
        _die(death, (step, "step"))
        whole = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True))
        if rank == 0:
            model = tower(method)
            model.load_state_dict(whole)
            save_adapters(model, place / "adapter", overwrite=True)
        _die(death, (step, "save"))
    distributed.barrier()
    distributed.destroy_process_group()


def _die(death: tuple[int, str] | None, now: tuple[int, str]) -> None:
    if death == now:
        os.kill(os.getpid(), signal.SIGKILL)


def _together(
    method: str, wrapping: str, place: Path, victim: int, death: tuple[int, str] | None
) -> list[int]:
    """How the processes ended, by rank; one that hangs is killed and fails."""
    children = [
        forked(partial(_work, rank, method, wrapping, place, death if rank == victim else None))
        for rank in range(PROCESSES)
    ]
    ends: dict[int, int] = {}
    began = time.perf_counter()
    while len(ends) < PROCESSES and time.perf_counter() - began < PATIENCE:
        for rank, child in enumerate(children):
            if rank not in ends and (found := os.waitpid(child, os.WNOHANG))[0]:
                ends[rank] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.02)
    for rank in set(range(PROCESSES)) - set(ends):
        os.kill(children[rank], signal.SIGKILL)
        ended(children[rank])
    assert len(ends) == PROCESSES, f"rank {set(range(PROCESSES)) - set(ends)} hangs"
    return [ends[rank] for rank in range(PROCESSES)]


def _case(draw: Random, method: str, wrapping: str) -> str:
    victim = draw.randrange(PROCESSES)
    death = (draw.randrange(STEPS), draw.choice(["forward", "backward", "step", "save"]))
    with TemporaryDirectory() as folder:
        ends = _together(method, wrapping, Path(folder), victim, death)
        assert ends[victim] == -signal.SIGKILL, f"the victim ended with {ends[victim]}"
        last = death == (STEPS - 1, "save") and victim != 0
        assert ends[1 - victim] == 1, f"the other ended with {ends[1 - victim]}{' at the end' * last}"
        path = Path(folder) / "adapter"
        if path.exists():
            load_adapters(unload(tower(method)), path)
        left = {item.name for item in Path(folder).iterdir()} - {"adapter", "meeting"}
        assert all(name.startswith(".adapter.") for name in left), left
        (Path(folder) / "meeting").unlink(missing_ok=True)
        assert _together(method, wrapping, Path(folder), victim, None) == [0, 0]
        saved = evaluated(load_adapters(unload(tower(method)), path), batch(0))
        assert not torch.equal(saved, evaluated(tower(method), batch(0)))
    return f"{wrapping}, the other told"


def run(cases: int) -> Tally:
    """Wrappings and methods in turn."""
    tally = Tally()
    torch.set_num_threads(1)
    methods = sorted(METHODS)
    for number in range(cases):
        wrapping, method = sorted(WRAPPINGS)[number % 3], methods[number // 3 % len(methods)]
        case = partial(_case, drawn("processes", number), method, wrapping)
        tally.attempt(f"{number} {method} {wrapping}", case)
    return tally


CAMPAIGNS = (
    Campaign(
        "processes",
        "two processes train by DDP, FSDP1 or FSDP2 over gloo, and one is killed at a drawn point: the other "
        "ends with an error within a minute, the adapter's folder is whole or absent, a rerun succeeds",
        run,
        24,
        3,
        (
            "FSDP2 with units of blocks and a map that layers share: torch's RuntimeError on mixed tensors, "
            "now refused with the remedy, and tried with it",
        ),
    ),
)
