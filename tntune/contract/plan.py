"""Contraction plans: opt_einsum finds the path once, when shapes are known; we run the pairwise steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import opt_einsum
from torch import Tensor

from tntune.contract.step import Path, Shape, Sizes, Step, steps_along
from tntune.errors import ModeError, SpecError

__all__ = ["SEARCHED", "Plan", "candidates", "plan"]

SEARCHED = "opt_einsum"
"""The name of the path that opt_einsum found."""

_NO_PATHS: Mapping[str, Path] = {}
_Paths = tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]


@dataclass(frozen=True)
class Plan:
    """A contraction whose path is fixed: ``plan(*tensors) == einsum(equation, *tensors)``.

    Made by :func:`plan`. A plan is a value: it compares, pickles, prints its costs, holds no tensors,
    and runs under ``torch.compile(fullgraph=True)``, ``vmap`` and ``jacrev``, since it consists of sums,
    permutations, reshapes and matrix products only.

    Attributes:
        equation: The einsum equation, with an explicit output.
        shapes: The shapes it was planned for; calls with other shapes raise.
        steps: The pairwise steps.
        route: Name of the path that they follow.
        paths: The paths that were weighed, by name.

    Example:
        >>> print(plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4)))
        ab,bc,cd->ad: 3,648 flops, largest intermediate 8 entries
          1. ab,bc->ac  3,600 flops
          2. ac,cd->ad  48 flops
    """

    equation: str
    shapes: tuple[Shape, ...]
    steps: tuple[Step, ...] = field(repr=False)
    route: str = field(default=SEARCHED, compare=False)
    paths: _Paths = field(default=(), repr=False, compare=False)

    @property
    def flops(self) -> int:
        """Multiplications and additions of all steps together."""
        return sum(step.flops for step in self.steps)

    @property
    def peak(self) -> int:
        """Entries of the largest intermediate or result."""
        return max(math.prod(step.shape) for step in self.steps)

    @property
    def cost(self) -> int:
        """What paths are compared by: the sum over the steps of :attr:`Step.cost`."""
        return sum(step.cost for step in self.steps)

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Contract ``tensors``; raises :class:`ModeError` where a shape is not the planned one."""
        return self.steps[-1](self._before_the_last(tensors))

    def cut(self, at: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """``flat[:at], flat[at:]`` of ``flat = self(*tensors).flatten()``, for parts that are used apart.

        Where the last step is one product in the order of the output, a backward does not put the gradients
        of the parts together (:mod:`tntune.contract.cut`), which would take as long as all the rest.
        """
        return self.steps[-1].cut(self._before_the_last(tensors), at)

    def _before_the_last(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The operands of the last step."""
        found = tuple(tuple(tensor.shape) for tensor in tensors)
        if found != self.shapes:
            raise ModeError(f"plan {self.equation!r} was made for shapes {self.shapes}, not for {found}")
        work = list(tensors)
        for step in self.steps[:-1]:
            operands = [work[position] for position in step.positions]
            work = [tensor for i, tensor in enumerate(work) if i not in step.positions]
            work.append(step(operands))
        return [work[position] for position in self.steps[-1].positions]

    def __str__(self) -> str:
        """One line per step, with its equation and cost, after a line of totals."""
        head = f"{self.equation}: {self.flops:,} flops, largest intermediate {self.peak:,} entries"
        lines = [f"  {i}. {step.equation}  {step.flops:,} flops" for i, step in enumerate(self.steps, 1)]
        return "\n".join([head, *lines])


def plan(
    equation: str, *shapes: Sequence[int], optimize: str = "auto", paths: Mapping[str, Path] = _NO_PATHS
) -> Plan:
    """A path for ``einsum(equation)`` at these shapes: ``plan(eq, *shapes)(*x) == einsum(eq, *x)``.

    opt_einsum searches the path here, once; a call of the plan never searches.

    Args:
        equation: Einsum equation with explicit output and single-character legs, such as ``"ab,bc->ac"``.
            No leg may repeat within one operand.
        *shapes: One shape per operand, no size below 1.
        optimize: Any path finder that opt_einsum knows by name (``"auto"``, ``"optimal"``, ``"dp"``, ...).
        paths: Further paths to weigh by name, as opt_einsum writes them. Of all, the one of least
            :attr:`Plan.cost` is taken: it may have more flops than the found one, and fewer copies.

    Returns:
        The plan, in the time of one path search (about a millisecond for ten operands), or at once where
        the same was asked for before.

    Raises:
        ModeError: Where operands, legs and sizes do not fit together.
        SpecError: Where opt_einsum knows no such path finder.

    Example:
        >>> import torch
        >>> chain = plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4))
        >>> x = [torch.ones(2, 300), torch.ones(300, 3), torch.ones(3, 4)]
        >>> bool((chain(*x) == 900).all())
        True

    Reference: Smith and Gray, opt_einsum, JOSS 3(26), 753 (2018).
    """
    try:
        opt_einsum.paths.get_path_fn(optimize)
    except KeyError as error:
        raise SpecError(f"opt_einsum has no path finder {optimize!r}; 'auto' always is one") from error
    own = tuple(tuple(int(size) for size in shape) for shape in shapes)
    return _search(equation, own, optimize, tuple((name, tuple(path)) for name, path in paths.items()))


def candidates(plan: Plan) -> list[Plan]:
    """What a plan was chosen from, the cheapest first: ``candidates(plan)[0] == plan``.

    Paths that make the same steps count once, under the name of the first.

    Example:
        >>> right = {"from the right": ((1, 2), (0, 1))}
        >>> for one in candidates(plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4), paths=right)):
        ...     print(one.route, one.flops)
        opt_einsum 3648
        from the right 12000
    """
    sizes = _leg_sizes(plan.equation, plan.shapes)
    made = [_along(plan.equation, plan.shapes, named, plan.paths, sizes) for named in plan.paths]
    return sorted(dict.fromkeys(made), key=lambda one: one.cost)


@lru_cache(maxsize=4096)
def _search(equation: str, shapes: tuple[Shape, ...], optimize: str, paths: _Paths) -> Plan:
    """The plan, remembered: layers of one shape, and the candidates of a conversion, share it."""
    sizes = _leg_sizes(equation, shapes)
    found, _ = opt_einsum.contract_path(equation, *shapes, shapes=True, optimize=optimize)
    known = ((SEARCHED, tuple(found)), *paths)
    plans = (_along(equation, shapes, named, known, sizes) for named in known)
    return min(plans, key=lambda plan: plan.cost)


def _along(
    equation: str,
    shapes: tuple[Shape, ...],
    named: tuple[str, tuple[tuple[int, ...], ...]],
    paths: _Paths,
    sizes: Sizes,
) -> Plan:
    """The plan along one of the paths."""
    name, path = named
    return Plan(equation, shapes, tuple(steps_along(equation, path, sizes)), name, paths)


def _leg_sizes(equation: str, shapes: tuple[Shape, ...]) -> Sizes:
    """The size of every leg, after checking that operands and output agree."""
    if equation.count("->") != 1:
        raise ModeError(f"equation {equation!r} needs exactly one '->'")
    inputs, output = equation.split("->")
    terms = inputs.split(",")
    if len(terms) != len(shapes):
        raise ModeError(
            f"equation {equation!r} has {len(terms)} operands, but {len(shapes)} shapes were given"
        )
    sizes: Sizes = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(term) != len(shape) or len(set(term)) != len(term) or min(shape, default=1) < 1:
            raise ModeError(f"operand {term!r} of {equation!r} does not fit the shape {shape}")
        for leg, size in zip(term, shape, strict=True):
            if sizes.setdefault(leg, size) != size:
                raise ModeError(f"leg {leg!r} of {equation!r} has size {sizes[leg]} and size {size}")
    if len(set(output)) != len(output) or not set(output) <= set(sizes):
        raise ModeError(f"output {output!r} of {equation!r} repeats a leg or has one that no operand has")
    return sizes
