"""Laws of ``tntune collect`` and of what other commands do with libraries."""

from pathlib import Path

import pytest

from tests.cli.command import Ran, tntune
from tests.convert.library import member
from tests.convert.sample import same
from tests.convert.shared import Network, batches, shared_folder
from tntune.checkpoint import save_calibration
from tntune.convert import calibrate


@pytest.fixture
def loras(tmp_path: Path) -> list[Path]:
    return [member(tmp_path / name, seed, own=0.05) for seed, name in enumerate("abc")]


@pytest.fixture
def library(tmp_path: Path, loras: list[Path]) -> Path:
    assert tntune("collect", *loras, "-o", tmp_path / "library", "--params", 0.5).code == 0
    return tmp_path / "library"


def test_the_whole_way(tmp_path: Path, loras: list[Path]) -> None:
    library, back, guide = (tmp_path / name for name in ("library", "back", "guide"))
    ran = tntune("collect", *loras[:2], f"third={loras[2]}", "-o", library, "--params", 0.5, "--json")
    assert ran.code == 0
    assert [own["name"] for own in ran.json["members"]] == ["a", "b", "third"]
    assert ran.json["params_after"] <= 0.5 * ran.json["params_before"]
    verified = tntune("verify", loras[2], library, "--member", "third", "--json")
    assert same(verified.json["relative_error"], ran.json["members"][2]["relative_error"], factor=1e3)
    exported = tntune("export", library, "--member", "third", "--to", "lora", "-o", back, "--json")
    assert exported.json["relative_error"] < 1e-6
    assert tntune("verify", back, library, "--member", "third", "--tolerance", 1e-5).code == 0
    assert tntune("export", library, "--member", "a", "--to", "tensorguide", "-o", guide).code == 0
    assert tntune("verify", guide, library, "--member", "a", "--tolerance", 1e-9).code == 0
    assert tntune("verify", library, guide, "--first-member", "a", "--tolerance", 1e-9).code == 0
    both = ("--first-member", "a", "--member", "third", "--json")
    apart, direct = tntune("verify", library, library, *both), tntune("verify", guide, back, "--json")
    assert same(apart.json["relative_error"], direct.json["relative_error"], factor=1e3)


def test_inspect_lists_the_members(library: Path) -> None:
    ran = tntune("inspect", library, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() == {
        "path",
        "peft_type",
        "base_model",
        "params",
        "shared_params",
        "bytes",
        "members",
    }
    assert [own["name"] for own in ran.json["members"]] == ["a", "b", "c"]
    assert ran.json["params"] == ran.json["shared_params"] + sum(own["params"] for own in ran.json["members"])
    assert all(0 < own["relative_error"] < 1 for own in ran.json["members"])
    assert "3 adapters of" in tntune("inspect", library).out
    layers = tntune("inspect", library, "--member", "b", "--json").json["layers"]
    assert {layer["name"] for layer in layers} == {"h.0.q", "h.1.q", "h.2.q", "h.0.up", "h.1.up"}


def test_members_are_added(tmp_path: Path, library: Path) -> None:
    new = member(tmp_path / "d", 7, own=0.05)
    ran = tntune("collect", library, "--add", new, "-o", tmp_path / "more", "--json")
    assert ran.code == 0
    assert [own["name"] for own in ran.json["added"]] == ["d"]
    assert "d " in tntune("collect", library, "--add", f"d={new}", "-o", tmp_path / "shown").out
    assert len(tntune("inspect", tmp_path / "more", "--json").json["members"]) == 4


def test_calibrations_by_name_or_for_all(tmp_path: Path) -> None:
    loras = [shared_folder(tmp_path / name) for name in "ab"]
    file = tmp_path / "c.safetensors"
    save_calibration(file, calibrate(Network(), batches(), loras[0]))

    def ran(output: str, *texts: object) -> Ran:
        options = [part for text in texts for part in ("--calibration", text)]
        return tntune("collect", *loras, "-o", tmp_path / output, "--params", 0.3, "--json", *options)

    one, each = ran("one", file), ran("each", f"a={file}", f"b={file}")
    assert one.json["norm"] == "task, damping 0.1"
    assert one.json["error"] == each.json["error"]
    assert "is not NAME=FILE with one of a, b" in ran("bad", f"x={file}", f"a={file}").err


def test_what_is_remarked(tmp_path: Path) -> None:
    """Members that share nothing are better off as they were."""
    apart = [member(tmp_path / name, seed, span=seed, own=2.0) for seed, name in enumerate("ab")]
    ran = tntune("collect", *apart, "-o", tmp_path / "library", "--params", 0.5)
    assert ran.code == 0
    assert "no two members share a basis" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--params", 0.5, "--max-params", 9), "give exactly one of"),
        (("--add", "x", "--params", 0.5), "--add takes one library as SOURCES"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, loras: list[Path], arguments: tuple[object, ...], message: str
) -> None:
    ran = tntune("collect", loras[0], "-o", tmp_path / "library", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "library").exists()


def test_names_are_told_apart(tmp_path: Path, loras: list[Path]) -> None:
    ran = tntune("collect", loras[0], f"a={loras[1]}", "-o", tmp_path / "library", "--params", 0.5)
    assert (ran.code, "two members are called 'a'" in ran.err) == (2, True)


def test_formats_that_export_does_not_write(tmp_path: Path, library: Path) -> None:
    for options in (("--to", "tensorguide"), ("--to", "onnx", "--member", "a")):
        ran = tntune("export", library, "-o", tmp_path / "out", *options)
        assert (ran.code, "export writes lora" in ran.err) == (2, True)


@pytest.mark.parametrize(
    "command",
    [
        ("convert", "--params", 0.5),
        ("resize", "--rank", 1),
        ("convert", "--method", "joint", "--params", 0.5),
    ],
)
def test_a_dry_run_says_what_it_takes(tmp_path: Path, loras: list[Path], command: tuple[object, ...]) -> None:
    ran = tntune(command[0], loras[0], "-o", tmp_path / "out", *command[1:], "--dry-run", "--json")
    assert (ran.code, ran.json.keys()) == (0, {"source", "layers", "params", "bytes", "memory_bytes"})
    assert ran.json["memory_bytes"] > ran.json["bytes"]
    assert not (tmp_path / "out").exists()
    assert (
        "nothing was written"
        in tntune(command[0], loras[0], "-o", tmp_path / "out", *command[1:], "--dry-run").out
    )
