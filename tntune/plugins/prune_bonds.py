"""prune_bonds: one budget over all bonds of all layers, spent where singular values are largest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tntune.errors import NumericalError, RankError
from tntune.maps.base import Factors, Shape
from tntune.plugins.basis import Basis, basis_change, check_optimizer, swap_parameter
from tntune.plugins.branch import Branch, Chain, chains, with_ranks
from tntune.tt.linalg import r_factor
from tntune.tt.rank_rule import RankRule, ShrinkStep, shrink_path
from tntune.tt.rounding import bond_spectra, round_tt
from tntune.tt.train import Train, cores, merged_modes, tt_tensor

__all__ = ["BranchChange", "RankReport", "product_norm", "prune_bonds", "share_budget"]


@dataclass(frozen=True)
class BranchChange:
    """What became of one branch.

    Attributes:
        name: The branch.
        before: Ranks of each of its trains.
        after: Those it has now.
        params: Parameters it has now.
        error: Relative Frobenius error of ΔW, over its sites; of the product ``up @ down`` where σ is not
            linear.

    Example:
        >>> BranchChange("fc", ((1, 4, 1),), ((1, 2, 1),), 14, 0.0).after
        ((1, 2, 1),)
    """

    name: str
    before: tuple[Shape, ...]
    after: tuple[Shape, ...]
    params: int
    error: float


@dataclass(frozen=True)
class RankReport:
    """What became of a model: the function changed by ``error``, and by nothing else.

    Attributes:
        changes: One for each branch.
        params_before: Parameters of all branches before.
        error: ``sqrt(Σ |ΔW' - ΔW|² / Σ |ΔW|²)`` over all branches.

    Example:
        >>> RankReport((BranchChange("fc", ((1, 4, 1),), ((1, 2, 1),), 14, 0.0),), 28, 0.0).params
        14
    """

    changes: tuple[BranchChange, ...]
    params_before: int
    error: float

    @property
    def params(self) -> int:
        """Parameters of all branches now."""
        return sum(change.params for change in self.changes)


@torch.no_grad()
def prune_bonds(branches: Sequence[Branch], budget: int, *, optimizer: Optimizer | None = None) -> RankReport:
    """Lower ranks until ``report.params <= budget``; the function changes by ``report.error`` alone.

    Each train is orthogonalised, so that the score of a direction of a bond is the singular value of that
    unfolding of the weighed tensor (:func:`tntune.plugins.branch.chains`), the norm of the change if it alone
    were dropped. Of all bonds of all branches the change that costs least squared error for each parameter it
    saves comes first. Trains that keep their ranks keep their cores, bit for bit; the others are rounded,
    and their bonds turned to orthonormal directions of the old ones (:func:`tntune.plugins.basis_change`).

    Params are new objects with new shapes: lists of parameters that were made before are stale, and so is
    what wraps them (DDP, FSDP). Given the optimiser, it trains the new ones: Adam's first moments transform
    as gradients do, second moments with the squares of that matrix (:func:`tntune.plugins.transported`).

    Args:
        branches: Of :func:`tntune.plugins.branches`; TensorGuide, TTLoRA, LoRA and DeltaTrain maps.
        budget: Largest number of parameters of all of them together.
        optimizer: What trains them, if anything does.

    Raises:
        RankError: Where even ranks of one are too large; names the smallest possible budget.
        NumericalError: Where every adapter is zero, so that nothing is known of its directions.
        UnsupportedError: For a map without bonds, or an optimiser whose state is not known.
        SpecError: Where the optimiser does not train all of their params.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> from tntune.plugins.branch import branches
        >>> model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Linear(8, 4))
        >>> model = adapt(model, AdapterSpec(width=4, rank=4, start="random"))
        >>> prune_bonds(branches(model), 100).params <= 100
        True

    Reference: Oseledets (2011), theorem 2.2. Not a reproduction of AdaLoRA, which scores by gradients.
    """
    before = sum(branch.generator.map.num_parameters for branch in branches)
    olds = [branch.factors() for branch in branches]
    norms = [product_norm(factors) for factors in olds]
    if not any(norms):
        raise NumericalError("every adapter is zero: nothing is known of its directions; train a few steps")
    if optimizer is not None:
        check_optimizer(optimizer, [p for branch in branches for p in branch.generator.parameters()])
    parts = [_part(branch, chain) for branch in branches for chain in chains(branch)]
    chosen = share_budget([part.path for part in parts], budget)
    changes, losses = [], []
    for branch, old, norm in zip(branches, olds, norms, strict=True):
        own = [(part, step) for part, step in zip(parts, chosen, strict=True) if part.branch is branch]
        first = tuple(part.chain.ranks for part, _ in own)
        ranks = _shrink(branch, own, optimizer)
        losses.append(0.0 if ranks == first else product_norm(_difference(branch.factors(), old)))
        params = branch.generator.map.num_parameters
        changes.append(BranchChange(branch.name, first, ranks, params, losses[-1] / (norm or 1.0)))
    return RankReport(tuple(changes), before, math.hypot(*losses) / math.hypot(*norms))


def share_budget(paths: Sequence[Sequence[ShrinkStep]], budget: int) -> list[ShrinkStep]:
    """One step of each path, ``sum(step.params) <= budget``: what costs least per parameter goes first.

    Moves along the lower convex hull of each path's (parameters, squared error), so that a costly step does
    not hide a cheap one behind it; the last move goes only as far as it must.

    Args:
        paths: For each train its :func:`tntune.tt.shrink_path`.
        budget: Largest number of parameters of all trains.

    Raises:
        RankError: Where even the last steps are too large; names the smallest possible budget.

    Example:
        >>> path = [ShrinkStep((2,), 20, 0.0), ShrinkStep((1,), 10, 4.0)]
        >>> dear = [ShrinkStep((2,), 20, 0.0), ShrinkStep((1,), 10, 9.0)]
        >>> [step.ranks for step in share_budget([path, dear], 30)]
        [(1,), (2,)]
    """
    least = sum(path[-1].params for path in paths)
    if least > budget:
        raise RankError(f"a budget of {budget} parameters is too small; the least possible is {least}")
    chosen = [path[0] for path in paths]
    rest = [list(path[1:]) for path in paths]
    excess = sum(step.params for step in chosen) - budget
    while excess > 0:
        _, c, count = min(
            (_price(chosen[c], step), c, i) for c, steps in enumerate(rest) for i, step in enumerate(steps)
        )
        enough = (i for i in range(count) if chosen[c].params - rest[c][i].params >= excess)
        count = next(enough, count)
        excess -= chosen[c].params - rest[c][count].params
        chosen[c], rest[c] = rest[c][count], rest[c][count + 1 :]
    return chosen


def product_norm(factors: Factors) -> float:
    """``|up @ down|`` over all sites, without the product.

    Example:
        >>> round(product_norm(Factors(torch.ones(1, 1, 4), torch.ones(1, 9, 1))), 4)
        6.0
    """
    pairs = zip(factors.down.double(), factors.up.double(), strict=True)
    return math.hypot(*(float((r_factor(up) @ r_factor(down.mT).mT).norm()) for down, up in pairs))


class _Part(NamedTuple):
    """One train of one branch, weighed, and the ranks it may shrink to."""

    branch: Branch
    chain: Chain
    train: Train
    path: list[ShrinkStep]


def _part(branch: Branch, chain: Chain) -> _Part:
    train = tt_tensor(chain.cores([getattr(branch.generator, name) for name in chain.names]))
    path = shrink_path(bond_spectra(train), merged_modes(train), start=chain.ranks[1:-1])
    return _Part(branch, chain, train, path)


def _shrink(
    branch: Branch, own: Sequence[tuple[_Part, ShrinkStep]], optimizer: Optimizer | None
) -> tuple[Shape, ...]:
    """Give a branch these ranks, and the optimiser its new params; the ranks that came of it."""
    made: dict[str, Tensor] = {}
    moves: dict[str, tuple[Shape, Basis, Basis]] = {}
    ranks = []
    for part, step in own:
        chain, held = part.chain, [getattr(branch.generator, name) for name in part.chain.names]
        if chain.ranks[1:-1] == step.ranks:
            ranks.append(chain.ranks)
            continue
        rounded = round_tt(part.train, RankRule(ranks=step.ranks)).value
        ranks.append(tuple(rounded.rank))
        turned, bases = basis_change(cores(part.train), cores(rounded))
        made.update(zip(chain.names, chain.params(turned, held), strict=True))
        moves.update(zip(chain.names, zip(chain.shapes, bases[:-1], bases[1:], strict=True), strict=True))
    olds = {name: getattr(branch.generator, name) for name in made}
    if made:
        branch.adopt(with_ranks(branch.generator.map, ranks), made)
    if optimizer is not None:
        for name, (shape, left, right) in moves.items():
            new = getattr(branch.generator, name)
            swap_parameter(optimizer, olds[name], new, left, right, core=shape)
    return tuple(ranks)


def _price(now: ShrinkStep, then: ShrinkStep) -> float:
    """Squared error added per parameter saved."""
    return (then.squared_error - now.squared_error) / (now.params - then.params)


def _difference(one: Factors, other: Factors) -> Factors:
    """Factors of the difference of two products."""
    return Factors(torch.cat([one.down, other.down], 1), torch.cat([one.up, -other.up], 2))
