"""Laws of what is delivered: public names change by decision, types reach the user, versions are pinned."""

import re
import subprocess
import sys
from importlib.metadata import distributions, metadata, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.api_snapshot import HOME, PAGE, packages, snapshot

FREE = (
    "MIT",
    "BSD",
    "Apache",
    "PSF",
    "Python Software",
    "ISC",
    "MPL",
    "HPND",
    "Unlicense",
    "0BSD",
    "CNRI",
    "Zlib",
)
"""Words of licences that let anybody use, change and pass on."""


def test_public_names_are_those_of_the_snapshot() -> None:
    """Where this fails by intention: ``python tests/api_snapshot.py``, and read what has changed."""
    assert snapshot() == PAGE.read_text()


def test_every_package_is_in_the_snapshot() -> None:
    assert re.findall(r"^\[(.+)\]$", PAGE.read_text(), re.MULTILINE) == packages()


@pytest.mark.slow
def test_types_reach_the_user() -> None:
    assert (HOME / "tntune" / "py.typed").is_file()
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "tests/consumer.py"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=HOME)
    own = [line for line in ran.stdout.splitlines() if line.startswith("tests/consumer.py")]
    assert own == [], "\n".join(own)


def pins() -> dict[str, str]:
    """The version that constraints.txt names for this Python, by distribution."""
    lines = (line.partition("#")[0].strip() for line in (HOME / "constraints.txt").read_text().splitlines())
    wanted = (Requirement(line) for line in lines if line)
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in wanted
        if each.marker is None or each.marker.evaluate()
    }


def needed(name: str, extras: frozenset[str] = frozenset(), seen: set[str] | None = None) -> set[str]:
    """The distributions that one needs, with those that they need, as far as they are installed."""
    seen = set() if seen is None else seen
    for line in requires(name) or []:
        each = Requirement(line)
        wanted = each.marker is None or any(each.marker.evaluate({"extra": e}) for e in ("", *extras))
        key = canonicalize_name(each.name)
        if wanted and key not in seen and key in INSTALLED:
            seen.add(key)
            needed(key, frozenset(each.extras), seen)
    return seen


INSTALLED = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}


def test_what_tntune_needs_is_installed_as_pinned() -> None:
    """For another version that the tests are to pass with, pip's --constraint names another file."""
    pinned, own = pins(), needed("tntune")
    unnamed = sorted(
        name for name in own if name not in pinned and not name.startswith(("nvidia-", "triton", "cuda-"))
    )
    assert unnamed == []
    if INSTALLED["torch"].partition("+")[0] != pinned["torch"]:
        pytest.skip(f"torch {INSTALLED['torch']} is installed on purpose, not {pinned['torch']}")
    other = {
        n: (INSTALLED[n], pinned[n]) for n in own & set(pinned) if INSTALLED[n].partition("+")[0] != pinned[n]
    }
    assert other == {}


def test_what_tntune_needs_is_free() -> None:
    unknown = {}
    for name in sorted(needed("tntune")):
        if name.startswith(("nvidia-", "cuda-")):
            continue
        about = metadata(name)
        said = " ".join(
            [
                about.get("License-Expression") or "",
                (about.get("License") or "")[:200],
                *(line for line in about.get_all("Classifier") or [] if line.startswith("License")),
            ]
        )
        if not any(word in said for word in FREE):
            unknown[name] = said
    assert unknown == {}


def test_every_file_of_the_snapshot_is_delivered() -> None:
    assert all(Path(HOME, *package.split("."), "__init__.py").is_file() for package in packages())
