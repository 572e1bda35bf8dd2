"""AutoRanks: ranks for a parameter budget, found in training."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer

from tntune.errors import RankError, SpecError
from tntune.maps.base import positive, positives
from tntune.plugins.branch import Branch
from tntune.plugins.prune_bonds import RankReport, prune_bonds

__all__ = ["AutoRanks"]


class AutoRanks:
    """After the steps in ``at`` the ranks shrink, and after the last of them ``params <= budget``.

    Start at larger ranks than the budget allows, call :meth:`step` after every step of the optimiser, and let
    :func:`tntune.plugins.prune_bonds` choose where parameters stay. In between the path is that of plain
    training: the function changes by the reported errors alone. With several steps the budget falls
    geometrically, so that each pruning gives up the same share.

    Args:
        branches: Of :func:`tntune.plugins.branches`.
        optimizer: What trains them; parameters that are no cores are left alone.
        budget: Parameters of all branches at the end.
        at: Steps, counted from 1, after which ranks shrink.

    Attributes:
        reports: What came of each pruning so far.

    Raises:
        SpecError: Where the steps do not rise, or the budget is no positive integer.
        RankError: Where the budget is not below what the branches have.

    Example:
        >>> import torch
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> from tntune.plugins.branch import branches
        >>> model = adapt(torch.nn.Sequential(torch.nn.Linear(12, 8)), AdapterSpec(width=4, rank=6))
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        >>> auto = AutoRanks(branches(model), optimizer, budget=40, at=(3,))
        >>> for _ in range(5):
        ...     optimizer.zero_grad()
        ...     model(torch.eye(12)).square().sum().backward()
        ...     optimizer.step()
        ...     report = auto.step()
        >>> auto.reports[0].params <= 40
        True
    """

    def __init__(
        self, branches: Sequence[Branch], optimizer: Optimizer, *, budget: int, at: Sequence[int]
    ) -> None:
        self.reports: list[RankReport] = []
        self._branches, self._optimizer = tuple(branches), optimizer
        self._steps = 0
        steps = positives("at", tuple(at))
        if list(steps) != sorted(set(steps)):
            raise SpecError(f"the steps after which ranks shrink must rise, not {steps}")
        start = sum(branch.generator.map.num_parameters for branch in self._branches)
        if start <= positive("budget", budget):
            raise RankError(
                f"a budget of {budget} parameters is not below the {start} there are to start from"
            )
        shares = ((k + 1) / len(steps) for k in range(len(steps)))
        self._budgets = {
            step: math.floor(start * (budget / start) ** share + 1e-6)
            for step, share in zip(steps, shares, strict=True)
        }

    def step(self) -> RankReport | None:
        """Count a step of the optimiser; where ranks shrink after it, what came of that.

        Raises:
            RankError, NumericalError, UnsupportedError, SpecError: As :func:`tntune.plugins.prune_bonds`.
        """
        self._steps += 1
        budget = self._budgets.get(self._steps)
        if budget is None:
            return None
        self.reports.append(prune_bonds(self._branches, budget, optimizer=self._optimizer))
        return self.reports[-1]
