"""Run the tests in fresh environments of the lowest, the locked and the newest versions.

    python tests/reliability/versions.py                            # all; an hour, 6 GB of disk at a time
    python tests/reliability/versions.py "lowest 3.10"              # one row; the others stay
    python tests/reliability/versions.py "newest 3.13" --tests tests/tt tests/maps

An environment is made, used and removed in a temporary folder, beside a copy of the working tree. A row whose
interpreter is not on the machine (``python3.X`` on the path, or below pyenv's root) is left out, and said so.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # in place of this folder

from tests.reliability.every import CAMPAIGNS
from tests.reliability.page import HOME, keep
from tntune.experiments.toml import read_toml

__all__ = ["TRIALS", "Trial", "floors"]

EXTRAS = "dev,peft,plots,experiments"
NAMED = ("torch", "numpy", "scipy", "tensorly", "tensorly-torch", "opt_einsum", "safetensors", "peft")
COPIED = ("tntune", "tests", "theory", "examples", "docs", "conftest.py", "pyproject.toml", "LICENSE")
FOLDERS = ("contract", "tt", "maps", "adapters", "checkpoint", "convert", "peft", "plugins", "cli")
"""Folders of tests that a change of versions could break."""


@dataclass(frozen=True)
class Trial:
    """A set of versions and an interpreter."""

    versions: str
    python: str

    @property
    def name(self) -> str:
        return f"{self.versions} {self.python}"


TRIALS = (
    Trial("lowest", "3.10"),
    *(Trial("locked", python) for python in ("3.10", "3.11", "3.12", "3.13")),
    Trial("newest", "3.13"),
)


def floors() -> list[str]:
    """The least version of everything in pyproject.toml, as constraints."""
    project = read_toml(HOME / "pyproject.toml")["project"]
    extras = project["optional-dependencies"].values()
    every = [*project["dependencies"], *(one for own in extras for one in own)]
    return [re.sub(">=", "==", one) for one in every if ">=" in one]


def constraints(versions: str) -> str:
    """What pip is held to."""
    if versions == "locked":
        return (HOME / "constraints.txt").read_text(encoding="utf-8")
    return "\n".join(floors()) + "\n" if versions == "lowest" else ""


def interpreter(python: str) -> Path | None:
    """An executable of that version, or None."""
    found = shutil.which(f"python{python}")
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [Path(found)] if found else []
    places += sorted(root.glob(f"{python}.*/bin/python"))
    return next((place for place in places if _runs(place, python)), None)


def _runs(place: Path, python: str) -> bool:
    """Whether it is that version indeed; a shim may be none."""
    told = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
    return told.returncode == 0 and told.stdout.startswith(f"Python {python}.")


def install(trial: Trial, base: Path, root: Path) -> Path:
    """The interpreter of a fresh environment below ``root`` with the project's copy beside it."""
    tree = root / "tree"
    for name in COPIED:
        copy = shutil.copytree if (HOME / name).is_dir() else shutil.copy2
        (root / "tree").mkdir(exist_ok=True)
        copy(HOME / name, tree / name)
    shutil.copy2(HOME / "README.md", tree)
    (root / "constraints.txt").write_text(constraints(trial.versions), encoding="utf-8")
    subprocess.run([base, "-m", "venv", root / "venv"], check=True)
    python = root / "venv" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", root / "constraints.txt"]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, "--editable", f"{tree}[{EXTRAS}]"], check=True)
    return python


def tested(python: Path, root: Path, tests: Sequence[str]) -> dict[str, int]:
    """Counts of the tests by how they ended; those that failed are written to the terminal."""
    report = root / "report.xml"
    options = ("-q", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}")
    command = [python, "-m", "pytest", *options, *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "tree")}
    ran = subprocess.run(
        command, cwd=root / "tree", env=environment, capture_output=True, text=True, check=False
    )
    sys.stdout.write(ran.stdout[-20000:] if ran.returncode else "")
    found = ElementTree.parse(report).getroot()[0].attrib
    counts = {name: int(found[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"]}


def installed(python: Path) -> str:
    """The versions that were tried, in words."""
    code = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}}' for n in {NAMED}), sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def tried(trial: Trial, base: Path, folder: str | None, tests: Sequence[str]) -> tuple[str, int]:
    """The row of a trial, and how many tests failed."""
    began = time.perf_counter()
    with TemporaryDirectory(dir=folder, prefix="versions-") as place:
        python = install(trial, base, Path(place))
        counts, versions = tested(python, Path(place), tests), installed(python)
    minutes = (time.perf_counter() - began) / 60
    where = ", ".join(test.removeprefix("tests/") for test in tests)
    cells = (trial.versions, trial.python, versions, where, *map(str, counts.values()), f"{minutes:.0f}")
    return f"| {' | '.join(cells)} |", counts["failed"]


def main() -> int:
    """Try what was asked for; 1 where a test failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="Rows, such as 'lowest 3.10'; all by default.")
    parser.add_argument("--tests", nargs="+", default=[f"tests/{folder}" for folder in FOLDERS])
    parser.add_argument("--folder", help="Where environments are made; the system's temporary folder.")
    given = parser.parse_args()
    names = [trial.name for trial in TRIALS]
    if set(given.names) - set(names):
        parser.error(f"rows are {', '.join(names)}")
    broken = 0
    for trial in TRIALS:
        if given.names and trial.name not in given.names:
            continue
        base = interpreter(trial.python)
        if base is None:
            sys.stdout.write(f"{trial.name}: there is no Python {trial.python} on this machine\n")
            continue
        line, failed = tried(trial, base, given.folder, given.tests)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        keep(trial.name, line, CAMPAIGNS, names)
        broken += failed
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
