"""AutoRanks: ranks for a parameter budget, found in training."""

import math
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from tntune.adapters.spec import AdapterSpec
from tntune.errors import RankError, SpecError
from tntune.maps.base import positive, positives
from tntune.plugins.branch import Branch, branches, chains
from tntune.plugins.prune_bonds import RankReport, prune_bonds

__all__ = ["AutoRanks", "auto_ranks", "pruning_steps"]

_SHARES = (0.1, 0.2, 0.3)  # of training, after which ranks shrink


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


def auto_ranks(model: nn.Module, spec: AdapterSpec, optimizer: Optimizer, *, steps: int) -> AutoRanks:
    """What ends within ``spec.params``, for a model adapted with ``AdapterSpec(ranks="auto", params=..)``.

    Call :meth:`AutoRanks.step` after every step of the optimiser. Ranks shrink after 10, 20 and 30 % of the
    steps (:func:`pruning_steps`); what is left of training goes on at the ranks that were found.

    Args:
        model: The adapted model.
        spec: What it was adapted with.
        optimizer: What trains it.
        steps: Of the whole training.

    Raises:
        SpecError: For a specification without ``ranks="auto"``, or too few steps.
        RankError: Where the budget is not below what there is to start from.
        UnsupportedError: For a map without bonds whose ranks can change.
        TargetError: Where the model has no adapted layers.

    Example:
        >>> import torch
        >>> from tntune.adapters.adapt import adapt
        >>> spec = AdapterSpec(ranks="auto", params=60, width=4)
        >>> model = adapt(torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Linear(8, 12)), spec)
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        >>> auto = auto_ranks(model, spec, optimizer, steps=10)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.eye(12)).square().sum().backward()
        ...     optimizer.step()
        ...     report = auto.step()
        >>> len(auto.reports), auto.reports[-1].params <= 60
        (3, True)
    """
    if spec.ranks is None or spec.params is None:
        raise SpecError("the specification has no automatic ranks; say ranks='auto' and params=..")
    found = branches(model)
    for branch in found:
        chains(branch)
    return AutoRanks(found, optimizer, budget=spec.params, at=pruning_steps(steps))


def pruning_steps(steps: int) -> tuple[int, ...]:
    """The steps of a training after which ranks shrink: at 10, 20 and 30 % of it.

    Raises:
        SpecError: For fewer than 4 steps, of which none would be left to train the ranks that were found.

    Example:
        >>> pruning_steps(1000), pruning_steps(4)
        ((100, 200, 300), (1,))
    """
    if positive("steps", steps) < 4:
        raise SpecError(f"{steps} steps are too few to find ranks and to go on; 4 are the least")
    return tuple(sorted({max(1, round(share * steps)) for share in _SHARES}))
