"""Laws of the supply: all that tntune brings along is pinned, and under a licence that allows its use."""

import pytest

from tests.reliability.supply import Part, faults, materials, parts, pins, unlocked


def test_what_is_installed_is_pinned_and_allowed() -> None:
    found = parts()
    assert {"torch", "tensorly", "tensorly-torch", "opt-einsum", "safetensors", "pytest"} <= {
        p.name for p in found
    }
    assert faults(found) == []


def test_what_is_installed_is_what_the_tests_are_for() -> None:
    """For other versions that are to pass, pip's --constraint names another file, with another torch."""
    off = unlocked(parts())
    if any(line.startswith("torch ") for line in off):
        pytest.skip("torch is installed in another version on purpose")
    assert off == []


def test_what_is_not_is_told() -> None:
    odd = [
        Part("leftpad", "1.0", "MIT"),
        Part("numpy", "0.1", "MIT AND Proprietary"),
        Part("nvidia-x", "1", "Proprietary"),
    ]
    assert faults(odd) == [
        "leftpad 1.0: is not in constraints.txt",
        "numpy 0.1: licence 'MIT AND Proprietary' is not on the list",
    ]
    assert unlocked(odd) == [f"numpy 0.1: the tests are run with {', '.join(sorted(pins()['numpy']))}"]
    assert unlocked([Part("torch", f"{next(iter(pins()['torch']))}+cpu", "BSD")]) == []


def test_the_bill_names_every_part() -> None:
    found = parts(())
    bill = materials(found)
    assert bill["bomFormat"] == "CycloneDX"
    assert [each["purl"] for each in bill["components"]] == [f"pkg:pypi/{p.name}@{p.version}" for p in found]
    assert not {"peft", "pytest"} & {part.name for part in found}
