"""Search: which ranks a budget buys where, for trains over many layers and truncated SVDs."""

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from torch import Tensor

from tntune.convert.allocate import allocate
from tntune.convert.candidate import Candidate, Layers, Piece, joint_piece, truncated_piece
from tntune.convert.gauge import Balanced
from tntune.convert.joint import JointProblem
from tntune.convert.joint_train import JOINT_LAYOUT
from tntune.convert.norm import Norm, weighted_balance
from tntune.convert.option import Option
from tntune.convert.report import total_error
from tntune.convert.truncation import even_ranks, svd_errors, svd_ranks

__all__ = ["JointSearch", "TruncatedSearch", "weighted"]

Plan: TypeAlias = dict[tuple[str, ...], Option]
"""For each group of layers what to store."""

_RANKS = 6  # tried for each group
_STEP = 0.68  # from one rank to the next
_LARGEST = 128
_SMALL = 32  # ranks up to which more than one width is tried
_WIDTHS = (1.25, 2.0)  # times the root of the rank
_SWEEPS = 3  # of a fit that is only to be compared
_LEAST = 2  # layers that are worth a train


class TruncatedSearch:
    """The plain answers to any budget: truncated SVDs, ranks spread by singular values or evenly.

    Plain and, where the norm is a task's, weighted by it. What does not depend on a budget is done once.

    Args:
        layers: The layers.
        norm: What weighs.

    Example:
        >>> import torch
        >>> from tntune.convert.gauge import balance
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> search = TruncatedSearch(layers, Norm())
        >>> [(candidate.name, candidate.params) for candidate in search.candidates(8)]
        [('svd', 8), ('svd, even ranks', 8)]
        >>> round(search.error(8) ** 2, 6)
        0.5
    """

    def __init__(self, layers: Layers, norm: Norm) -> None:
        self.layers = layers
        self.sizes = {name: layers.size(name) for name in layers.balanced}
        self.families = {"svd": dict(layers.balanced)}
        if norm.calibration is not None:
            self.families["weighted svd"] = weighted(layers, norm)

    def candidates(self, budget: int) -> Iterator[Candidate]:
        """Those that fit a layer at all."""
        for name, balanced in self.families.items():
            widths = {layer: len(each.values) for layer, each in balanced.items()}
            spread = svd_ranks(self._spectra(name), self.sizes, budget)
            for suffix, ranks in (("", spread), (", even ranks", even_ranks(widths, self.sizes, budget))):
                pieces = tuple(_truncations(self.layers, balanced, ranks))
                if pieces:
                    yield Candidate(name + suffix, pieces)

    def error(self, budget: int) -> float:
        """The relative error in the norm of the best of them, before it is stored."""
        spectra = self._spectra(list(self.families)[-1])
        left = svd_errors(spectra, self.sizes, budget)
        return total_error(left.values(), (float(values.norm()) for values in spectra.values()))

    def _spectra(self, family: str) -> dict[str, Tensor]:
        return {layer: each.values for layer, each in self.families[family].items()}


def weighted(layers: Layers, norm: Norm) -> dict[str, Balanced]:
    """The factors of each layer, the leading ones best in the norm.

    Example:
        >>> import torch
        >>> from tntune.convert.gauge import balance
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> weighted(layers, Norm())["fc"].values.tolist()
        [1.0, 1.0]
    """
    norms = layers.norms(norm)
    return {name: weighted_balance(layers.factors(name), norms[name]) for name in layers.balanced}


