"""Basis: the change of bond basis between two cores of the same train, and what it does to Adam's moments."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from tntune.errors import SpecError, UnsupportedError
from tntune.theory.environment import left_overlaps, right_overlaps

__all__ = ["Basis", "basis_change", "check_optimizer", "swap_parameter", "transported"]

_FIRST = ("exp_avg", "momentum_buffer")
_SECOND = ("exp_avg_sq", "max_exp_avg_sq")


class Basis(NamedTuple):
    """Change of the basis of one bond: new cores are ``back_{k-1} G_k onto_k``, and ``back @ onto == 1``.

    Attributes:
        onto: ``(r, r')`` with orthonormal columns: the directions of the old bond that stay.
        back: ``(r', r)``, its left inverse that respects the train.

    Example:
        >>> Basis(torch.eye(3)[:, :2], torch.eye(3)[:2]).onto.shape
        torch.Size([3, 2])
    """

    onto: Tensor
    back: Tensor


def basis_change(old: Sequence[Tensor], new: Sequence[Tensor]) -> tuple[list[Tensor], list[Basis]]:
    """Cores of the tensor of ``new`` in the basis nearest to ``old``'s, and the change that leads there.

    Bonds of the result are orthonormal directions of the old bonds, so a step of an optimiser means in the
    new cores what it meant in the old ones; between trains of equal ranks the change is a rotation or near
    to it. With L and R for what is left and right of a bond, ``onto`` spans ``R_old R_newᵀ`` and ``back`` is
    the inverse of ``L_newᵀ L_old onto``, times ``L_newᵀ L_old``. A zero train keeps its leading directions.

    Args:
        old: Cores (r, n, r') of one train, in float64.
        new: Cores of a left-orthogonal train of the same modes and at most the same ranks, as
            :func:`tntune.tt.round_tt` makes them.

    Returns:
        The cores, and K + 1 changes, those of the ends being 1.

    Example:
        >>> old = [torch.eye(2)[None], 3 * torch.eye(2)[..., None]]
        >>> cores, changes = basis_change(old, old)
        >>> torch.allclose(cores[0], old[0] @ changes[1].onto)
        True
    """
    if not bool((new[-1] != 0).any()):
        return _leading(old, new)
    lefts, rights = left_overlaps(new, old), right_overlaps(old, new)
    ends = Basis(old[0].new_ones(1, 1), old[0].new_ones(1, 1))
    turns, changes = [ends.onto], [ends]
    for left, right in zip(lefts[1:-1], rights[1:-1], strict=True):
        onto = torch.linalg.qr(right / torch.linalg.vector_norm(right, dim=0))[0]
        turn = left @ onto  # new bond @ turn is the bond of the result
        turns.append(turn)
        changes.append(Basis(onto, torch.linalg.solve(turn, left)))
    turns, changes = [*turns, ends.onto], [*changes, ends]
    turned = [
        torch.linalg.solve(before, torch.tensordot(core, after, dims=1).flatten(1)).reshape(
            len(core), -1, after.shape[1]
        )
        for before, core, after in zip(turns[:-1], new, turns[1:], strict=True)
    ]
    return turned, changes


def transported(moment: Tensor, left: Basis, right: Basis, *, squared: bool = False) -> Tensor:
    """What becomes of a core's moment: ``g' = onto_{k-1}ᵀ g backᵀ_k``, as its gradient becomes.

    A first moment is a mean of gradients and transforms as they do, exactly for the part of the train that is
    kept. A second moment is the diagonal of their covariance, of which a rotation would need the rest too:
    it transforms with the squares of both matrices, exact where entries of the gradient are uncorrelated and
    for permutations, signs and scales; it stays non-negative.

    Args:
        moment: ``(r, n, r')``.
        left: Change of the bond before the core.
        right: Change of the bond behind it.
        squared: Whether it is a second moment.

    Example:
        >>> same = Basis(torch.eye(2), torch.eye(2))
        >>> torch.equal(transported(torch.ones(2, 3, 2), same, same), torch.ones(2, 3, 2))
        True
    """
    onto, back = left.onto, right.back
    if squared:
        onto, back = onto.square(), back.square()
    return torch.einsum("ai,anb,jb->inj", onto, moment, back)


def swap_parameter(
    optimizer: Optimizer, old: Tensor, new: Tensor, left: Basis, right: Basis, *, core: Sequence[int]
) -> None:
    """Let the optimiser train ``new`` in place of ``old``, with its moments in the new basis.

    Args:
        optimizer: It may have no state for the parameter yet.
        old: The parameter it has.
        new: The one it gets, in the same group.
        left: Change of the bond before the core.
        right: Change of the bond behind it.
        core: Shape ``(r, .., r')`` of the old parameter as a core.

    Example:
        >>> old, new = torch.ones(2, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
        >>> optimizer = torch.optim.Adam([old])
        >>> half = Basis(torch.eye(2)[:, :1], torch.eye(2)[:1])
        >>> swap_parameter(optimizer, old, new, half, Basis(torch.eye(1), torch.eye(1)), core=(2, 3, 1))
        >>> optimizer.param_groups[0]["params"][0] is new
        True
    """
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, {})
    moved = {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.shape != old.shape:
            moved[name] = value
            continue
        wide = value.to(left.onto).reshape(core[0], -1, core[-1])
        there = transported(wide, left, right, squared=name in _SECOND)
        moved[name] = there.reshape(new.shape).to(value.dtype)
    if moved:
        optimizer.state[new] = moved


def check_optimizer(optimizer: Optimizer, params: Sequence[Tensor]) -> None:
    """Raise unless the optimiser trains these params and its state can follow them to another basis.

    Raises:
        SpecError: Where it does not have all of them.
        UnsupportedError: Where its state holds a tensor of a parameter's shape whose meaning is not known.

    Example:
        >>> param = torch.ones(2, requires_grad=True)
        >>> check_optimizer(torch.optim.AdamW([param]), [param])
    """
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(parameter not in held for parameter in params)
    if missing:
        raise SpecError(
            f"the optimiser lacks {missing} of the {len(params)} params whose ranks are to change"
        )
    for parameter in params:
        for name, value in optimizer.state.get(parameter, {}).items():
            shaped = isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0
            if shaped and name not in _FIRST + _SECOND:
                raise UnsupportedError(
                    f"{type(optimizer).__name__} keeps {name!r}, and how it follows a change of basis is not "
                    f"known; known are {', '.join(_FIRST + _SECOND)}"
                )


def _leading(old: Sequence[Tensor], new: Sequence[Tensor]) -> tuple[list[Tensor], list[Basis]]:
    """The first directions of every bond."""
    ranks = [1, *(len(core) for core in new[1:]), 1]
    olds = [1, *(len(core) for core in old[1:]), 1]
    eyes = [torch.eye(a, b).to(old[0]) for a, b in zip(olds, ranks, strict=True)]
    cores = [core[:a, :, :b] for core, a, b in zip(old, ranks[:-1], ranks[1:], strict=True)]
    return cores, [Basis(eye, eye.mT) for eye in eyes]
