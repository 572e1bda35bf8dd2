"""Laws of libraries on disk: round trips, members as folders of their own, and damage named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint.test_groups import pieces
from tests.support.tolerance import close
from tntune.checkpoint import LibraryMember, open_adapter, open_library, open_tensorguide, write_library
from tntune.errors import CheckpointError, SpecError, TargetError
from tntune.maps import Group

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MEMBERS = {
    "one": LibraryMember({"task_type": "CAUSAL_LM", "modules_to_save": ["score"]}, {"relative_error": 0.5}),
    "two": LibraryMember({}),
}
SCORE = "base_model.model.score.weight"


def groups() -> dict[str, tuple[Group, dict[str, Tensor]]]:
    """A train over two layers of one member and one of the other, and a LoRA of one layer."""
    (guide, tensors), (plain, factors) = pieces()["q"], pieces()["head"]
    names = ("one/h.0.q", "two/h.0.q", "one/h.1.q")
    return {
        "q": (Group(guide.map, names, guide.scales), tensors),
        "head": (Group(plain.map, ("two/head",), plain.scales), factors),
    }


@pytest.fixture
def library(tmp_path: Path) -> Path:
    carried = {f"one/{SCORE}": torch.arange(6.0)}
    write_library(tmp_path / "library", MEMBERS, groups(), passthrough=carried, metadata={"made": "here"})
    return tmp_path / "library"


def test_round_trip(library: Path) -> None:
    found = open_library(library)
    assert found.members == MEMBERS
    assert found.groups == {name: group for name, (group, _) in groups().items()}
    for name, (_, tensors) in groups().items():
        assert all(torch.equal(found.load(name)[flat], value) for flat, value in tensors.items())
    assert found.config["metadata"] == {"made": "here"}
    assert {key: value.tolist() for key, value in found.carried().items()} == {
        f"one/{SCORE}": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    }


def test_a_member_is_a_folder_of_its_own(library: Path) -> None:
    found = open_library(library)
    whole = {module: (group, i) for group, _ in groups().values() for i, module in enumerate(group.modules)}
    for name in MEMBERS:
        folder = open_adapter(library, member=name)
        assert set(folder.sites) == {path.partition("/")[2] for path in whole if path.startswith(name)}
        for module, site in folder.sites.items():
            group, index = whole[f"{name}/{module}"]
            label = next(label for label, each in found.groups.items() if each == group)
            own, exact = site.factors(folder.load(module)), group.map.factors(*[found.load(label)] * 2)
            assert site.scale == group.scales[index]
            for made, every in zip(own, exact, strict=True):
                assert close(made[0], every[index])
    one = found.member("one")
    assert one.passthrough == (SCORE,)
    assert torch.equal(one.tensor(SCORE), torch.arange(6.0))
    assert (one.config["task_type"], one.metadata) == ("CAUSAL_LM", {"relative_error": 0.5})
    assert one.params < found.params


def test_what_a_member_alone_costs(library: Path) -> None:
    found = open_library(library)
    bases = 11 * 4  # (in + out) of rank 4
    coefficients = 4 * 2 * 2  # rank, sides, width
    assert found.own_params == {"one": 2 * coefficients, "two": coefficients + 2 * (5 + 3)}
    assert found.params == bases + sum(found.own_params.values())


def test_what_is_asked_for_by_a_wrong_name(library: Path) -> None:
    with pytest.raises(TargetError, match="has no member 'three', only one, two"):
        open_library(library).member("three")
    with pytest.raises(TargetError, match="is a library; name one of its members: one, two"):
        open_adapter(library)
    with pytest.raises(CheckpointError, match="peft_type: must be 'TENSORGUIDE'"):
        open_tensorguide(library)


def test_a_member_of_which_nothing_is_kept(tmp_path: Path) -> None:
    write_library(tmp_path / "library", {**MEMBERS, "three": LibraryMember({})}, groups())
    with pytest.raises(TargetError, match="three: every layer was dropped"):
        open_library(tmp_path / "library").member("three")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": {"one": {"config": {}, "notes": {}}}}, "groups: no member is called 'two'"),
        ({"members": {"one": {}}}, "members: one: has the keys config and notes"),
        ({"members": {"one": {"config": 1, "notes": {}}}}, "members: one: config and notes are objects"),
        ({"members": {"": {"config": {}, "notes": {}}}}, "the name of a member has no '/' and is not empty"),
        ({"members": []}, "AttributeError"),
        ({"peft_type": "LORA"}, "peft_type: must be 'TENSORGUIDE_LIBRARY', not 'LORA'"),
        ({"groups": {}}, "groups: must be an object with at least one group"),
    ],
)
def test_damaged_configurations_are_named(library: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((library / CONFIG).read_text())
    (library / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        open_library(library)


@pytest.mark.parametrize("key", ["stray", "three/score", "one/base_model.tensorguide_shared.q.tt_core_0"])
def test_strange_tensors_are_named(library: Path, key: str) -> None:
    save_file({**load_file(library / WEIGHTS), key: torch.ones(1)}, library / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"{key}: no map and no member of {CONFIG} has"):
        open_library(library)


def test_a_missing_tensor_is_named(library: Path) -> None:
    tensors = load_file(library / WEIGHTS)
    del tensors["base_model.tensorguide_shared.q.tt_core_1"]
    save_file(tensors, library / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"q\.tt_core_1: is missing"):
        open_library(library)


def test_what_is_no_library_is_not_written(tmp_path: Path) -> None:
    out, made = tmp_path / "out", groups()
    with pytest.raises(SpecError, match=r"two/h\.0\.q: is of no member"):
        write_library(out, {"one": MEMBERS["one"]}, made)
    with pytest.raises(SpecError, match="'a/b': the name of a member"):
        write_library(out, {**MEMBERS, "a/b": LibraryMember({})}, made)
    with pytest.raises(SpecError, match=r"'q\.1': the name of a group has no dot"):
        write_library(out, MEMBERS, {"q.1": made["q"]})
    with pytest.raises(SpecError, match="score: is of no member"):
        write_library(out, MEMBERS, made, passthrough={"score": torch.ones(1)})
    key = "one/base_model.tensorguide_shared.q.tt_core_0"
    with pytest.raises(SpecError, match="is a map's tensor and cannot be passed through"):
        write_library(out, MEMBERS, made, passthrough={key: torch.ones(1)})
    assert not out.exists()
