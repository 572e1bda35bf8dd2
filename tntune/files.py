"""Folders written all or nothing, and JSON read with suspicion."""

import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

from tntune.errors import CheckpointError, OutputError, TntuneError

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "MAX_JSON_BYTES",
    "Json",
    "finite",
    "is_reserved",
    "new_file",
    "new_folder",
    "read_json",
    "write_json",
    "write_text",
]

Json = dict[str, Any]

CONFIG_NAME = "adapter_config.json"
"""The file by which PEFT, and tntune, know an adapter folder."""

CARD_NAME = "README.md"
"""The file that the Hugging Face hub shows as the model card."""

MAX_JSON_BYTES = 256 * 2**20

_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@contextmanager
def new_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """All or nothing: ``path`` becomes what was written into the yielded folder, or stays as it was.

    The yielded folder is a hidden sibling of ``path``, renamed onto it when the block ends. Any exception, an
    interrupt too, removes it; a killed process leaves ``path`` alone and at most that sibling behind, or, in
    the moment between two renames, the folder that was to be replaced under the name ``.NAME.XXXXXXXX.old``.

    Args:
        path: The folder to make; its parent must exist.
        overwrite: Replace a folder that is there, provided that it is empty or holds an adapter. The old one
            is moved aside first, put back where the new one cannot take its place, and removed at the end.

    Yields:
        The folder to write into.

    Raises:
        OutputError: Where ``path`` exists and may not be replaced, or the disk refuses; nothing was changed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     with new_folder(Path(parent) / "adapter") as folder:
        ...         write_json(folder / "adapter_config.json", {"r": 8})
        ...     read_json(Path(parent) / "adapter" / "adapter_config.json")
        {'r': 8}
    """
    target = _absolute(path)
    _check_target(target, overwrite)
    draft = _sibling(target, "partial")
    try:
        draft.mkdir()
        yield draft
        _install(draft, target)
    except TntuneError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """All or nothing: ``path`` becomes what was written to the yielded file, or stays as it was.

    The yielded name is a hidden sibling of ``path``, moved onto it in one step when the block ends. Any
    exception removes it; a killed process leaves ``path`` alone and at most that sibling behind.

    Args:
        path: The file to make; its folder must exist.
        overwrite: Whether a file that is there may be replaced.

    Yields:
        The name to write to.

    Raises:
        OutputError: Where ``path`` exists and may not be replaced, or the disk refuses; nothing was changed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with new_file(Path(folder) / "card.md") as draft:
        ...         write_text(draft, "# Card")
        ...     (Path(folder) / "card.md").read_text()
        '# Card'
    """
    target = _absolute(path)
    if target.exists() and not overwrite:
        raise OutputError(f"{path}: exists already; name another path, or overwrite=True (--overwrite)")
    draft = _sibling(target, "partial")
    try:
        yield draft
        draft.replace(target)
    except TntuneError:
        raise
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Json) -> None:
    """Write an object as UTF-8 JSON: ``read_json(path) == value`` for string keys and finite numbers.

    Raises:
        OutputError: Where the value has no JSON form (NaN, an infinity, a tensor), or the disk refuses.

    Example:
        >>> write_json("unwritten.json", {"scale": float("nan")})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tntune.errors.OutputError: unwritten.json: has no JSON form: ...
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: has no JSON form: {error}") from error
    write_text(path, text + "\n")


def finite(value: object) -> Any:
    """The value as plain JSON: tuples as lists, keys as strings, numbers that are not finite as null.

    Example:
        >>> finite({"score": float("inf"), "ranks": (1, 2)})
        {'score': None, 'ranks': [1, 2]}
    """
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text as UTF-8, with the line ends it has: ``path.read_bytes() == text.encode()``.

    Raises:
        OutputError: Where the text has no UTF-8 form (a lone surrogate), or the disk refuses.

    Example:
        >>> write_text(Path("nowhere") / "README.md", "# Card")
        Traceback (most recent call last):
        tntune.errors.OutputError: nowhere/README.md: cannot be written: No such file or directory
    """
    try:
        Path(path).write_bytes(text.encode())
    except UnicodeEncodeError as error:
        raise OutputError(f"{path}: has no UTF-8 form: {error.reason}") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_json(path: str | os.PathLike[str]) -> Json:
    """Read an object that is the same to every reader: no key twice, no NaN, no number beyond float.

    Raises:
        CheckpointError: Naming the file and the reason: missing, longer than 256 MiB, not UTF-8, not JSON,
            not an object, nested too deeply, a repeated key, a number that is not finite.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "config.json", {"r": 8})
        ...     read_json(Path(folder) / "config.json")
        {'r': 8}
    """
    hooks = _Hooks(path)
    try:
        value = json.loads(
            _bounded_bytes(Path(path)).decode(),
            object_pairs_hook=hooks.unique,
            parse_constant=hooks.finite,
            parse_float=hooks.finite,
        )
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: nested too deeply") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold an object, not {type(value).__name__}")
    return value


