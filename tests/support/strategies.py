"""Hypothesis strategies for trains: drawn sizes and a drawn seed, entries from a torch generator."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from tntune.tt.train import ModeSizes, Train, cores, modes, tt_matrix, tt_tensor

WIDE = (torch.float64, torch.float32, torch.complex128)
HALF = (torch.float16, torch.bfloat16)


@st.composite
def tensors(
    draw: st.DrawFn, *, max_order: int = 4, max_mode: int = 4, max_rank: int = 4, dtypes: tuple = WIDE
) -> Train:
    """TTTensors, ranks above what the modes admit included."""
    sizes = draw(st.lists(st.integers(1, max_mode), min_size=1, max_size=max_order))
    return draw(of_modes(tuple(sizes), max_rank=max_rank, dtypes=dtypes))


@st.composite
def matrices(
    draw: st.DrawFn, *, max_order: int = 3, max_mode: int = 3, max_rank: int = 3, dtypes: tuple = WIDE
) -> Train:
    """TTMatrices with rectangular cores."""
    pair = st.tuples(st.integers(1, max_mode), st.integers(1, max_mode))
    sizes = draw(st.lists(pair, min_size=1, max_size=max_order))
    return draw(of_modes(tuple(sizes), max_rank=max_rank, dtypes=dtypes))


def trains(*, dtypes: tuple = WIDE) -> st.SearchStrategy[Train]:
    """Trains of both kinds."""
    return st.one_of(tensors(dtypes=dtypes), matrices(dtypes=dtypes))


@st.composite
def of_modes(draw: st.DrawFn, sizes: ModeSizes, *, max_rank: int = 4, dtypes: tuple = WIDE) -> Train:
    """Trains of given modes, with drawn ranks, dtype and entries."""
    inner = draw(st.lists(st.integers(1, max_rank), min_size=len(sizes) - 1, max_size=len(sizes) - 1))
    dtype, seed = draw(st.sampled_from(dtypes)), draw(st.integers(0, 2**31))
    return random_train(sizes, (1, *inner, 1), dtype=dtype, seed=seed)


@st.composite
def twins(draw: st.DrawFn, *, dtypes: tuple = WIDE) -> tuple[Train, Train]:
    """Two trains of the same modes and dtype, with ranks of their own."""
    x = draw(trains(dtypes=dtypes))
    return x, draw(of_modes(modes(x), max_rank=3, dtypes=(cores(x)[0].dtype,)))


def random_train(sizes: ModeSizes, ranks: tuple[int, ...], *, dtype: torch.dtype, seed: int) -> Train:
    """Standard normal cores."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(n,) if isinstance(n, int) else n for n in sizes]
    drawn = torch.complex128 if dtype.is_complex else torch.float64
    own = [
        torch.randn(ranks[k], *shape, ranks[k + 1], dtype=drawn, generator=generator).to(dtype)
        for k, shape in enumerate(shapes)
    ]
    return tt_tensor(own) if len(shapes[0]) == 1 else tt_matrix(own)


def regauged(x: Train, seed: int) -> Train:
    """The same train with an invertible matrix and its inverse inserted on every bond."""
    own = cores(x)
    generator = torch.Generator().manual_seed(seed)
    for k in range(len(own) - 1):
        gauge = _well_conditioned(own[k].shape[-1], own[k].dtype, generator)
        own[k] = torch.tensordot(own[k], gauge, dims=1)
        own[k + 1] = torch.tensordot(torch.linalg.inv(gauge), own[k + 1], dims=1)
    return tt_tensor(own) if own[0].ndim == 3 else tt_matrix(own)


def _well_conditioned(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix times a diagonal one with entries between 1/2 and 2."""
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return (q * 2 ** (2 * torch.rand(size, dtype=torch.float64, generator=generator) - 1)).to(dtype)
