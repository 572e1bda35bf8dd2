"""Progress: what long conversions are told to call."""

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "silent"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (stage, done, total) after every layer, candidate or step."""


def silent(stage: str, done: int, total: int) -> None:
    """Do nothing: the progress of whoever asked for none.

    Example:
        >>> silent("fit", 1, 2)
    """