class _Hooks:
    """What the JSON parser calls for objects and numbers; knows the file to name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path

    def unique(self, pairs: list[tuple[str, Any]]) -> Json:
        """The object of these pairs, unless a key comes twice."""
        value: Json = {}
        for key, item in pairs:
            if key in value:
                raise CheckpointError(f"{self.path}: {key}: key is repeated")
            value[key] = item
        return value

    def finite(self, literal: str) -> float:
        """The number, unless JSON or float has no such number."""
        value = float(literal)
        if not math.isfinite(value):
            raise CheckpointError(f"{self.path}: {literal} is not a finite number")
        return value


def _bounded_bytes(path: Path) -> bytes:
    """The content of a file, unless it is longer than any configuration, or a device or a pipe."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise CheckpointError(f"{path}: is no file")
    if status.st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: {status.st_size} bytes of JSON; at most {MAX_JSON_BYTES} are read")
    return path.read_bytes()


def _absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root on; OutputError where no file system has such a name."""
    target = Path(os.path.abspath(path))
    try:
        target.exists()
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(path)!r:.200}: cannot be written: {error}") from error
    if "\0" in str(target):
        raise OutputError(f"{str(path)!r:.200}: cannot be written: a name has no NUL")
    if is_reserved(target.name):
        raise OutputError(f"{path}: cannot be written: Windows has a device or a stream of that name")
    return target


def is_reserved(name: str, system: str = os.name) -> bool:
    """Whether a name is none of a file on that system: Windows would write to a device, or a hidden stream.

    Example:
        >>> is_reserved("nul.json", "nt"), is_reserved("lora:half", "nt"), is_reserved("nul.json", "posix")
        (True, True, False)
    """
    return system == "nt" and (":" in name or _DEVICE.fullmatch(name) is not None)


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise unless the folder may be made or replaced."""
    if not target.parent.is_dir():
        raise OutputError(f"{target}: the parent folder {target.parent} does not exist")
    if target.is_symlink():
        raise OutputError(f"{target}: is a symbolic link; name the folder itself")
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError(f"{target}: exists and is not a folder")
    if not overwrite:
        raise OutputError(f"{target}: exists already; name another path, or overwrite=True (--overwrite)")
    if any(target.iterdir()) and not (target / CONFIG_NAME).is_file():
        raise OutputError(f"{target}: holds no {CONFIG_NAME}, so it is no adapter and is not replaced")


def _install(draft: Path, target: Path) -> None:
    """Rename the draft onto the target; an old target is moved aside, and back where that fails."""
    if not target.exists():
        draft.rename(target)
        return
    aside = _sibling(target, "old")
    try:
        target.rename(aside)
        draft.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    try:
        shutil.rmtree(aside)
    except OSError as error:
        raise OutputError(f"{target}: written, but the old folder remains as {aside}: {error}") from error


def _sibling(target: Path, role: str) -> Path:
    """A fresh hidden name beside the target, so that renaming stays on one file system."""
    return target.parent / f".{target.name}.{token_hex(4)}.{role}"
