"""Canonical forms of a train: all weight in one core."""

from torch import Tensor

from tntune.errors import ModeError
from tntune.tt.linalg import thin_qr
from tntune.tt.train import Train, cores, modes, restored, working_cores

__all__ = ["orthogonalize", "right_orthogonal"]


def orthogonalize(x: Train, centre: int = -1) -> Train:
    """The same train in canonical form: ``dense(orthogonalize(x, c)) == dense(x)``, all weight in core c.

    Cores before the centre have orthonormal columns (left-orthogonal), cores after it orthonormal rows, so
    the norm of x is that of the centre core. Ranks that the mode sizes do not admit shrink. Differentiable
    where the cores have full rank; half precision is computed in float32.

    Args:
        x: Train of K cores.
        centre: Which core keeps the weight, in [-K, K): -1 makes the left-orthogonal form, 0 the
            right-orthogonal.

    Raises:
        ModeError: Where there is no such core.

    Example:
        >>> import torch
        >>> from tntune.tt.train import tt_tensor
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> first = cores(orthogonalize(x))[0].flatten(0, 1)
        >>> torch.allclose(first.T @ first, torch.eye(2))
        True

    Reference: Oseledets (2011), algorithm 2.
    """
    own = working_cores(x)
    if not -len(own) <= centre < len(own):
        raise ModeError(f"centre {centre} is not among the {len(own)} cores")
    centre %= len(own)
    head = _left_orthogonal(own[: centre + 1])
    tail = right_orthogonal([head[-1], *own[centre + 1 :]])
    return restored([*head[:-1], *tail], modes(x), cores(x)[0].dtype)


def right_orthogonal(cores: list[Tensor]) -> list[Tensor]:
    """The same product of 3-way cores, all but the first with orthonormal rows.

    Example:
        >>> import torch
        >>> first, last = right_orthogonal([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> tuple(first.shape), tuple(last.shape)
        ((1, 2, 3), (3, 4, 1))
    """
    done, rest = [], cores[-1]
    for core in reversed(cores[:-1]):
        q, r = thin_qr(rest.flatten(1).mH)
        done.append(q.mH.reshape(-1, *rest.shape[1:]))
        rest = (core.flatten(0, 1) @ r.mH).reshape(*core.shape[:2], -1)
    return [rest, *reversed(done)]


def _left_orthogonal(cores: list[Tensor]) -> list[Tensor]:
    """The same product of 3-way cores, all but the last with orthonormal columns."""
    done, rest = [], cores[0]
    for core in cores[1:]:
        q, r = thin_qr(rest.flatten(0, 1))
        done.append(q.reshape(*rest.shape[:2], -1))
        rest = (r @ core.flatten(1)).reshape(-1, *core.shape[1:])
    return [*done, rest]
