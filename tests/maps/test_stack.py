"""Stack: sizes of named modes, and what cannot be one."""

import json

import pytest

from tests.support.maps import FAMILY
from tntune.errors import ModeError, SpecError
from tntune.maps import Group, Stack, decode_map, encode
from tntune.maps.stack import check_heads, check_stack, split_heads


def test_sites_are_layers_times_projections() -> None:
    stack = Stack(5, 4, layers=3, projections=2)
    assert stack.sites == 6
    assert list(stack.index.items()) == [("layer", 3), ("proj", 2)]
    assert check_stack(stack) is stack


def test_a_joint_map_serves_a_group_of_modules() -> None:
    map = FAMILY["tenslora QKV_Depth"]
    group = Group(map, tuple(f"h.{i}" for i in range(map.sites)), (1.0,) * map.sites)
    assert Group.from_json(json.loads(json.dumps(group.to_json()))) == group


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Stack(0, 4), SpecError, "in_features must be a positive integer, not 0"),
        (lambda: Stack(4, 4, layers=1.0), SpecError, "layers must be a positive integer"),
        (lambda: Stack(4, 4, projections=True), SpecError, "projections must be a positive integer"),
        (lambda: split_heads(10, 4), ModeError, "4 heads do not divide 10 features"),
        (lambda: split_heads(10, 0), SpecError, "heads must be a positive integer"),
        (lambda: check_stack({"layers": 2}), SpecError, "a joint map needs a Stack"),
        (lambda: check_heads(Stack(4, 4), "a"), SpecError, "different projections below 1, not 'a'"),
        (lambda: check_heads(Stack(4, 3), (0,)), ModeError, "square sites, not 4 x 3"),
        (lambda: decode_map(encode(Stack(4, 4))), SpecError, "a map must have one of the kinds"),
    ],
)
def test_refuses(call: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
