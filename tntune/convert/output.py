"""Whether an output may be written, asked before any work is done."""

import os
from pathlib import Path

from tntune.errors import OutputError

__all__ = ["check_output"]


def check_output(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Raise where writing ``output`` would fail, or would change ``source``.

    Raises:
        OutputError: Where the output's parent is missing, the output exists and may not be replaced, or one
            of source and output holds the other.

    Example:
        >>> check_output("loras/mine", "loras", overwrite=True)
        Traceback (most recent call last):
        tntune.errors.OutputError: loras: holds the source loras/mine, which would be lost
    """
    try:
        target, origin = Path(output).resolve(), Path(source).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name with NUL
        raise OutputError(f"{output}: is no place to write to: {error}") from error
    if any(_is_same(place, origin) for place in (target, *target.parents)):
        raise OutputError(f"{output}: is the source {source} or inside it; choose another path")
    if any(_is_same(target, place) for place in origin.parents):
        raise OutputError(f"{output}: holds the source {source}, which would be lost")
    if not target.parent.is_dir():
        raise OutputError(f"{output}: the parent folder {target.parent} does not exist")
    if target.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; name another path, or overwrite=True (--overwrite)")


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are one place: by links, or by upper and lower case on a disk that does not tell them."""
    try:
        return one == other or one.samefile(other)
    except OSError:
        return False
