"""What tntune brings along: a software bill of materials, held against the pins and a list of licences.

    python tests/reliability/supply.py              # CycloneDX 1.5 as JSON; exit code 1 where a part is off
    python tests/reliability/supply.py --no-extras  # of what `pip install tntune` alone brings

Works without a network, from the metadata of what is installed. Known vulnerabilities need one: there
`pip-audit -r constraints.txt` looks them up.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Part", "faults", "materials", "parts", "pins"]

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
EXTRAS = ("dev", "peft", "plots", "experiments", "demo")
ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Found|MPL-2\.0|Mozilla|HPND|Unlicense|Zlib|CC0|BSL-1\.0|CNRI",
    re.IGNORECASE,
)
"""Licences under which parts may be used and passed on beside a BSD licence; MPL holds for its own files."""
TORCH_ON_CUDA = re.compile(r"nvidia-.+|cuda-.+|triton")
"""What torch's builds for CUDA bring along, under NVIDIA's terms; its builds for the CPU do not."""


_JUDGEMENTS = ("License :: OSI Approved", "License :: DFSG approved")
"""Classifiers that say who approves of a licence, and not which it is."""


@dataclass(frozen=True)
class Part:
    """An installed distribution that tntune needs, directly or not."""

    name: str
    version: str
    licence: str


def parts(extras: tuple[str, ...] = EXTRAS) -> list[Part]:
    """Everything that ``tntune[extras]`` needs and that is installed, by name."""
    found: dict[str, Part] = {}
    waiting = [("tntune", extras)]
    seen = set(waiting)
    while waiting:
        name, own = waiting.pop()
        try:
            told = distribution(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed
        found[canonicalize_name(name)] = Part(canonicalize_name(name), told.version, _licence(told))
        more = [each for each in _needs(told, own) if each not in seen]
        seen.update(more)
        waiting += more
    del found["tntune"]
    return [found[name] for name in sorted(found)]


def _needs(told: Distribution, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The requirements that hold on this machine, with the extras that they ask for."""
    for text in told.requires or ():
        need = Requirement(text)
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(need.name), tuple(sorted(need.extras))


def _licence(told: Distribution) -> str:
    """As the metadata says it: an SPDX expression, classifiers, or the first line of a text."""
    fields = told.metadata
    if "License-Expression" in fields:
        return str(fields["License-Expression"])
    classified = [text for text in fields.get_all("Classifier") or () if text.startswith("License ::")]
    named = [text.rpartition(" :: ")[2] for text in classified if text not in _JUDGEMENTS]
    if named:
        return ", ".join(named)
    return str(fields.get("License") or "").strip().partition("\n")[0]


def pins() -> dict[str, set[str]]:
    """The versions of constraints.txt by name: one, or one for each range of Pythons."""
    found: dict[str, set[str]] = {}
    for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            need = Requirement(text)
            found.setdefault(canonicalize_name(need.name), set()).add(str(need.specifier).removeprefix("=="))
    return found


def faults(found: list[Part]) -> list[str]:
    """What is not pinned, or under a licence that is not on the list; a line each."""
    pinned = pins()
    own = [part for part in found if not TORCH_ON_CUDA.fullmatch(part.name)]
    loose = [
        f"{part.name} {part.version}: is not in constraints.txt" for part in own if part.name not in pinned
    ]
    odd = [
        f"{part.name} {part.version}: licence {part.licence!r} is not on the list"
        for part in own
        if not _is_allowed(part.licence)
    ]
    return loose + odd


def _is_allowed(licence: str) -> bool:
    """Whether every licence that holds, or one of those to choose from, is on the list."""
    every = re.split(r" AND |, ", licence)
    return all(any(map(ALLOWED.search, one.split(" OR "))) for one in every)


def unlocked(found: list[Part]) -> list[str]:
    """What is installed in another version than the tests' own; a line each."""
    pinned = pins()
    return [
        f"{part.name} {part.version}: the tests are run with {', '.join(sorted(pinned[part.name]))}"
        for part in found
        if part.name in pinned and part.version.partition("+")[0] not in pinned[part.name]
    ]


def materials(found: list[Part]) -> dict[str, object]:
    """The bill of materials in the form of CycloneDX 1.5."""
    root = distribution("tntune")
    components = [
        {
            "type": "library",
            "name": part.name,
            "version": part.version,
            "purl": f"pkg:pypi/{part.name}@{part.version}",
            "licenses": [{"license": {"name": part.licence}}],
        }
        for part in found
    ]
    own = {
        "type": "library",
        "name": "tntune",
        "version": root.version,
        "purl": f"pkg:pypi/tntune@{root.version}",
    }
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": own}}
    return {**head, "components": components}


def main() -> int:
    """Print the bill; name what is off on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-extras", action="store_true", help="Without PEFT, plots, examples and tests.")
    found = parts(() if parser.parse_args().no_extras else EXTRAS)
    off = faults(found) + unlocked(found)
    sys.stdout.write(json.dumps(materials(found), indent=2) + "\n")
    sys.stderr.write("".join(f"{line}\n" for line in off))
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
