"""TOML files, read with Python's own parser, or with tomli before Python 3.11."""

import sys
from pathlib import Path
from typing import Any

from tntune.errors import SpecError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_toml"]


def read_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file.

    Raises:
        SpecError: Naming the file, where it cannot be read or is not TOML.

    Example:
        >>> read_toml(Path("nowhere.toml"))
        Traceback (most recent call last):
        tntune.errors.SpecError: nowhere.toml: cannot be read: No such file or directory
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    return table
