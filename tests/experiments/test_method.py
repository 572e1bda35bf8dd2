"""Methods: options are kept or refused, budgets are never exceeded, counts are those of the tensors."""

import pytest

from tests.experiments.sample import SIZED, method
from tntune.errors import SpecError
from tntune.experiments.experiment import find_experiments
from tntune.experiments.method import Method, size_of
from tntune.experiments.registry import TASKS
from tntune.maps.group import Group
from tntune.maps.recipe import JOINT_METHODS

TARGETS = {f"layer.{i}.{role}": (24, 24) for i in range(3) for role in ("q", "v")}
TARGETS |= {f"layer.{i}.up": (24, 40) for i in range(3)}


def total(groups: tuple[Group, ...]) -> int:
    return sum(group.map.num_parameters for group in groups)


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("budget", [1500, 4000, 20_000])
def test_the_budget_is_met_from_below_by_the_largest_size(name: str, budget: int) -> None:
    chosen = method(name)
    groups = chosen.groups(TARGETS, budget)
    size = max(size_of(group.map) for group in groups)
    assert chosen.least(TARGETS) <= total(groups) <= budget
    key = "width" if name == "lora" else "rank"
    larger = total(method(name, **{key: size + 1}).groups(TARGETS, None))
    if not name.startswith("tenslora"):  # within a budget its index modes have all the ranks that they allow
        assert larger > budget or larger == total(groups)


@pytest.mark.parametrize("name", SIZED)
def test_every_target_is_served_once(name: str) -> None:
    groups = method(name).groups(TARGETS, 4000)
    assert sorted(path for group in groups for path in group.modules) == sorted(TARGETS)
    assert len(groups) == (2 if name in JOINT_METHODS else len(TARGETS))


def test_lora_has_the_width_of_the_formula() -> None:
    (width,) = {group.map.width for group in method().groups(TARGETS, 2500)}
    assert width == 2500 // sum(d + q for d, q in TARGETS.values()) == 5


def test_a_budget_below_the_least_size_is_refused_with_the_numbers() -> None:
    least = method().least(TARGETS)
    assert least == sum(d + q for d, q in TARGETS.values())
    with pytest.raises(SpecError, match=f"a budget of 100 parameters .* less than the {least}"):
        method().groups(TARGETS, 100)


def test_no_two_latents_are_alike() -> None:
    groups = method("tensorguide", latent="fixed").groups(TARGETS, 4000)
    assert len({group.map.latent.seed for group in groups}) == len(TARGETS)


@pytest.mark.parametrize(
    "table",
    [
        {"label": "a", "method": "lora"},
        {
            "label": "b",
            "method": "lora",
            "width": 4,
            "scale": 2.0,
            "per_width": True,
            "spread": 0.1,
            "activation": "relu",
        },
        {"label": "c", "method": "tensorguide", "width": 4, "layout": "concat", "latent": "fixed"},
        {"label": "d", "method": "lorta", "head_dim": 8},
        {"label": "e", "method": "head"},
        {"label": "f", "method": "exact", "map": {"kind": "lora", "in_features": 3}},
    ],
)
def test_a_table_is_kept(table: dict[str, object]) -> None:
    assert Method.from_table(table).to_table() == table


def test_the_tables_of_all_settings_are_kept() -> None:
    for task in TASKS:
        for experiment in find_experiments(task):
            for contender in experiment.contenders:
                assert Method.from_table(contender.method.to_table()) == contender.method


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"label": "x", "method": "magic"}, "method must be one of head, exact, "),
        ({"label": "x", "method": "lotr", "layout": "concat"}, "'lotr' has neither layout nor latent"),
        ({"label": "x", "method": "lora", "colour": "red"}, r"x: missing \[\], unknown \['colour'\]"),
        ({"label": "x", "method": "head", "width": 2}, r"unknown \['width'\]"),
        (
            {"label": "x", "method": "head", "scale": 2.0},
            "has no activation, scale, per_width or spread",
        ),
        ({"label": "x", "method": "exact"}, "a map is for method 'exact' alone"),
        ({"label": "x", "method": "lora", "map": {}}, "a map is for method 'exact' alone"),
        ({"label": "x", "method": "lora", "params": 9}, "budgets are the experiment's, not params=9"),
        ({"label": "x", "method": "lora", "width": 0}, "width must be a positive integer"),
        ({"label": "x", "method": "lora", "activation": "sinh"}, "unknown activation 'sinh'"),
        ({"method": "lora"}, r"a method: missing \['label'\]"),
    ],
)
def test_what_a_method_does_not_have_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Method.from_table(table)


def test_only_methods_without_a_given_size_are_sized() -> None:
    sized = [method(), method("tensorguide", width=4), method("lotr")]
    given = [method("lora", width=4), method("tensorguide", rank=4), method("head")]
    assert [m.is_sized for m in (*sized, *given)] == [True] * 3 + [False] * 3


def test_a_scale_per_width_is_divided_by_it() -> None:
    targets = {"a": (24, 24), "b": (24, 24)}
    table = {"label": "LoTR", "method": "lotr", "rank": 3, "scale": 2.0, "per_width": True}
    (group,) = Method.from_table(table).groups(targets, None)
    assert group.map.width == 3
    assert group.scales == (2.0 / 3, 2.0 / 3)
    assert Method.from_table({**table, "per_width": False}).groups(targets, None)[0].scales == (2.0, 2.0)
