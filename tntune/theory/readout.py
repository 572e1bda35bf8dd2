"""Read-out weights: which entries of a train a map reads, and with which scale, as a train of tiny ranks."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from tntune.errors import UnsupportedError
from tntune.maps.layout import Concat, Geometry, Joined, Layout
from tntune.maps.pattern import digits
from tntune.tt.rounding import round_tt
from tntune.tt.train import cores, tt_tensor

__all__ = ["readout_train"]

_Term = dict[str, Tensor]  # a product over legs: one vector for each leg that it depends on
_Sum = list[tuple[float, _Term]]


def readout_train(
    layout: Layout, geometry: Geometry, *, down_scale: float = 1.0, up_scale: float = 1.0
) -> list[Tensor]:
    """Weights of the entries: ``down_scale`` where W1 is read, ``up_scale`` where W2 is, 0 on padding.

    A prefix of a mixed-radix index, ``i < c``, is a sum of one product for each digit: the digits in front
    agree with those of c, this one is less. So the weights are a train, exact to rounding, whose ranks grow
    with the number of digits and not with the number of entries.

    Args:
        layout: A :class:`Concat` or a :class:`Joined`.
        geometry: ``(in_features, out_features, width)``.
        down_scale: Weight of the entries of down.
        up_scale: Weight of the entries of up.

    Returns:
        Cores (t, m_k, t'), float64, on the CPU, in O(K^4) for K digits.

    Raises:
        UnsupportedError: For another layout.

    Example:
        >>> from tntune.tt.train import dense
        >>> weights = readout_train(Concat((2, 3)), Geometry(2, 1, 1), up_scale=5.0)
        >>> dense(tt_tensor(weights)).round().tolist()
        [[1.0, 1.0, 5.0], [5.0, 5.0, 5.0]]
    """
    if isinstance(layout, Concat):
        legs = {f"m{k}": size for k, size in enumerate(layout.modes)}
        first = geometry.in_features * geometry.width
        terms = [(down_scale - up_scale, term) for term in _below(legs, first)] + [(up_scale, {})]
        return _train(terms, [(name,) for name in legs], legs)
    if isinstance(layout, Joined):
        terms = _joined(layout, geometry, down_scale, up_scale)
        return _train(terms, layout.groups, layout.legs)
    raise UnsupportedError(f"{layout.kind} has no read-out train; concat and joined have")


def _joined(layout: Joined, geometry: Geometry, down_scale: float, up_scale: float) -> _Sum:
    """The weights of a joined layout as a sum of products."""
    d, q, _ = geometry
    legs = {name: layout.legs[name] for name in digits(layout.legs, layout.family)}
    if "side" not in layout.legs:
        head = [(down_scale - up_scale, term) for term in _below(legs, d)]
        return head + [(up_scale, term) for term in _below(legs, d + q)]
    down, up = torch.eye(2, dtype=torch.float64)
    head = [(down_scale, {**term, "side": down}) for term in _below(legs, d)]
    first = d if layout.family == "io" else 0  # where up begins
    before = [(-up_scale, {**term, "side": up}) for term in _below(legs, first)] if first else []
    return head + before + [(up_scale, {**term, "side": up}) for term in _below(legs, first + q)]


def _below(legs: dict[str, int], bound: int) -> list[_Term]:
    """``index < bound`` as a sum of products over the digits, the first the most significant."""
    sizes = list(legs.values())
    total = int(torch.Size(sizes).numel())
    if bound >= total:
        return [{}]
    terms, head = [], _Term()
    for name, size in legs.items():
        total //= size
        digit, bound = divmod(bound, total)
        if digit:
            terms.append({**head, name: _indicator(size, 0, digit)})
        head = {**head, name: _indicator(size, digit, digit + 1)}
    return terms


def _indicator(size: int, start: int, stop: int) -> Tensor:
    """1 from start to stop, else 0."""
    vector = torch.zeros(size, dtype=torch.float64)
    vector[start:stop] = 1.0
    return vector


def _train(terms: _Sum, groups: Sequence[tuple[str, ...]], legs: dict[str, int]) -> list[Tensor]:
    """The sum of products as a train of the least ranks: one mode for each group of legs."""
    kept = [(scale, term) for scale, term in terms if scale != 0.0] or [(0.0, _Term())]
    own = []
    for group in groups:
        rows = [reduce(torch.kron, [_factor(term, name, legs) for name in group]) for _, term in kept]
        own.append(torch.stack(rows))  # (terms, m)
    own[0] = own[0] * torch.tensor([scale for scale, _ in kept], dtype=torch.float64)[:, None]
    wide = [torch.diag_embed(core.mT).movedim(0, 1) for core in own]  # (terms, m, terms)
    wide[0] = wide[0].sum(0, keepdim=True)
    wide[-1] = wide[-1].sum(-1, keepdim=True)
    return wide if len(kept) == 1 else cores(round_tt(tt_tensor(wide)).value)


def _factor(term: _Term, name: str, legs: dict[str, int]) -> Tensor:
    """The vector of a term on one leg: ones where it does not depend on it."""
    return term.get(name, torch.ones(legs[name], dtype=torch.float64))
