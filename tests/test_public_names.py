"""What is public exists, says what it does, and shows it by an example that checks itself."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import tntune

NEEDS = {"tntune.peft": "peft", "tntune.experiments": "transformers"}
"""Packages that import an optional extra."""

WITHOUT_EXAMPLE = {
    "WeightMap": "abstract: each of its finals has one",
    "Layout": "abstract: each of its finals has one",
    "ShrinkStep": "a record: shrink_path shows it",
    "run": "the program itself: it ends the process",
}
"""Public classes and functions that no example can show, and why."""

PACKAGES = ["tntune", *(m.name for m in pkgutil.walk_packages(tntune.__path__, "tntune.") if m.ispkg)]


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> ModuleType:
    """Every package in turn, where its extra is installed."""
    if request.param in NEEDS:
        pytest.importorskip(NEEDS[request.param])
    return importlib.import_module(request.param)


def own(package: ModuleType) -> Iterator[tuple[str, object]]:
    """The public functions and classes of a package that tntune defines."""
    for name in package.__all__:
        value = getattr(package, name)
        defined = getattr(value, "__module__", "") or ""
        if (inspect.isfunction(value) or inspect.isclass(value)) and defined.split(".")[0] == "tntune":
            yield name, value


def members(cls: type) -> Iterator[tuple[str, object]]:
    """Public methods and properties that a class, or a base of it in tntune, defines."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "tntune":
            for name, value in vars(base).items():
                described = isinstance(value, property | classmethod | staticmethod) or inspect.isfunction(
                    value
                )
                if not name.startswith("_") and described:
                    yield name, getattr(cls, name)


def test_every_public_name_exists(package: ModuleType) -> None:
    assert package.__all__, f"{package.__name__} has an empty __all__"
    assert [name for name in package.__all__ if not hasattr(package, name)] == []
    assert len(set(package.__all__)) == len(package.__all__)


def test_every_package_says_what_it_is(package: ModuleType) -> None:
    assert inspect.getdoc(package)


def test_every_public_name_is_documented(package: ModuleType) -> None:
    bare = [name for name, value in own(package) if (value.__doc__ or f"{name}(").startswith(f"{name}(")]
    for name, value in own(package):
        if inspect.isclass(value):
            bare += [f"{name}.{member}" for member, found in members(value) if not inspect.getdoc(found)]
    assert bare == []


def test_every_public_name_has_an_example(package: ModuleType) -> None:
    missing = [
        name
        for name, value in own(package)
        if ">>>" not in (value.__doc__ or "") and name not in WITHOUT_EXAMPLE
    ]
    assert missing == []


def test_exceptions_are_needed() -> None:
    """An exception whose name is gone, or has an example by now, is struck off."""
    public = dict(
        item for name in PACKAGES if name not in NEEDS for item in own(importlib.import_module(name))
    )
    missing = {name for name, value in public.items() if ">>>" not in (value.__doc__ or "")}
    assert sorted(set(WITHOUT_EXAMPLE) - missing) == []
