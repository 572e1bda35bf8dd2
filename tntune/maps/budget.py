"""Ranks of a Tucker or CP tensor: the same on every mode, or for a number of parameters."""

import math
from collections.abc import Callable, Mapping

from tntune.errors import RankError, SpecError
from tntune.maps.base import Shape, positive

__all__ = [
    "FORMS",
    "MATRIX_MODES",
    "count_tensor",
    "isoparameter_ranks",
    "isorank_ranks",
    "largest_rank",
    "matrix_ranks",
    "nearest_rank",
]

FORMS = ("tucker", "cp")
"""How a joint tensor is factorised."""

MATRIX_MODES = ("in", "out", "dh")
"""Modes of features; the others address heads, projections and layers."""


def count_tensor(modes: Mapping[str, int], ranks: Shape, *, form: str = "tucker") -> int:
    """Parameters of one tensor: ``Σ n_k r_k + Π r_k`` as Tucker, ``r Σ n_k`` as CP.

    Args:
        modes: Sizes by name.
        ranks: One for each mode as Tucker, a single one as CP.
        form: One of :data:`FORMS`.

    Raises:
        RankError: Where the ranks are not as many as the form has.

    Example:
        >>> count_tensor({"in": 768, "out": 768, "proj": 3, "layer": 12}, (4, 4, 4, 4))
        6460
    """
    if _is_cp(form):
        _check_number(ranks, 1, form)
        return ranks[0] * sum(modes.values())
    _check_number(ranks, len(modes), form)
    return sum(n * r for n, r in zip(modes.values(), ranks, strict=True)) + math.prod(ranks)


def isorank_ranks(modes: Mapping[str, int], rank: int) -> Shape:
    """The same Tucker rank on every mode, capped at its size: ``min(rank, n_k)``.

    Example:
        >>> isorank_ranks({"in": 768, "out": 768, "proj": 3, "layer": 12}, 4)
        (4, 4, 3, 4)
    """
    positive("rank", rank)
    return tuple(min(rank, n) for n in modes.values())


def matrix_ranks(modes: Mapping[str, int], rank: int, *, form: str = "tucker") -> Shape:
    """This rank on in, out and dh, capped at their sizes, and full ranks on head, proj and layer.

    Args:
        modes: Sizes by name.
        rank: Of matrix modes; the only one of a CP.
        form: One of :data:`FORMS`.

    Example:
        >>> matrix_ranks({"in": 768, "out": 768, "proj": 3, "layer": 12}, 60)
        (60, 60, 3, 12)
    """
    if _is_cp(form):
        return (positive("rank", rank),)
    positive("rank", rank)
    return tuple(min(rank, n) if name in MATRIX_MODES else n for name, n in modes.items())


def isoparameter_ranks(
    modes: Mapping[str, int], budget: int, *, copies: int = 1, form: str = "tucker"
) -> Shape:
    """Ranks for which ``copies`` tensors have the number of parameters nearest to ``budget``.

    Tucker: head, proj and layer have full ranks, in and out equal ones. The nearest number may be above the
    budget; of two as near the smaller is taken.

    Args:
        modes: Sizes by name: in, out (or head and dh), proj, layer.
        budget: Parameters of all copies together.
        copies: Independent tensors of these modes.
        form: One of :data:`FORMS`.

    Example:
        >>> isoparameter_ranks({"in": 768, "out": 768, "proj": 3, "layer": 12}, 221_184)
        (60, 60, 3, 12)
    """
    positive("copies", copies)
    largest = positive("budget", budget) if _is_cp(form) else max(modes.values())

    def count(rank: int) -> int:
        return copies * count_tensor(modes, matrix_ranks(modes, rank, form=form), form=form)

    return matrix_ranks(modes, nearest_rank(count, budget, largest), form=form)


def nearest_rank(count: Callable[[int], int], budget: int, largest: int) -> int:
    """The rank up to ``largest`` whose count is nearest to the budget, for any count that grows with it.

    Example:
        >>> nearest_rank(lambda r: 2 * 768 * r + 24 * r * r, 13_000, 768)
        8
    """
    low, high = 1, positive("largest", largest)
    while low < high:  # the least rank whose count reaches the budget
        middle = (low + high) // 2
        low, high = (middle + 1, high) if count(middle) < budget else (low, middle)
    return min(max(low - 1, 1), low, key=lambda rank: abs(count(rank) - budget))


def largest_rank(count: Callable[[int], int], budget: int, what: str) -> int:
    """A rank with the largest count that is at most the budget, for any count that grows up to some rank.

    Raises:
        SpecError: Where rank 1 has more; says how many, and of what.

    Example:
        >>> largest_rank(lambda rank: 6 * rank, 20, "a layer")
        3
    """
    if count(1) > budget:
        raise SpecError(f"a budget of {budget} parameters for {what} is less than the {count(1)} of rank 1")
    low, high = 1, 2
    while count(low) < count(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(low) < count(middle) <= budget else (low, middle)
    return low


def _is_cp(form: str) -> bool:
    if form not in FORMS:
        raise SpecError(f"form must be one of {', '.join(FORMS)}, not {form!r:.80}")
    return form == "cp"


def _check_number(ranks: Shape, wanted: int, form: str) -> None:
    if len(ranks) != wanted:
        raise RankError(f"form {form!r} needs {wanted} ranks here, not {ranks}")
