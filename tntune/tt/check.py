"""What makes a list of tensors the cores of a train; each message names the core and both sizes."""

from collections.abc import Sequence

from torch import Tensor

from tntune.errors import DtypeError, ModeError, RankError

__all__ = ["check_cores", "check_tensors"]

_LEGS = {3: "(r, n, r')", 4: "(r, n_in, n_out, r')"}


def check_cores(cores: Sequence[Tensor], order: int) -> None:
    """Raise unless the cores have that many ways, one dtype and device, and ranks that form a chain.

    Raises:
        ModeError: No core at all, a core of other ways, or a size of zero.
        RankError: Neighbouring ranks that differ, or an outer rank other than 1.
        DtypeError: Something other than torch tensors, or two dtypes or devices.

    Example:
        >>> import torch
        >>> check_cores([torch.ones(1, 2, 3), torch.ones(3, 4, 1)], 3) is None
        True
    """
    if not cores:
        raise ModeError("a train needs at least one core, none was given")
    check_tensors(cores)
    for k, core in enumerate(cores):
        _check_shape(k, core, order)
        _check_place(k, core, cores[0])
    _check_ranks(cores)


def check_tensors(cores: Sequence[Tensor]) -> None:
    """Raise unless every core is a torch tensor; numpy arrays, tensorly's default, are not.

    Raises:
        DtypeError: Names the first core that is none.

    Example:
        >>> import torch
        >>> check_tensors([torch.ones(1, 2, 1)]) is None
        True
    """
    for k, core in enumerate(cores):
        if not isinstance(core, Tensor):
            found = type(core).__name__
            raise DtypeError(f"core {k} is a {found}; torch tensors are needed (torch.as_tensor makes one)")


def _check_shape(k: int, core: Tensor, order: int) -> None:
    """Raise where a core has other ways than its kind of train, or a size of zero."""
    shape = tuple(core.shape)
    if core.ndim != order:
        raise ModeError(f"core {k} has {core.ndim} ways, shape {shape}; needed are {order}: {_LEGS[order]}")
    if 0 in shape:
        raise ModeError(f"core {k} has a size of zero: shape {shape}")


def _check_place(k: int, core: Tensor, first: Tensor) -> None:
    """Raise where a core has another dtype or device than the first one."""
    own, needed = (core.dtype, core.device), (first.dtype, first.device)
    if own != needed:
        raise DtypeError(f"core {k} is {own[0]} on {own[1]}, core 0 is {needed[0]} on {needed[1]}")


def _check_ranks(cores: Sequence[Tensor]) -> None:
    """Raise where the ranks of neighbours differ, or an outer rank is not 1."""
    ends = [1, *(core.shape[-1] for core in cores)]
    for k, core in enumerate(cores):
        if core.shape[0] != ends[k]:
            needed = f"core {k - 1} ends with rank {ends[k]}" if k else "the first rank must be 1"
            raise RankError(f"core {k} starts with rank {core.shape[0]}, {needed}")
    if ends[-1] != 1:
        raise RankError(f"core {len(cores) - 1} ends with rank {ends[-1]}, the last rank must be 1")
