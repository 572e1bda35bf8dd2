"""Gains: factors of ΔW, of all layers and then of each role, where a model judges."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from tntune.maps.grid import place

__all__ = ["GainSearch", "Gains", "gains_by_role", "rising_gains"]

Gains: TypeAlias = Mapping[str, float]
"""The factor of each layer's ΔW."""

GainSearch: TypeAlias = Callable[[Iterable[str], Callable[[Gains], float], float], Gains]
"""From layers, a rating of gains and that of gains of one to the best gains found."""

_RISING = tuple(1.2**step for step in range(1, 7))
_STEPS = (1.25, 0.8)
_MOST_ROLES = 12


def rising_gains(layers: Iterable[str], rate: Callable[[Gains], float], rating: float) -> Gains:
    """The gain of all layers up to which a rating falls.

    Least squares shrinks what it cannot represent, and the layers after it miss what it has shrunk: so
    what a small budget stores is better somewhat larger, though its error is not.

    Args:
        layers: The layers.
        rate: What is least for the best.
        rating: That of gains of one.

    Returns:
        One factor for all, 1.0 where none is better; at most six ratings were asked.

    Example:
        >>> rising_gains(["h.0.q", "h.0.v"], lambda gains: abs(gains["h.0.q"] - 1.5), 0.5)
        {'h.0.q': 1.44, 'h.0.v': 1.44}
    """
    best = dict.fromkeys(layers, 1.0)
    for gain in _RISING:
        tried = dict.fromkeys(best, gain)
        if not (rated := rate(tried)) < rating:
            break
        best, rating = tried, rated
    return best


def gains_by_role(layers: Iterable[str], rate: Callable[[Gains], float], rating: float) -> Gains:
    """Gains of a quarter up, or a fifth down, for each role with which a rating is then less.

    The layers of one role in all blocks (:func:`tntune.maps.grid.place`) go together, one role after the
    other: at most two ratings for each. Where there are more than twelve roles all gains are 1.0.

    Args:
        layers: The layers.
        rate: What is least for the best.
        rating: That of gains of one.

    Example:
        >>> wanted = {"h.0.q": 1.2, "h.1.q": 1.2, "h.0.v": 1.0}
        >>> rate = lambda gains: sum(abs(gains[name] - wanted[name]) for name in wanted)
        >>> gains_by_role(wanted, rate, 0.4)
        {'h.0.q': 1.25, 'h.1.q': 1.25, 'h.0.v': 1.0}
    """
    best = dict.fromkeys(layers, 1.0)
    roles = sorted({place(name)[1] for name in best})
    for role in roles if len(roles) <= _MOST_ROLES else ():
        for step in _STEPS:
            tried = {name: step if place(name)[1] == role else gain for name, gain in best.items()}
            if (rated := rate(tried)) < rating:
                best, rating = tried, rated
                break
    return best
