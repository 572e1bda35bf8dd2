"""Methods: options are kept or refused, budgets are never exceeded, counts are those of the tensors."""

import pytest

from tests.experiments.sample import method
from tntune.errors import RankError, SpecError
from tntune.experiments.form import Form
from tntune.experiments.kinds import KINDS
from tntune.experiments.method import Method

TARGETS = {f"layer.{i}.{role}": (24, 24) for i in range(3) for role in ("q", "v")}
TARGETS |= {f"layer.{i}.up": (24, 40) for i in range(3)}
SIZED = [kind for kind in KINDS if method(kind).is_sized]


@pytest.mark.parametrize("kind", SIZED)
@pytest.mark.parametrize("budget", [1500, 4000, 20_000])
def test_the_budget_is_met_from_below_and_no_larger_size_would_do(kind: str, budget: int) -> None:
    chosen = method(kind)
    size = chosen.size_for(TARGETS, budget)
    own, next_larger = (chosen.count(TARGETS, k) for k in (size, size + 1))
    assert own <= budget
    assert next_larger > budget or next_larger == own  # ranks are capped by the modes


@pytest.mark.parametrize("kind", SIZED)
def test_count_is_that_of_the_groups_and_every_target_is_served_once(kind: str) -> None:
    chosen = method(kind)
    groups = chosen.groups(TARGETS, 3)
    assert chosen.count(TARGETS, 3) == sum(group.map.num_parameters for group in groups)
    assert sorted(path for group in groups for path in group.modules) == sorted(TARGETS)
    assert len(groups) == (2 if KINDS[kind].shared else len(TARGETS))


def test_lora_counts_are_those_of_the_formula() -> None:
    assert method().count(TARGETS, 5) == 5 * sum(d + q for d, q in TARGETS.values())


def test_a_budget_below_size_one_is_refused_with_the_numbers() -> None:
    with pytest.raises(RankError, match="a budget of 100 is below the 480 parameters"):
        method().size_for(TARGETS, 100)


def test_no_two_latents_are_alike() -> None:
    groups = method("tensorguide", latent="fixed").groups(TARGETS, 2)
    seeds = {group.map.latent.seed for group in groups}
    assert len(seeds) == len(TARGETS)


@pytest.mark.parametrize(
    "table",
    [
        {"label": "a", "kind": "lora"},
        {"label": "b", "kind": "lora", "size": 4, "scale": 2.0, "spread": 0.1, "activation": "relu"},
        {"label": "c", "kind": "tensorguide", "width": 4, "layout": "concat", "latent": "fixed"},
        {"label": "d", "kind": "tenslora", "variant": "Depth"},
        {"label": "e", "kind": "head"},
    ],
)
def test_a_table_is_kept(table: dict[str, object]) -> None:
    assert Method.from_table(table).to_table() == table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"label": "x", "kind": "magic"}, "kind must be one of head, lora"),
        ({"label": "x", "kind": "lora", "layout": "concat"}, "the kind 'lora' has no layout"),
        ({"label": "x", "kind": "lora", "colour": "red"}, "no colour"),
        ({"label": "x", "kind": "head", "scale": 2.0}, "the kind 'head' has no scale"),
        ({"label": "x", "kind": "exact", "size": 3}, "the kind 'exact' has no size"),
        ({"label": "x", "kind": "lora", "size": 0}, "size must be a positive integer"),
        ({"label": "x", "kind": "lora", "activation": "sinh"}, "unknown activation 'sinh'"),
        ({"kind": "lora"}, "a method has a label and a kind"),
    ],
)
def test_what_a_method_does_not_have_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Method.from_table(table)


def test_every_kind_uses_every_option_that_it_names() -> None:
    """A kind that named an option and ignored it would make the same maps for every value."""
    other = {"width": 6, "latent": "fixed", "start": "random", "heads": 2}
    layouts, variants = (
        {"tensorguide": "concat", "tensorguide-shared": "io (layer proj side w)"},
        {"fact": "tucker", "tenslora": "Depth"},
    )
    for kind, entry in KINDS.items():
        for option in set(entry.options) - {"map"}:
            value = other.get(option) or {"layout": layouts, "variant": variants}[option][kind]
            extra = {"variant": "Att"} if (kind, option) == ("tenslora", "heads") else {}
            plain, changed = (
                method(kind, **extra, **own).groups(TARGETS, 2) for own in ({}, {option: value})
            )
            assert plain != changed, (kind, option)


def test_a_form_has_no_option_that_no_kind_uses() -> None:
    assert {name for entry in KINDS.values() for name in entry.options} == set(vars(Form()))