class JointSearch:
    """Trains over the layers of each shape, at the ranks that share a budget best.

    For each group a dozen (rank, width) pairs are fitted roughly, around what the budget could buy; beside
    them stand the group's truncated SVDs. One allocation over all groups chooses, what is left over raises
    ranks, and the choice is fitted to the end. The time is bounded by the number of pairs. Rough fits are
    kept, so more budgets cost little more; a plan does not depend on those asked before.

    Memory: the reduced problem of every group, at most 2.4 MB a layer.

    Args:
        layers: The layers.
        norm: What is fitted.

    Example:
        >>> import torch
        >>> from tntune.convert.gauge import balance
        >>> made = {f"h.{k}": balance(torch.eye(2, 9), (k + 1.0) * torch.eye(8, 2)) for k in range(6)}
        >>> layers = Layers(made, dict.fromkeys(made, 2), torch.float32)
        >>> plan = JointSearch(layers, Norm()).plan(100)
        >>> [(option.method, option.ranks) for option in plan.values()]
        [('joint', (2, 2))]
    """

    def __init__(self, layers: Layers, norm: Norm) -> None:
        self.layers, self.norm = layers, norm
        self._values = {name: each.values for name, each in weighted(layers, norm).items()}
        self._problems: dict[tuple[str, ...], JointProblem] = {}
        self._errors: dict[tuple[tuple[str, ...], int, int], float] = {}

    def plan(self, budget: int) -> Plan:
        """For each group of layers what to store."""
        groups = {"\n".join(names): names for names in self.layers.groups()}
        curves = {
            key: [*self._truncations(names, budget), *self._trains(names, budget)]
            for key, names in groups.items()
        }
        chosen = {groups[key]: option for key, option in allocate(curves, budget).items()}
        left = budget - sum(option.params for option in chosen.values())
        for names, option in sorted(chosen.items(), key=lambda item: -item[1].squared_error):
            if option.method == "joint":
                chosen[names] = self._raised(names, option, left)
                left -= chosen[names].params - option.params
        return chosen

    def error(self, budget: int) -> float:
        """The relative error in the norm that a plan's rough fits leave; to the end they leave less."""
        left = (option.squared_error for option in self.plan(budget).values())
        return total_error(left, (float(values.norm()) for values in self._values.values()))

    def candidate(self, plan: Plan, norm: Norm) -> Candidate:
        """The adapter of a plan, fitted to the end in a norm."""
        pieces: list[Piece] = []
        cut = any(option.method != "joint" for option in plan.values())
        balanced = weighted(self.layers, norm) if cut else {}
        for names, option in plan.items():
            if option.method == "joint":
                rank, width = option.ranks
                fit = self._problem(names, norm).fit(rank, width)
                pieces.append(joint_piece(self.layers, names, fit.train))
            else:
                ranks = dict(zip(names, option.ranks, strict=True))
                pieces += _truncations(self.layers, balanced, ranks)
        return Candidate(f"joint, {norm.name}", tuple(pieces))

    def _problem(self, names: tuple[str, ...], norm: Norm) -> JointProblem:
        """The problem of a group; kept in the norm of the search."""
        own = norm.name == self.norm.name
        if own and names in self._problems:
            return self._problems[names]
        norms = self.layers.norms(norm)
        made = JointProblem([self.layers.factors(name) for name in names], [norms[name] for name in names])
        if own:
            self._problems[names] = made
        return made

    def _trains(self, names: tuple[str, ...], budget: int) -> Iterator[Option]:
        """Rough fits at ranks around what the budget could buy for this group alone."""
        if len(names) < _LEAST:
            return
        problem = self._problem(names, self.norm)
        widest = max(self.layers.widths[name] for name in names)
        affordable = budget // self.layers.size(names[0])
        largest = max(1, min(_LARGEST, problem.max_rank, affordable))
        for rank in sorted({max(1, round(largest * _STEP**k)) for k in range(_RANKS)}):
            for width in sorted(
                {min(rank, widest, math.ceil(each * math.sqrt(rank))) for each in _widths(rank)}
            ):
                params = self._params(names, rank, width)
                if params <= budget:
                    yield Option(
                        "joint", JOINT_LAYOUT, (rank, width), params, self._rough(names, rank, width)
                    )

    def _rough(self, names: tuple[str, ...], rank: int, width: int) -> float:
        """Squared error of a fit of few sweeps, made once."""
        key = (names, rank, width)
        if key not in self._errors:
            problem = self._problem(names, self.norm)
            self._errors[key] = problem.fit(rank, width, sweeps=_SWEEPS).history[-1] * problem.total
        return self._errors[key]

    def _truncations(self, names: tuple[str, ...], budget: int) -> Iterator[Option]:
        """Truncated SVDs of the group's layers, one rank more at a time; the first is nothing at all."""
        squares = {name: self._values[name].square().tolist() for name in names}
        steps = sorted(((value, name) for name, values in squares.items() for value in values), reverse=True)
        ranks, left = dict.fromkeys(names, 0), math.fsum(value for value, _ in steps)
        size = self.layers.size(names[0])
        for count, (value, name) in enumerate([(0.0, ""), *steps]):
            if name:
                ranks[name] += 1
                left = max(0.0, left - value)
            if count * size <= budget:
                yield Option("svd", "", tuple(ranks.values()), count * size, left)

    def _raised(self, names: tuple[str, ...], option: Option, left: int) -> Option:
        """The same width at the largest rank that the rest of the budget buys."""
        rank, width = option.ranks
        each = self._params(names, 1, width)
        most = min(rank + left // each, self._problem(names, self.norm).max_rank)
        return Option("joint", JOINT_LAYOUT, (most, width), most * each, option.squared_error)

    def _params(self, names: tuple[str, ...], rank: int, width: int) -> int:
        return rank * (self.layers.size(names[0]) + 2 * len(names) * width)


def _widths(rank: int) -> tuple[float, ...]:
    """Widths to try, in roots of the rank."""
    return _WIDTHS if rank <= _SMALL else _WIDTHS[:1]


def _truncations(
    layers: Layers, balanced: Mapping[str, Balanced], ranks: Mapping[str, int]
) -> Iterator[Piece]:
    for name, rank in ranks.items():
        if rank:
            yield truncated_piece(layers, name, balanced[name], rank)
