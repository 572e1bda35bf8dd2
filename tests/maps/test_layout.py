"""Layouts: patterns, sizes, padding that is never generated, and reading what was written."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tntune.errors import ModeError, SpecError
from tntune.maps import Concat, Geometry, Joined, Layout, TensorGuide
from tntune.maps.layout import Selection
from tntune.maps.modes import exact_modes
from tntune.maps.pattern import digits, parse_pattern

PATTERNS = [
    "side f w",
    "side f1 f2 w",
    "(f1 w1) (f2 w2) side",
    "w2 (side f2) f1 w1",
    "layer proj side f1 f2 w",
    "(layer f3) (proj w) f1 side f2",
    "io w",
    "io (layer side w)",
    "w side io",
    "io2 w io1 layer",
    "(side f w)",
]


def tensor(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generated(layout: Layout, whole: torch.Tensor, geometry: Geometry) -> tuple[torch.Tensor, ...]:
    """What the contractions of a layout would make, cut out of the whole tensor."""
    parts = []
    for selection in layout.selections(geometry):
        legs = [leg for mode in selection.legs for leg in mode]
        part = whole.reshape([size for _, size, _, _ in legs])
        for axis, (_, _, start, length) in enumerate(legs):
            part = part.narrow(axis, start, length)
        names = [name for name, *_ in legs]
        made = part.permute([names.index(name) for name in selection.output]).reshape(selection.shape)
        parts += [made] if selection.cut is None else made.split([selection.cut, len(made) - selection.cut])
    return tuple(parts)


@given(
    pattern=st.sampled_from(PATTERNS),
    sizes=st.tuples(*[st.integers(1, 13)] * 3),
    layers=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_read_undoes_write(pattern: str, sizes: tuple[int, int, int], layers: int, seed: int) -> None:
    geometry = Geometry(*sizes)
    layout = Joined.auto(pattern, geometry, layers=layers if "layer" in pattern else 1)
    layout.check(geometry)
    down = tensor((layout.sites, geometry.width, geometry.in_features), seed)
    up = tensor((layout.sites, geometry.out_features, geometry.width), seed + 1)
    whole = layout.write(down, up)
    assert whole.shape == layout.modes
    assert whole.norm().isclose(torch.cat([down.flatten(), up.flatten()]).norm())  # the padding is zero
    found = layout.read(generated(layout, whole, geometry), geometry)
    assert torch.equal(found.down, down)
    assert torch.equal(found.up, up)


@given(sizes=st.tuples(*[st.integers(1, 13)] * 3), order=st.integers(1, 4))
def test_concat_read_undoes_write(sizes: tuple[int, int, int], order: int) -> None:
    geometry = Geometry(*sizes)
    layout = Concat(exact_modes(geometry.width * (geometry.in_features + geometry.out_features), order))
    down, up = tensor((1, sizes[2], sizes[0]), 0), tensor((1, sizes[1], sizes[2]), 1)
    found = layout.read(generated(layout, layout.write(down, up), geometry), geometry)
    assert torch.equal(found.down, down)
    assert torch.equal(found.up, up)


@given(pattern=st.sampled_from(PATTERNS), sizes=st.tuples(*[st.integers(1, 13)] * 3))
def test_up_entries_make_up_and_nothing_else(pattern: str, sizes: tuple[int, int, int]) -> None:
    geometry = Geometry(*sizes)
    layout = Joined.auto(pattern, geometry)
    found = layout.up_entries(geometry)
    if found is None:
        assert len(digits(layout.legs, "io")) > 1
        return
    k, entries = found
    down, up = tensor((1, sizes[2], sizes[0]), 0), tensor((1, sizes[1], sizes[2]), 1)
    whole = layout.write(down, up).index_fill(k, entries, 0)
    silenced = layout.read(generated(layout, whole, geometry), geometry)
    assert torch.equal(silenced.down, down)
    assert not silenced.up.any()


@pytest.mark.parametrize("d", [7, 101, 383, 769])
def test_padding_is_not_generated(d: int) -> None:
    """Of a prime number of features less than one entry of the leading digit is generated beyond the need."""
    layout = Joined.auto("side f1 f2 w", Geometry(d, d, 2))
    (selection,) = layout.selections(Geometry(d, d, 2))
    made = math.prod(selection.shape)
    assert 4 * d <= made < 4 * (d + layout.legs["f2"])
    assert made <= math.prod(layout.modes)


def test_unequal_sides_are_generated_apart() -> None:
    geometry = Geometry(12, 3, 2)
    layout = Joined.auto("side f1 f2 w", geometry)
    first, second = layout.selections(geometry)
    assert (math.prod(first.shape), math.prod(second.shape)) == (2 * 12, 2 * 3)


def test_selections_have_the_shapes_they_state() -> None:
    guide = TensorGuide(5, 3, 2, Joined.auto("side f1 f2 w", Geometry(5, 3, 2)), (1, 2, 2, 2, 1))
    for selection, plan in zip(guide.layout.selections(guide.geometry), guide.plans, strict=True):
        assert isinstance(selection, Selection)
        cores = [torch.ones(shape) for shape in plan.shapes]
        assert plan(*cores).numel() == math.prod(selection.shape)


def test_auto_sizes() -> None:
    layout = Joined.auto("layer proj side f1 f2 w1 w2", Geometry(768, 768, 8), layers=12, projections=3)
    assert layout.legs == {"layer": 12, "proj": 3, "side": 2, "f1": 32, "f2": 24, "w1": 4, "w2": 2}
    assert layout.sites == 36
    assert Joined.auto("io w", Geometry(3, 4, 5)).legs == {"io": 7, "w": 5}


@pytest.mark.parametrize("option", [{"layers": 2}, {"projections": 2}])
def test_auto_refuses_sites_without_a_leg(option: dict[str, int]) -> None:
    with pytest.raises(SpecError, match=r"has no (layer|proj) leg, but 2 were asked for"):
        Joined.auto("side f w", Geometry(2, 2, 2), **option)


@pytest.mark.parametrize(
    ("pattern", "sizes", "message"),
    [
        ("side f w", (2, 3), r"names 3 legs, but sizes are \(2, 3\)"),
        ("side f w", (3, 3, 2), "the side leg of 'side f w' has size 2, not 3"),
        ("side f w", (2, 0, 2), r"sizes\[1\] must be a positive integer"),
        ("side f", (2, 3), "has no width leg w"),
        ("f w", (3, 2), "needs a side leg and f legs, or io legs"),
        ("side w", (2, 2), "needs a side leg and f legs, or io legs"),
        ("side io1 io2 w", (2, 5, 2, 2), "needs a side leg and f legs, or io legs"),
        ("f io w", (2, 5, 2), "needs a side leg and f legs, or io legs"),
        ("side side f w", (2, 2, 3, 2), r"repeats \['side'\]"),
        ("side f01 w", (2, 3, 2), r"unknown legs \['f01'\]"),
        ("side head f w", (2, 2, 3, 2), r"unknown legs \['head'\]"),
        ("side (f w", (2, 3, 2), "cannot read the layout"),
        ("side ((f) w)", (2, 3, 2), "cannot read the layout"),
        ("side () f w", (2, 3, 2), "cannot read the layout"),
        ("side, f, w", (2, 3, 2), "cannot read the layout"),
        ("", (2,), "cannot read the layout"),
        ("x" * 40 + "!", (2,), "cannot read the layout"),
        (None, (2,), "a layout is a pattern such as"),
    ],
)
def test_patterns_that_are_refused(pattern: str, sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Joined(pattern, sizes)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (
            Joined("side f w", (2, 5, 3)),
            "span 3 widths and 5 features, but exactly 2 and at least 5 are needed",
        ),
        (Joined("side f w", (2, 4, 2)), "span 2 widths and 4 features"),
        (Joined("io w", (7, 2)), "at least 8 are needed"),
        (Concat((3, 5)), r"product 15, but width \* \(in \+ out\) = 2 \* \(5 \+ 3\) = 16"),
    ],
)
def test_layouts_that_do_not_fit(layout: Layout, message: str) -> None:
    with pytest.raises(ModeError, match=message):
        layout.check(Geometry(5, 3, 2))


def test_patterns_are_read_in_groups() -> None:
    assert parse_pattern("  (f2 w1)side ( f1  w )") == (("f2", "w1"), ("side",), ("f1", "w"))
    assert digits(("f", "f2", "f10", "w", "side"), "f") == ["f", "f2", "f10"]


@given(total=st.integers(1, 2000), order=st.integers(1, 4))
def test_exact_modes_are_exact_and_least(total: int, order: int) -> None:
    modes = exact_modes(total, order)
    assert math.prod(modes) == total
    assert len(modes) == order
    assert list(modes) == sorted(modes, reverse=True)
    assert modes == min(factorizations(total, order, total))


def factorizations(total: int, order: int, limit: int) -> list[tuple[int, ...]]:
    """All products, largest first, by trying every number."""
    if order == 1:
        return [(total,)] if total <= limit else []
    return [
        (n, *rest)
        for n in range(1, min(total, limit) + 1)
        if total % n == 0
        for rest in factorizations(total // n, order - 1, n)
    ]
