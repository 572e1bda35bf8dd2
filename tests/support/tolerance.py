"""The one table of tolerances: how far two results of a dtype may differ, relative to the norm."""

import torch
from torch import Tensor

TOLERANCE = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 5e-2,
}


def gap(a: Tensor, b: Tensor) -> float:
    """Largest entry of |a - b|, relative to the largest entry of b (or 1 where b is tiny)."""
    if a.shape != b.shape:
        raise AssertionError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if not a.numel():
        return 0.0
    wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    a, b = a.detach().to("cpu", wide), b.detach().to("cpu", wide)
    scale = float(b.abs().max())
    return float((a - b).abs().max()) / (scale if scale > 1e-30 else 1.0)


def close(a: Tensor, b: Tensor, *, factor: float = 1.0) -> bool:
    """True where a and b agree to the table's tolerance of the coarser dtype; else raises with the gap."""
    limit = factor * max(TOLERANCE[a.dtype], TOLERANCE[b.dtype])
    found = gap(a, b)
    if not found <= limit:
        raise AssertionError(f"relative gap {found:.3e} exceeds {limit:.1e} ({a.dtype}, {b.dtype})")
    return True
