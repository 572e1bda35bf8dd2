"""Timing: what plans take on this machine, beside what their costs say."""

import time
from collections.abc import Sequence
from statistics import median

import torch

from tntune.contract.plan import Plan

__all__ = ["timed"]


def timed(plans: Sequence[Plan], *, rounds: int = 15) -> list[float]:
    """CPU seconds of one call and its backward for each plan, medians over rounds in which all run in turn.

    On random float32 operands, with the threads that torch has. CPU time leaves out the other work of the
    machine. A first round is not counted.

    Example:
        >>> from tntune.contract.plan import plan
        >>> (seconds,) = timed([plan("ab,bc->ac", (2, 3), (3, 4))])
        >>> 0 <= seconds < 1
        True
    """
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator, requires_grad=True) for shape in plans[0].shapes]
    along = torch.randn(plans[0](*operands).shape, generator=generator)
    times: list[list[float]] = [[] for _ in plans]
    for _ in range(rounds + 1):
        for plan, found in zip(plans, times, strict=True):
            start = time.process_time()
            torch.autograd.grad(plan(*operands), operands, along)
            found.append(time.process_time() - start)
    return [median(found[1:]) for found in times]
