"""Tensor trains as values: tensorly's ``TTTensor`` and ``TTMatrix`` holding torch cores, checked and read."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from tensorly.tt_matrix import TTMatrix
from tensorly.tt_tensor import TTTensor
from torch import Tensor

from tntune.errors import DtypeError, ModeError
from tntune.tt.check import check_cores, check_tensors

__all__ = [
    "ModeSizes",
    "Train",
    "compute_dtype",
    "cores",
    "dense",
    "flatten",
    "merged_modes",
    "modes",
    "num_parameters",
    "ranks",
    "restored",
    "to",
    "tt_matrix",
    "tt_tensor",
    "unflatten",
    "working_cores",
]

Train: TypeAlias = TTTensor | TTMatrix
ModeSizes: TypeAlias = tuple[int, ...] | tuple[tuple[int, int], ...]

_COMPUTE = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.complex64,
    torch.complex128: torch.complex128,
}


def tt_tensor(cores: Sequence[Tensor]) -> TTTensor:
    """Train of the given cores: ``dense(x)[i, j, ...] == cores[0][:, i] @ cores[1][:, j] @ ...``.

    The cores are kept as they are: nothing is copied and gradients flow through.

    Args:
        cores: Tensors (r_{k-1}, n_k, r_k) of one dtype and device, with outer ranks 1.

    Returns:
        tensorly's own ``TTTensor``.

    Raises:
        ModeError: No core at all, a core that is not 3-way, or a size of zero.
        RankError: Neighbouring ranks that differ, or an outer rank other than 1.
        DtypeError: Something other than torch tensors of one supported dtype and one device.

    Example:
        >>> x = tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])
        >>> ranks(x), modes(x)
        ((1, 3, 1), (2, 4))

    Reference: Oseledets (2011), Tensor-train decomposition, equation 1.3.
    """
    check_cores(cores, 3)
    compute_dtype(cores[0].dtype)
    return TTTensor(list(cores))


def tt_matrix(cores: Sequence[Tensor]) -> TTMatrix:
    """Matrix of the given cores: ``dense(x)[(i, k), (j, l)] == cores[0][:, i, j] @ cores[1][:, k, l]``.

    Args:
        cores: Tensors (r_{k-1}, n_in, n_out, r_k) of one dtype and device, with outer ranks 1.

    Returns:
        tensorly's own ``TTMatrix``, a matrix of prod(n_in) rows and prod(n_out) columns. Raises as
        :func:`tt_tensor` does.

    Example:
        >>> x = tt_matrix([torch.ones(1, 2, 5, 3), torch.ones(3, 4, 6, 1)])
        >>> tuple(dense(x).shape)
        (8, 30)
    """
    check_cores(cores, 4)
    compute_dtype(cores[0].dtype)
    return TTMatrix(list(cores))


def cores(x: Train) -> list[Tensor]:
    """The cores of a train: ``tt_tensor(cores(x))`` is x again (``tt_matrix`` for matrices).

    Also reads the trainable ``TTTensor`` and ``BlockTT`` modules of tensorly-torch, whose parameters it
    returns.

    Raises:
        ModeError: Where x is no train: it has no cores, or they are not all 3-way or all 4-way.
        DtypeError: Where the cores are not torch tensors.

    Example:
        >>> [tuple(core.shape) for core in cores(tt_tensor([torch.ones(1, 2, 1)]))]
        [(1, 2, 1)]
    """
    factors = list(getattr(x, "factors", ()))
    check_tensors(factors)
    orders = {core.ndim for core in factors}
    if orders not in ({3}, {4}):
        found = f"cores of {sorted(orders)} ways" if orders else "no cores"
        raise ModeError(
            f"{type(x).__name__} is no tensor train: it has {found}; all must be 3-way or all 4-way"
        )
    return factors


def ranks(x: Train) -> tuple[int, ...]:
    """The K + 1 TT-ranks: ``ranks(x)[k] == cores(x)[k].shape[0]``, with 1 at both ends.

    Example:
        >>> ranks(tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)]))
        (1, 3, 1)
    """
    return (*(core.shape[0] for core in cores(x)), 1)


def modes(x: Train) -> ModeSizes:
    """The mode sizes, one per core: ints of a tensor, ``(n_in, n_out)`` pairs of a matrix.

    Example:
        >>> modes(tt_matrix([torch.ones(1, 2, 5, 3), torch.ones(3, 4, 6, 1)]))
        ((2, 5), (4, 6))
    """
    own = cores(x)
    if own[0].ndim == 3:
        return tuple(core.shape[1] for core in own)
    return tuple((core.shape[1], core.shape[2]) for core in own)


def num_parameters(x: Train) -> int:
    """Number of core entries: ``sum(core.numel() for core in cores(x))``.

    Example:
        >>> num_parameters(tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)]))
        18
    """
    return sum(core.numel() for core in cores(x))


def dense(x: Train) -> Tensor:
    """All entries: a tensor of shape ``modes(x)``, or a matrix (prod n_in, prod n_out).

    Grows a left and a right part, always the smaller one, and joins them by one product, so that the work
    before that product is of the order of the square root of the result. Differentiable; half precision is
    computed in float32 and returned in its own dtype.

    Example:
        >>> dense(tt_tensor([torch.ones(1, 2, 3), torch.ones(3, 4, 1)])).sum().item()
        24.0
    """
    left, right = _halves(working_cores(x))
    return _arranged((left @ right).to(cores(x)[0].dtype), modes(x))


def flatten(x: Train) -> TTTensor:
    """Each pair of modes merged into one: ``unflatten(flatten(x), modes(x))`` is x; tensors stay themselves.

    What is written for 3-way cores then serves matrices too; :func:`unflatten` goes back. No entry is copied.

    Example:
        >>> modes(flatten(tt_matrix([torch.ones(1, 2, 5, 3), torch.ones(3, 4, 6, 1)])))
        (10, 24)
    """
    return TTTensor([core.flatten(1, -2) for core in cores(x)])


def unflatten(x: TTTensor, modes: ModeSizes) -> Train:
    """Modes split into pairs again: ``unflatten(flatten(x), modes(x))`` is x.

    Args:
        x: Train with 3-way cores.
        modes: One int per core (returns a ``TTTensor``) or one pair per core (a ``TTMatrix``), as
            :func:`modes` gives.

    Raises:
        ModeError: Where the number of modes, or the size of one, is not that of x; names the core.

    Example:
        >>> x = tt_matrix([torch.ones(1, 2, 5, 3), torch.ones(3, 4, 6, 1)])
        >>> torch.equal(dense(unflatten(flatten(x), modes(x))), dense(x))
        True
    """
    own, shapes = cores(x), [_shape(mode) for mode in modes]
    if len(own) != len(shapes):
        raise ModeError(f"{len(shapes)} modes given for {len(own)} cores")
    for k, (core, shape) in enumerate(zip(own, shapes, strict=True)):
        if core.shape[1:-1].numel() != torch.Size(shape).numel():
            raise ModeError(f"core {k} has mode {core.shape[1]}, which is not the product of {shape}")
    return _of_modes(own, shapes)


def to(x: Train, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Train:
    """The same train in another dtype or on another device: ``dense(to(x, dtype=d)) == dense(x).to(d)``.

    Example:
        >>> cores(to(tt_tensor([torch.ones(1, 2, 1)]), dtype=torch.float64))[0].dtype
        torch.float64
    """
    moved = [core.to(device=device, dtype=dtype or core.dtype) for core in cores(x)]
    return TTTensor(moved) if moved[0].ndim == 3 else TTMatrix(moved)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype arithmetic runs in: float32 for float16 and bfloat16, else the dtype itself.

    Raises:
        DtypeError: For integers, booleans and other dtypes that have no trains.

    Example:
        >>> compute_dtype(torch.bfloat16), compute_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    if dtype not in _COMPUTE:
        raise DtypeError(f"{dtype} is not supported; use one of {', '.join(map(str, _COMPUTE))}")
    return _COMPUTE[dtype]


def merged_modes(x: Train) -> tuple[int, ...]:
    """Mode sizes with each pair multiplied: ``merged_modes(x) == modes(flatten(x))``.

    Example:
        >>> merged_modes(tt_matrix([torch.ones(1, 2, 5, 3), torch.ones(3, 4, 6, 1)]))
        (10, 24)
    """
    return tuple(core.shape[1:-1].numel() for core in cores(x))


def working_cores(x: Train) -> list[Tensor]:
    """The 3-way cores of ``flatten(x)`` in the dtype arithmetic runs in.

    Example:
        >>> working_cores(tt_tensor([torch.ones(1, 2, 1, dtype=torch.bfloat16)]))[0].dtype
        torch.float32
    """
    return [core.flatten(1, -2).to(compute_dtype(core.dtype)) for core in cores(x)]


def restored(cores: Sequence[Tensor], modes: ModeSizes, dtype: torch.dtype) -> Train:
    """The way back from :func:`working_cores`: ``restored(working_cores(x), modes(x), dtype of x)`` is x.

    The cores of the result are contiguous, ready to be saved.

    Example:
        >>> x = tt_matrix([torch.ones(1, 2, 5, 3), torch.ones(3, 4, 6, 1)])
        >>> restored(working_cores(x), modes(x), torch.float32).shape
        (2, 4, 5, 6)
    """
    plain = [core.to(dtype).resolve_conj().contiguous() for core in cores]
    return _of_modes(plain, [_shape(mode) for mode in modes])


def _of_modes(cores: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Train:
    """The train of these cores with their merged modes split into those shapes."""
    split = [core.reshape(len(core), *shape, -1) for core, shape in zip(cores, shapes, strict=True)]
    return tt_tensor(split) if len(shapes[0]) == 1 else tt_matrix(split)


def _halves(cores: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Left part (N1, r) and right part (r, N2) whose product is the train, grown to about the same size."""
    left = right = cores[0].new_ones(1, 1)
    first, last = 0, len(cores)
    while first < last:
        if left.numel() <= right.numel():
            core = cores[first]  # (r, n, r')
            left, first = (left @ core.flatten(1)).reshape(-1, core.shape[2]), first + 1
        else:
            core = cores[last - 1]
            right, last = (core.flatten(0, 1) @ right).reshape(core.shape[0], -1), last - 1
    return left, right


def _arranged(entries: Tensor, sizes: ModeSizes) -> Tensor:
    """Entries in the order of the merged modes, as the tensor or the matrix they belong to."""
    shapes = [_shape(mode) for mode in sizes]
    full = entries.reshape([size for shape in shapes for size in shape])
    if len(shapes[0]) == 1:
        return full
    rows = torch.Size(shape[0] for shape in shapes).numel()
    order = [*range(0, full.ndim, 2), *range(1, full.ndim, 2)]
    return full.permute(order).reshape(rows, -1)


def _shape(mode: int | tuple[int, int]) -> tuple[int, ...]:
    """The legs of one mode: (n,) of a tensor, (n_in, n_out) of a matrix."""
    return (mode,) if isinstance(mode, int) else tuple(mode)
