"""Laws of what is read at import: values are frozen, and bases say what their subclasses must define."""

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest

import tntune

ROOMS = ("contract", "tt", "maps", "convert", "theory")

ABSTRACT = {
    "maps.base.WeightMap": {
        *("factors", "from_factors", "init"),
        *("property fixed_shapes", "property param_shapes"),
    },
    "maps.delta.DeltaMap": {"_network", "from_factors"},
    "maps.joint.JointMap": {"_network", "_fit"},
    "maps.layout_base.Layout": {
        *("check", "read", "selections", "up_entries", "write"),
        "property modes",
    },
    "convert.option.Encoder": {"at", "encode", "path", "property norm"},
}
"""What is abstract, and whether it is read or called."""


def classes(room: str) -> Iterator[tuple[str, Any]]:
    """Every class that a room defines, by its dotted name without the root."""
    for path in sorted(Path(tntune.__path__[0], room).glob("*.py")):
        module = importlib.import_module(f"tntune.{room}.{path.stem}")
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                yield f"{room}.{path.stem}.{name}", value


@pytest.mark.parametrize("room", ROOMS)
def test_dataclasses_are_frozen(room: str) -> None:
    thawed = [
        name for name, value in classes(room) if is_dataclass(value) and not value.__dataclass_params__.frozen
    ]
    assert thawed == []


@pytest.mark.parametrize("room", ROOMS)
def test_what_subclasses_must_define(room: str) -> None:
    found = {}
    for name, value in classes(room):
        if inspect.isabstract(value):
            read = {each for each in value.__abstractmethods__ if isinstance(getattr(value, each), property)}
            called = set(value.__abstractmethods__) - read
            found[name] = called | {f"property {each}" for each in read}
    assert found == {name: own for name, own in ABSTRACT.items() if name.startswith(f"{room}.")}
