"""Trainings that are killed and go on: curve and bytes are those of the one that was left alone.

A checkpoint is what a plain loop keeps: ``save_adapters`` into a folder, and beside it, written before it,
the optimiser's state, the generator's and the losses so far. A folder that is there is whole, so the newest
one is where the training goes on.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import torch

from tests.reliability.campaign import Campaign, Tally, drawn
from tests.reliability.killing import ended, forked
from tests.reliability.operation import digest
from tests.reliability.trainee import METHODS, batch, loss_of, tower, trained
from tntune.adapters import load_adapters, save_adapters, unload
from tntune.files import new_file, new_folder, write_json

__all__ = ["CAMPAIGNS", "train"]

STEPS, EVERY = 12, 3
KILLS = 2
"""Of each training, before it is left to end."""


def train(method: str, place: Path) -> None:
    """Train from the newest checkpoint to the end; the losses go into ``place/curve.json``."""
    model, losses = tower(method), list[float]()
    newest = max((int(path.name) for path in place.iterdir() if path.name.isdigit()), default=0)
    torch.manual_seed(5)
    if newest:
        load_adapters(unload(model), place / str(newest))
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.02)
    if newest:
        state = torch.load(place / f"{newest}.pt", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        losses = state["losses"]
    for step in range(newest + 1, STEPS + 1):
        optimizer.zero_grad()
        loss = loss_of(model, batch(step))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % EVERY == 0:
            state = {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state(), "losses": losses}
            with new_file(place / f"{step}.pt", overwrite=True) as draft:
                torch.save(state, draft)
            save_adapters(model, place / str(step), overwrite=True)
    with new_folder(place / "curve", overwrite=True) as draft:
        write_json(draft / "adapter_config.json", {"losses": losses})


class _Point:
    """Counts calls and those within the writing of a checkpoint, and ends the process at one of them."""

    def __init__(self, last: int | None = None) -> None:
        self.last, self.calls, self.within = last, 0, False
        self.writing: list[int] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += 1
        if self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        if frame.f_code.co_name in ("new_file", "save_adapters") and event in ("call", "return"):
            self.within = event == "call"
        if self.within:
            self.writing.append(self.calls)


class _Whole:
    """A training that is left alone: what the others must end with, and where they can be killed."""

    def __init__(self, method: str, root: Path) -> None:
        self.method, place = method, root / "whole"
        place.mkdir()
        self.point = _Point()
        sys.setprofile(self.point)
        try:
            train(method, place)
        finally:
            sys.setprofile(None)
        self.curve, self.folder = digest(place / "curve"), digest(place / str(STEPS))
        self.losses = json.loads((place / "curve" / "adapter_config.json").read_text())["losses"]
        assert len(self.losses) == STEPS == len(set(self.losses))
        again = root / "again"
        again.mkdir()
        began = time.perf_counter()
        train(method, again)
        self.seconds = time.perf_counter() - began
        assert (digest(again / "curve"), digest(again / str(STEPS))) == (self.curve, self.folder)

    def kill(self, draw: Random, place: Path) -> str:
        """Kill a training now and then, and let it end."""
        place.mkdir()
        killed = 0
        for _ in range(KILLS):
            killed += self._ended(draw, place) == -signal.SIGKILL
            for folder in place.iterdir():
                if folder.name.isdigit():
                    load_adapters(unload(tower(self.method)), folder)  # it is whole
        assert ended(forked(partial(train, self.method, place))) == 0
        assert digest(place / "curve") == self.curve, "another curve"
        assert digest(place / str(STEPS)) == self.folder, "another adapter"
        return f"killed {killed} times" if killed != 1 else "killed once"

    def _ended(self, draw: Random, place: Path) -> int:
        """Train until a drawn call, in or out of a checkpoint, or a drawn moment."""
        way = draw.choice(["call", "writing", "moment"])
        if way == "moment":
            child = forked(partial(train, self.method, place))
            time.sleep(draw.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)
            return ended(child)
        last = draw.choice(self.point.writing) if way == "writing" else draw.randint(1, self.point.calls)

        def work() -> None:
            sys.setprofile(_Point(last))
            train(self.method, place)

        return ended(forked(work))


def run(cases: int) -> Tally:
    """Every method in turn."""
    tally, kills = Tally(), 0
    torch.set_num_threads(1)
    each = -(-cases // len(METHODS))
    for method in METHODS:
        with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            whole = _Whole(method, Path(folder))
            for number in range(each):
                draw = drawn(f"resuming {method}", number)
                tally.attempt(f"{method} {number}", partial(whole.kill, draw, Path(folder) / str(number)))
    kills += tally.outcomes.get("killed once", 0) + 2 * tally.outcomes.get("killed 2 times", 0)
    tally.notes.append(f"{kills} kills")
    return tally


CAMPAIGNS = (
    Campaign(
        "resuming",
        "a training killed (SIGKILL) twice at drawn points, a third of them within the writing of a "
        "checkpoint, goes on from the newest folder: losses and the adapter's "
        "bytes are those of the uninterrupted one",
        run,
        66,
        11,
    ),
)
