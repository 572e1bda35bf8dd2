"""A map of one's own: as short as promised, and what the example prints."""

import ast
import inspect

import pytest
import torch

from tests.support.maps import tensors_of
from tests.support.own_map import example, own_map
from tests.support.tolerance import TOLERANCE, close
from tntune.errors import SpecError
from tntune.maps import JointMap, Stack, decode_map, encode


def test_the_example() -> None:
    figures = example().main()
    assert figures["parameters"] == 8 * (9 + 32 + 4 + 8 + 1)
    assert figures["change at the start"] == figures["change by saving"] == 0
    assert figures["last loss"] < 0.5 * figures["first loss"]
    assert figures["error of the LoRA"] < TOLERANCE[torch.float32]


def test_the_map_takes_at_most_sixty_lines() -> None:
    source = inspect.getsource(example().CaRA)
    assert len(source.splitlines()) <= 60
    assert isinstance(ast.parse(source).body[0], ast.ClassDef)


def test_it_is_its_formula() -> None:
    map = own_map()
    params, fixed = tensors_of(map)
    nodes = [params[f"tn_{leg}"] for leg in ("site", "in", "head", "dh", "weight")]
    delta = torch.einsum("lpr,ir,hr,jr,r->lphji", *nodes).flatten(2, 3).flatten(0, 1)
    assert close(map.delta(params, fixed), delta)


def test_the_published_count_of_its_attention_tensor() -> None:
    """R (3 L + d + H + dh) and R weights, of ViT-B/16."""
    cara = example().CaRA(Stack(768, 768, layers=12, projections=3), 16, 12)
    assert cara.num_parameters == 16 * (36 + 768 + 12 + 64 + 1)


def test_own_maps_are_known_by_their_kind() -> None:
    assert decode_map(encode(own_map())) == own_map()

    class Nameless(JointMap):
        pass

    assert "kind" not in vars(Nameless)
    with pytest.raises(SpecError, match="unknown kind 'nameless'; known are lora"):
        decode_map({"kind": "nameless"})
