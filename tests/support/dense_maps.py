"""The maps' formulas in numpy, entry by entry: short and obviously right. Nothing here imports tntune."""

import math
import re
from collections.abc import Sequence

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def entries(cores: Sequence[np.ndarray], z: np.ndarray | None = None) -> np.ndarray:
    """``w[m] = Σ_{n, rho} z[n] Π_k G_k[rho_{k-1}, n_k, m_k, rho_k]``, boundary bonds summed."""
    order = len(cores)
    operands: list[object] = []
    for k, core in enumerate(cores):
        legs = [k, 100 + k, 200 + k, k + 1] if z is not None else [k, 200 + k, k + 1]
        operands += [core, [_letter(leg, order) for leg in legs]]
    if z is not None:
        operands += [z, [_letter(100 + k, order) for k in range(order)]]
    return np.einsum(*operands, [_letter(200 + k, order) for k in range(order)], optimize=True)


def concat_factors(flat: np.ndarray, d: int, q: int, width: int) -> Pair:
    """The paper's read-out: W1 = w[:DM] as D x M, W2 = w[DM:] as M x Q; ours are their transposes."""
    w = flat.reshape(-1)
    return w[: d * width].reshape(d, width).T, w[d * width :].reshape(width, q).T


def joined_factors(w: np.ndarray, pattern: str, sizes: Sequence[int], d: int, q: int, width: int) -> Pair:
    """Every entry of down (sites, M, D) and up (sites, Q, M) looked up by its mixed-radix digits."""
    groups = [token.strip("()").split() for token in re.findall(r"\([^)]*\)|\w+", pattern)]
    legs = dict(zip((name for group in groups for name in group), sizes, strict=True))
    layers, projections = legs.get("layer", 1), legs.get("proj", 1)

    def entry(layer: int, proj: int, side: int, feature: int, inner: int) -> float:
        values = {"layer": layer, "proj": proj, "side": side}
        values |= _digits(legs, "f", feature) | _digits(legs, "w", inner)
        values |= _digits(legs, "io", feature + side * d)
        return w[tuple(_position(group, legs, values) for group in groups)]

    address = [(layer, proj) for layer in range(layers) for proj in range(projections)]
    down = [[[entry(*a, 0, f, m) for f in range(d)] for m in range(width)] for a in address]
    up = [[[entry(*a, 1, f, m) for m in range(width)] for f in range(q)] for a in address]
    return np.array(down), np.array(up)


def _letter(leg: int, order: int) -> int:
    """A number below 52 for a bond (0..K), a latent leg (100..) or an open leg (200..)."""
    family, k = divmod(leg, 100)
    return k if family == 0 else order + 1 + (family - 1) * order + k


def _digits(legs: dict[str, int], family: str, value: int) -> dict[str, int]:
    """Digits of a value over the legs of a family, the leg of the least number the most significant."""
    own = sorted(
        (name for name in legs if re.fullmatch(rf"{family}\d*", name)),
        key=lambda name: int(name.removeprefix(family) or 0),
    )
    found = {}
    for name in reversed(own):
        value, found[name] = divmod(value, legs[name])
    return found


def _position(group: Sequence[str], legs: dict[str, int], values: dict[str, int]) -> int:
    """Index into a mode that several legs share, the first leg the most significant."""
    sizes = [legs[name] for name in group]
    return sum(values[name] * math.prod(sizes[i + 1 :]) for i, name in enumerate(group))
