"""``tntune plan``: which contractions were weighed, which was taken, and how a layer applies the factors."""

import pytest

from tests.cli.command import tntune
from tntune.contract import candidates
from tntune.maps import Geometry, build_map

ARGUMENTS = ("plan", "--in", 96, "--out", 64, "--width", 16, "--rank", 4, "--latent", "fixed")
MAP = build_map("tensorguide", Geometry(96, 64, 16), rank=4, latent="fixed")


def test_plans_are_those_of_the_map() -> None:
    found = tntune(*ARGUMENTS, "--json").json["plans"]
    assert len(found) == len(MAP.plans) == 2
    for rows, plan in zip(found, MAP.plans, strict=True):
        assert rows[0]["plan"] == plan.route
        assert [row["cost"] for row in rows] == [one.cost for one in candidates(plan)]
        assert rows[0]["flops"] == plan.flops
        assert {"left to right", "right to left"} & {row["plan"] for row in rows}


def test_the_table_marks_the_one_that_is_taken() -> None:
    lines = tntune(*ARGUMENTS).out.splitlines()
    taken = [line for line in lines if line.endswith("taken")]
    assert len(taken) == 2
    assert all(line.startswith(plan.route) for line, plan in zip(taken, MAP.plans, strict=True))
    assert "microseconds" not in "".join(lines)


def test_measuring_adds_times_and_changes_no_choice() -> None:
    ran = tntune(*ARGUMENTS, "--measure")
    assert ran.code == 0
    assert ran.out.count("cpu microseconds") == 2
    assert ran.out.count("The plan that is taken") == 2
    plain, timed = (tntune(*ARGUMENTS, "--json", *more).json["plans"] for more in ((), ("--measure",)))
    without = [[{k: v for k, v in row.items() if k != "cpu_microseconds"} for row in rows] for rows in timed]
    assert without == plain
    assert all(row["cpu_microseconds"] >= 0 for rows in timed for row in rows)


@pytest.mark.parametrize(
    ("options", "generated"),
    [
        (("--width", 16), "together with all layers of this map: 131,072 entries a layer, at most 131,072"),
        (
            ("--width", 24),
            "layer by layer: 196,608 entries a layer, above 131,072 on a CPU; on an",
        ),
        (("--width", 64, "--rank", 8), "together with all layers of this map: "),
        (("--width", 16, "--latent", "resample"), "layer by layer: z is drawn at every call"),
        (("--width", 8, "--method", "lora"), "not at all: the params are the factors"),
    ],
)
def test_says_whether_layers_are_generated_together(options: tuple, generated: str) -> None:
    found = tntune("plan", "--in", 4096, "--out", 4096, *options, "--json").json["generated"]
    assert found.startswith(generated)


@pytest.mark.parametrize(
    ("options", "applied"),
    [
        (("--width", 64, "--rank", 8), "products: bond 8 "),
        (("--width", 16, "--rank", 8), "whole factors: bond 8 "),
        (("--width", 64, "--layout", "concat"), "whole factors"),
        (("--width", 8, "--method", "lora"), "whole factors"),
    ],
)
def test_says_how_a_layer_applies_the_factors(options: tuple, applied: str) -> None:
    assert tntune("plan", "--in", 96, "--out", 64, *options, "--json").json["applied"].startswith(applied)
