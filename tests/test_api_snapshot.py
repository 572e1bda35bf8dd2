"""Laws of what is delivered: public names change by decision, and types reach the user."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api_snapshot import HOME, PAGE, packages, snapshot


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


def test_every_file_of_the_snapshot_is_delivered() -> None:
    assert all(Path(HOME, *package.split("."), "__init__.py").is_file() for package in packages())
