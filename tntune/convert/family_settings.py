"""FamilySettings: to which of the published methods a LoRA is converted, and how far."""

from dataclasses import dataclass
from typing import Any

import torch

from tntune.convert.encode import check_stored
from tntune.convert.target import Target
from tntune.errors import SpecError
from tntune.maps.recipe import METHODS, Recipe

__all__ = ["FAMILY_METHODS", "FamilySettings"]

FAMILY_METHODS = tuple(method for method in METHODS if method not in ("tensorguide", "lora", "joint"))
"""Methods of :class:`tntune.maps.Recipe` that :func:`tntune.convert.convert_lora` does not make."""

_OWN_WIDTH = ("tt_lora", "loretta")


@dataclass(frozen=True)
class FamilySettings:
    """How a LoRA is converted to one of the family.

    Attributes:
        target: How small or how accurate; a tolerance is that of all ΔW together.
        method: One of :data:`FAMILY_METHODS`.
        head_dim: Size of an attention head, for methods with a mode for heads.
        input_heads: Endings of the paths of layers whose heads split the input.
        dtype: Dtype to store; by default the widest of the layers that a map serves.

    Raises:
        SpecError: For another method, or an option that it does not have.
        DtypeError: For a dtype that is not of floating point, or of less than 16 bits.

    Example:
        >>> FamilySettings(Target(max_rank=4), "lotr").to_json()["method"]
        'lotr'
    """

    target: Target
    method: str
    head_dim: int | None = None
    input_heads: tuple[str, ...] = ()
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, Target):
            raise SpecError(f"target must be a Target, such as Target(params=0.5), not {self.target!r}")
        if self.method not in FAMILY_METHODS:
            raise SpecError(f"method must be one of {', '.join(FAMILY_METHODS)}, not {self.method!r:.80}")
        check_stored(self.dtype)
        object.__setattr__(self, "input_heads", self.recipe(1).input_heads)

    def recipe(self, width: int) -> Recipe:
        """How the maps are made, but for their size; of this width where the method has one of its own."""
        own = width if self.method in _OWN_WIDTH else None
        return Recipe(method=self.method, width=own, head_dim=self.head_dim, input_heads=self.input_heads)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for reports."""
        return {
            "target": self.target.to_json(),
            "method": self.method,
            "head_dim": self.head_dim,
            "input_heads": list(self.input_heads),
            "dtype": str(self.dtype) if self.dtype else None,
        }
