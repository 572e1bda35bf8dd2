"""The ledger `theory/README.md`: every statement has code, a test with its label, a note and a table."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "theory" / "README.md"
MARK = re.compile(r"mark\.statement\(\s*\"([^\"]+)\"\s*\)")
DOCSTRING = re.compile(r"Statement: (.+?)$", re.MULTILINE)
REFERENCE = re.compile(r"([A-Z]\d+'?)(?: and ([A-Z]\d+'?))? in theory/(\w+\.md)")
BOUND = re.compile(r"\bBound\(\s*\"([^\"]+)\"")
LABEL = re.compile(r"^[A-Z]\d+'?$")


def rows() -> dict[str, list[str]]:
    """Columns of each row of the ledger by its label."""
    found: dict[str, list[str]] = {}
    for line in LEDGER.read_text(encoding="utf-8").splitlines():
        columns = [column.strip() for column in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(columns) == 5 and LABEL.match(columns[0]):
            assert columns[0] not in found, f"two rows for {columns[0]}"
            found[columns[0]] = columns
    return found


def sources(folder: str) -> Iterator[tuple[Path, str]]:
    """Every Python file below a folder, with its text."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path != Path(__file__):
            yield path, path.read_text(encoding="utf-8")


def link(column: str) -> Path:
    """The target of the first link of a column."""
    found = re.search(r"\]\(([^)#]+)\)", column)
    assert found, f"no link in {column!r}"
    return (LEDGER.parent / found[1]).resolve()


def resolves(name: str) -> bool:
    """Whether `module.name` below tntune.theory exists, or a full dotted name."""
    full = name if name.startswith("tntune.") else f"tntune.theory.{name}"
    module, _, attribute = full.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


ROWS = rows()


@pytest.mark.parametrize("label", ROWS)
def test_row_has_code_test_note_and_table(label: str) -> None:
    _, statement, code, test, measured = ROWS[label]
    names = re.findall(r"`([\w.]+)`", code)
    assert names
    assert all(resolves(name) for name in names)
    assert label in MARK.findall(link(test).read_text(encoding="utf-8"))
    assert re.search(rf"\b{label}(?![\d'])", link(statement).read_text(encoding="utf-8"))
    assert link(measured).read_text(encoding="utf-8").count("|") > 10


def test_every_marked_statement_is_in_the_ledger() -> None:
    marked = {label for _, text in sources("tests") for label in MARK.findall(text)}
    assert marked == set(ROWS)


def test_every_bound_and_docstring_is_in_the_ledger() -> None:
    bounds = {label for _, text in sources("tntune/theory") for label in BOUND.findall(text)}
    assert bounds <= set(ROWS)
    for path, text in sources("tntune/theory"):
        for line in DOCSTRING.findall(text):
            references = REFERENCE.findall(line)
            assert references, f"{path.name}: cannot read {line!r}"
            for first, second, note in references:
                assert {first, second} - {""} <= set(ROWS)
                assert first in (LEDGER.parent / note).read_text(encoding="utf-8")
