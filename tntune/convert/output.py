"""Whether an output may be written, asked before any work is done."""

import os
from pathlib import Path

from tntune.errors import OutputError

__all__ = ["check_output"]


def check_output(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Raise where writing ``output`` would fail, or would remove ``source`` with it.

    The source itself may be the output: it is read whole before it is replaced.

    Raises:
        OutputError: Where the output's parent is missing, the output exists and may not be replaced, or the
            source lies inside it.

    Example:
        >>> check_output("loras/mine", "loras", overwrite=True)
        Traceback (most recent call last):
        tntune.errors.OutputError: loras: holds the source loras/mine, which would be lost
    """
    target = Path(output).resolve()
    if target in Path(source).resolve().parents:
        raise OutputError(f"{output}: holds the source {source}, which would be lost")
    if not target.parent.is_dir():
        raise OutputError(f"{output}: the parent folder {target.parent} does not exist")
    if target.exists() and not overwrite:
        raise OutputError(f"{output}: exists already; choose another path or allow overwriting")
