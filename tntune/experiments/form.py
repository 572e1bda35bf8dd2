"""Form: what a method says of its maps beside their size."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """Options of a map; each kind uses some, and :class:`tntune.experiments.Method` refuses the others.

    Attributes:
        width: M, where the budget chooses the ranks.
        layout: ``"concat"`` or a pattern of :class:`tntune.maps.Joined`; None lets the kind choose.
        latent: ``"none"``, ``"fixed"``, ``"resample"`` or ``"mean"``.
        start: How maps start.
        variant: Which of its forms a family member takes: a construction of TensLoRA, ``"tt"`` or
            ``"tucker"`` for FacT; None for its first.
        heads: Attention heads, for maps with a head mode.
        map: One exact map as its JSON, for rows of a published table.

    Example:
        >>> Form(width=4).latent
        'none'
    """

    width: int = 8
    layout: str | None = None
    latent: str = "none"
    start: str = "zero"
    variant: str | None = None
    heads: int = 1
    map: dict[str, Any] | None = None
