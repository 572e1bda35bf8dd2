"""Texts that every machine has, the standard library's, and WikiText from a folder of the user's."""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from tntune.errors import CheckpointError

__all__ = [
    "docstrings",
    "files_of",
    "module_files",
    "package_files",
    "part_of",
    "read_text",
    "split_texts",
    "wikitext",
]

_SKIPPED = {"ensurepip", "idlelib", "lib2to3", "pip", "site-packages", "test", "tests", "turtledemo"}
_ARTICLE = re.compile(r"^ = [^=\n]+ = *$", re.MULTILINE)
_NAMES = {
    "train": ("wiki.train.tokens", "wiki.train.raw", "train.txt"),
    "validation": ("wiki.valid.tokens", "wiki.valid.raw", "valid.txt"),
    "test": ("wiki.test.tokens", "wiki.test.raw", "test.txt"),
}


def module_files() -> list[Path]:
    """Source files of the standard library's top-level modules, such as ``argparse.py``, in order.

    Example:
        >>> "argparse.py" in [path.name for path in module_files()]
        True
    """
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def package_files() -> list[Path]:
    """Source files of the standard library's packages, such as ``json/decoder.py``, without their tests.

    Example:
        >>> "decoder.py" in [path.name for path in package_files()]
        True
    """
    library = Path(sysconfig.get_path("stdlib"))
    found = sorted(library.glob("*/**/*.py"))
    return [path for path in found if not any(map(_skipped, path.relative_to(library).parts[:-1]))]


def files_of(modules: Iterable[str]) -> list[Path]:
    """Source files of these modules and packages of the standard library; those it lacks are left out.

    Example:
        >>> sorted(path.name for path in files_of(["json", "queue", "module_of_tomorrow"]))[-2:]
        ['scanner.py', 'tool.py']
    """
    library, wanted = Path(sysconfig.get_path("stdlib")), set(modules)
    found = [*module_files(), *package_files()]
    return [path for path in found if path.relative_to(library).parts[0].removesuffix(".py") in wanted]


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """The whole text of a file.

    Raises:
        CheckpointError: Where it cannot be read, or has bytes of another encoding.

    Example:
        >>> "def" in read_text(module_files()[0])
        True
    """
    try:
        return path.read_text(encoding=encoding)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not {encoding}: {error.reason} at byte {error.start}") from error


def docstrings(paths: Iterable[Path]) -> list[str]:
    """Docstrings of modules, classes and functions in order, each text once; nothing is imported.

    Example:
        >>> any("JSON" in text for text in docstrings(files_of(["json"])))
        True
    """
    return list(dict.fromkeys(text for path in paths for text in _docstrings(path)))


def part_of(text: str, shares: Sequence[float]) -> int:
    """Which of several parts a text lies in, by a hash of its first 40 characters.

    The draw is the same under every version of Python; near twins, and edits further on, stay together.

    Args:
        text: Any.
        shares: Of the parts; their sum is 1.

    Example:
        >>> [part_of(f"text {k}", (0.5, 0.5)) for k in range(6)]
        [1, 1, 1, 0, 1, 1]
    """
    draw = int.from_bytes(hashlib.sha256(text[:40].lower().encode()).digest()[:6], "big") / 2**48
    return sum(draw >= sum(shares[: k + 1]) for k in range(len(shares) - 1))


def split_texts(texts: Iterable[str], shares: Sequence[float]) -> tuple[list[str], ...]:
    """Texts by :func:`part_of`, in their order: no text lies in two parts.

    Example:
        >>> split_texts(["text 3", "text 4"], (0.5, 0.5))
        (['text 3'], ['text 4'])
    """
    parts: tuple[list[str], ...] = tuple([] for _ in shares)
    for text in texts:
        parts[part_of(text, shares)].append(text)
    return parts


def wikitext(folder: Path) -> dict[str, str]:
    r"""Train, validation and test text of WikiText.

    Where the folder has no training file, the first five sixths of the articles of the validation file are
    trained on and the rest validates.

    Args:
        folder: Holds ``wiki.train.tokens``, ``wiki.train.raw`` or ``train.txt``, and so on for ``valid`` and
            ``test``.

    Returns:
        Text by ``"train"``, ``"validation"`` and ``"test"``.

    Raises:
        CheckpointError: Where the validation or test file is missing or cannot be read, or articles to
            split are.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     articles = "".join(f" = {k} = \n text of {k} \n" for k in range(6))
        ...     for part in ("valid", "test"):
        ...         _ = (Path(name) / f"{part}.txt").write_text(articles)
        ...     wikitext(Path(name))["validation"]
        ' = 5 = \n text of 5 \n'
    """
    paths = {part: _first(folder, names) for part, names in _NAMES.items()}
    for part in ("validation", "test"):
        if paths[part] is None:
            raise CheckpointError(f"{folder}: needs {' or '.join(_NAMES[part])}")
    found = {part: read_text(path) for part, path in paths.items() if path is not None}
    if "train" not in found:
        found |= _divided(folder, found["validation"])
    return found


def _divided(folder: Path, text: str) -> Mapping[str, str]:
    """The articles of a text, five sixths to train on."""
    starts = [match.start() for match in _ARTICLE.finditer(text)]
    if len(starts) < 6:
        raise CheckpointError(
            f"{folder}: no training file, and {len(starts)} articles to divide; 6 are needed"
        )
    cut = starts[len(starts) * 5 // 6]
    return {"train": text[:cut], "validation": text[cut:]}


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these files that is there."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _skipped(part: str) -> bool:
    """Whether a folder holds tests, or what is no part of the library."""
    return part in _SKIPPED or part.startswith(("test", "_test"))


@cache
def _docstrings(path: Path) -> tuple[str, ...]:
    """All docstrings of a source file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(read_text(path))) if isinstance(node, documented)]
    return tuple(filter(None, map(ast.get_docstring, nodes)))
