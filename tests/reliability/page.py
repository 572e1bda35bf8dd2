"""RELIABILITY.md: a table of campaigns, what they found, and a table of versions; kept row by row."""

from collections.abc import Sequence
from pathlib import Path

from tests.reliability.campaign import Campaign

__all__ = ["HOME", "keep"]

HOME = Path(__file__).parents[2]
PAGE = HOME / "RELIABILITY.md"
HEAD = """# Reliability

What tntune promises under bad input, faults and extreme numbers, and how often that was tried. Every line is
one campaign of `tests/reliability`; its cases are drawn from fixed seeds, so each run tries the same. This
table is written by `python tests/reliability/run.py`; `pytest -m slow tests/reliability` tries a part of it.

| campaign | what is promised | cases tried | failures now | seconds | command |
|---|---|---:|---:|---:|---|
"""
VERSIONS = """
## Versions

The default tests, without the slow ones, in fresh environments: with the floors of `pyproject.toml`, the
locked versions of `constraints.txt`, and the newest ones of the index. Written by
`python tests/reliability/versions.py`.

| versions | Python | of which | tests | passed | failed | skipped | minutes |
|---|---|---|---|---:|---:|---:|---:|
"""


def keep(name: str, line: str, campaigns: Sequence[Campaign], trials: Sequence[str]) -> None:
    """The page with this line in its place; the names are in the order of the two tables."""
    before = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = {_name(text): text for text in before if text.startswith("| ")} | {name: line}
    tried = [rows[each.name] + "\n" for each in campaigns if each.name in rows]
    versions = [rows[each] + "\n" for each in trials if each in rows]
    text = HEAD + "".join(tried) + _found(campaigns) + (VERSIONS + "".join(versions) if versions else "")
    PAGE.write_text(text, encoding="utf-8")


def _name(row: str) -> str:
    """What a row is of: its first cell, with the Python version where that is the second."""
    first, second = row.removeprefix("| ").split(" | ")[:2]
    return f"{first} {second}" if second[:1].isdigit() else first


def _found(campaigns: Sequence[Campaign]) -> str:
    """The list of what the campaigns have found."""
    lines = [f"- **{each.name}**: {one}" for each in campaigns for one in each.found]
    head = f"\n## Failures found and fixed: {len(lines)}\n"
    return "\n".join([head, "By the campaigns, or by reading while they were written.\n", *lines]) + "\n"
