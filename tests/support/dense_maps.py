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


# Joint maps: ΔW (sites, out, in) of every site, one matrix after another.


def tenslora_delta(
    nodes: dict[str, np.ndarray], modes: Sequence[str], stack: tuple[int, int], order: str, turned: tuple
) -> np.ndarray:
    """The full tensor of every replica, then its slice; ``order`` is how out features split into heads."""
    untied = [name for name in ("layer", "proj") if name not in modes]

    def matrix(layer: int, proj: int) -> np.ndarray:
        address = {"layer": layer, "proj": proj}
        own = {name: array[tuple(address[leg] for leg in untied)] for name, array in nodes.items()}
        factors = [own[f"tn_{name}"] for name in modes]
        tensor = full_tensor(factors, own.get("tn_core"))
        for axis, name in reversed(list(enumerate(modes))):
            if name in address:
                tensor = tensor.take(address[name], axis=axis)
        if order == "head dh":  # the axes are (in, dh, head)
            tensor = tensor.swapaxes(1, 2)
        delta = tensor.reshape(tensor.shape[0], -1)  # (in, out)
        return delta if proj in turned else delta.T

    return np.array([matrix(layer, proj) for layer, proj in np.ndindex(*stack)])


def full_tensor(factors: Sequence[np.ndarray], core: np.ndarray | None) -> np.ndarray:
    """``core x_1 U_1 x_2 U_2 ...``, or for no core the sum of outer products of columns."""
    order = len(factors)
    if core is None:
        core = np.zeros([factors[0].shape[1]] * order)
        core[(np.arange(factors[0].shape[1]),) * order] = 1
    operands: list[object] = [core, list(range(order))]
    for k, factor in enumerate(factors):
        operands += [factor, [order + k, k]]
    return np.einsum(*operands, list(range(order, 2 * order)), optimize=True)


def lotr_delta(nodes: dict[str, np.ndarray]) -> np.ndarray:
    """``(U C_s V^T)^T`` of every site."""
    core = nodes["tn_core"].reshape(-1, *nodes["tn_core"].shape[-2:])
    return np.array([(nodes["tn_in"] @ c @ nodes["tn_out"].T).T for c in core])


def fact_tucker_delta(nodes: dict[str, np.ndarray]) -> np.ndarray:
    """``(U (Σ_c P[s, c] C[:, :, c]) V^T)^T`` of every site."""
    sites = nodes["tn_site"].reshape(-1, nodes["tn_site"].shape[-1])
    cores = [sum(p[c] * nodes["tn_core"][:, :, c] for c in range(len(p))) for p in sites]
    return np.array([(nodes["tn_in"] @ core @ nodes["tn_out"].T).T for core in cores])


def lorta_delta(nodes: dict[str, np.ndarray], stack: tuple[int, int], turned: tuple) -> np.ndarray:
    """``A diag(C_head[h] * C_proj[p] * C_layer[l]) B`` in the columns of head h, or its transpose."""

    def matrix(layer: int, proj: int) -> np.ndarray:
        weights = [row * nodes["tn_proj"][proj] * nodes["tn_layer"][layer] for row in nodes["tn_head"]]
        delta = np.hstack([nodes["tn_in"] @ np.diag(w) @ nodes["tn_dh"].T for w in weights])
        return delta if proj in turned else delta.T

    return np.array([matrix(layer, proj) for layer, proj in np.ndindex(*stack)])


def metatt_delta(nodes: dict[str, np.ndarray], stack: tuple[int, int], turned: tuple) -> np.ndarray:
    """Products of core slices, in the columns of head h where there are heads, or the transpose."""

    def matrix(layer: int, proj: int) -> np.ndarray:
        left = nodes["tn_in"] @ nodes["tn_layer"][:, layer] @ nodes["tn_proj"][:, proj]
        if "tn_out" in nodes:
            return (left @ nodes["tn_out"]).T
        heads = nodes["tn_head"].shape[1]
        delta = np.hstack([left @ nodes["tn_head"][:, h] @ nodes["tn_dh"] for h in range(heads)])
        return delta if proj in turned else delta.T

    return np.array([matrix(layer, proj) for layer, proj in np.ndindex(*stack)])


def delta_train_delta(
    cores: Sequence[np.ndarray], in_modes: Sequence[int], out_modes: Sequence[int]
) -> np.ndarray:
    """Entries as products of core slices: input digits from the least significant, output from the most."""
    delta = np.zeros((math.prod(out_modes), math.prod(in_modes)))
    for column in range(delta.shape[1]):
        rest, below = column, []
        for n in in_modes:
            rest, digit = divmod(rest, n)
            below.append(digit)
        for row, above in enumerate(np.ndindex(*out_modes)):
            product = np.eye(1)
            for core, digit in zip(cores, (*below, *above), strict=True):
                product = product @ core[:, digit]
            delta[row, column] = product[0, 0]
    return delta[None]
