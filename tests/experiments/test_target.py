"""Targets: sizes from the model, and grids from their paths."""

import pytest
from torch import nn

from tntune.errors import TargetError
from tntune.experiments.target import stacks, target_sizes
from tntune.maps.stack import Stack


def test_alone_every_target_is_a_stack_of_one() -> None:
    targets = {"a": (4, 3), "b": (4, 3)}
    assert stacks(targets, shared=False) == ((Stack(4, 3), ("a",)), (Stack(4, 3), ("b",)))


def test_together_shapes_are_apart_and_sites_are_block_by_block() -> None:
    targets = {f"h.{i}.{role}": (4, 4) for role in ("q", "v") for i in range(2)} | {"h.0.up": (4, 9)}
    (square, paths), (wide, (up,)) = stacks(targets, shared=True)
    assert (square, wide, up) == (Stack(4, 4, layers=2, projections=2), Stack(4, 9), "h.0.up")
    assert paths == ("h.0.q", "h.0.v", "h.1.q", "h.1.v")


def test_what_is_no_grid_is_a_list() -> None:
    targets = {"h.0.q": (4, 4), "h.0.v": (4, 4), "h.1.q": (4, 4), "head": (4, 4)}
    assert stacks(targets, shared=True) == ((Stack(4, 4, layers=4), tuple(targets)),)


def test_a_target_that_is_not_there_or_not_linear_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    assert target_sizes(model, ["0"]) == {"0": (4, 3)}
    with pytest.raises(TargetError, match=r"no modules \['5'\]"):
        target_sizes(model, ["0", "5"])
    with pytest.raises(TargetError, match="ReLU cannot be adapted"):
        target_sizes(model, ["1"])
