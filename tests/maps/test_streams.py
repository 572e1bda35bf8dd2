"""Laws of Streams: sites of any sizes read their rows from the trains of their streams, unpadded."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.maps import tensors_of
from tests.support.tolerance import close
from tntune.errors import SpecError
from tntune.maps import Member, Streams, decode_map, encode

UNEVEN: dict[str, Any] = {
    "sizes": (6, 9, 4),
    "ranks": (3, 2, 4),
    "inputs": (0, 1, 0, 2),
    "outputs": (1, 0, 2, 1),
    "widths": (2, 1, 3, 2),
}
MAP = Streams(**UNEVEN)


def test_what_follows_from_the_rest_is_not_shown() -> None:
    assert (
        repr(MAP)
        == f"Streams({', '.join(f'{name}={value}' for name, value in UNEVEN.items())}, start='zero')"
    )


def rows(params: dict[str, Tensor], stream: int) -> Tensor:
    """All rows of a stream, from its two cores."""
    return torch.einsum("rk,nr->kn", params[f"coefficients_{stream}"], params[f"basis_{stream}"])


def test_each_site_has_its_own_rows_in_order() -> None:
    params, _ = tensors_of(MAP)
    left = {stream: rows(params, stream) for stream in range(3)}
    for site in range(MAP.sites):
        down, up = MAP.site_factors(params, {}, site)
        for stream, side in ((MAP.inputs[site], down[0]), (MAP.outputs[site], up[0].mT)):
            own, left[stream] = left[stream].split([MAP.widths[site], len(left[stream]) - MAP.widths[site]])
            assert close(side, own)
    assert not any(len(rest) for rest in left.values())


def test_all_sites_at_once_are_padded_with_zeros() -> None:
    params, _ = tensors_of(MAP)
    down, up = MAP.factors(params, {})
    assert (tuple(down.shape), tuple(up.shape)) == ((4, 3, 9), (4, 9, 3))
    assert not MAP.is_even
    for site in range(MAP.sites):
        own = MAP.site_factors(params, {}, site)
        inside, outside, width = MAP.site_sizes(site)
        whole_down, whole_up = torch.zeros(3, 9).double(), torch.zeros(9, 3).double()
        whole_down[:width, :inside], whole_up[:outside, :width] = own.down[0], own.up[0]
        assert torch.equal(down[site], whole_down)
        assert torch.equal(up[site], whole_up)


def test_a_member_has_the_sizes_of_its_site() -> None:
    params, _ = tensors_of(MAP)
    for site in range(MAP.sites):
        member = Member(MAP, site)
        assert (member.in_features, member.out_features, member.width) == MAP.site_sizes(site)
        assert member.factor_width == member.width
        down, up = member.factors(params, {})
        assert (down.shape[1:], up.shape[1:]) == (
            (member.width, member.in_features),
            (member.out_features, member.width),
        )


def test_nothing_is_stored_twice_or_padded() -> None:
    entries = sum(size * rank for size, rank in zip(MAP.sizes, MAP.ranks, strict=True))
    for site in range(MAP.sites):
        entries += MAP.widths[site] * (MAP.ranks[MAP.inputs[site]] + MAP.ranks[MAP.outputs[site]])
    assert MAP.num_parameters == entries
    assert MAP.num_parameters == sum(math.prod(shape) for shape in MAP.param_shapes.values())


def test_factors_come_back_where_the_ranks_suffice() -> None:
    params, _ = tensors_of(MAP)
    wanted = MAP.factors(params, {})
    found = MAP.factors(*MAP.from_factors(*wanted))
    assert all(close(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_fit_is_the_best_for_each_stream() -> None:
    full, low = Streams(**{**UNEVEN, "ranks": (6, 8, 4)}), Streams(**{**UNEVEN, "ranks": (2, 2, 2)})
    params, _ = tensors_of(full)
    made, _ = low.from_factors(*full.factors(params, {}))
    for stream in range(3):
        values = torch.linalg.svdvals(rows(params, stream))
        assert close((rows(params, stream) - rows(made, stream)).norm(), values[2:].norm())


def test_it_starts_at_zero_with_gradients() -> None:
    params, _ = MAP.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    delta = MAP.delta(leaves, {})
    assert not delta.any()
    gradients = torch.autograd.grad(delta.sum(), list(leaves.values()), allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    assert MAP.factors(params, {}).down.any()


def test_json_round_trip() -> None:
    assert decode_map(json.loads(json.dumps(encode(MAP)))) == MAP


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (1, 1)}, r"need as many ranks, not 3, and each site .* not \(2, 4, 4\) of them"),
        ({"ranks": (1, 1)}, "3 streams, each used, need as many ranks, not 2"),
        ({"inputs": (0, 0, 0, 0), "outputs": (1, 1, 1, 1)}, "3 streams, each used"),
        ({"inputs": (0, 1, 0, 3)}, r"inputs must be a list of streams below 3, not \(0, 1, 0, 3\)"),
        ({"outputs": 1}, "outputs must be a list of streams below 3, not 1"),
        ({"widths": (1, 0, 1, 1)}, r"widths\[1\] must be a positive integer, not 0"),
        ({"start": "paper"}, "start must be one of zero, random, not 'paper'"),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Streams(**{**UNEVEN, **changes})
