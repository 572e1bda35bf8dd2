"""Laws of folders whose maps serve several modules."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tolerance import close
from tntune.checkpoint import open_adapter, open_tensorguide, write_groups, write_tensorguide
from tntune.errors import CheckpointError, ModeError, SpecError, UnsupportedError
from tntune.maps import Geometry, Group, Joined, LoRA, Member, Site, TensorGuide

CONFIG = "adapter_config.json"
MODULES = ("h.0.q", "h.1.q", "h.2.q")


def pieces(seed: int = 0) -> dict[str, tuple[Group, dict[str, Tensor]]]:
    """A train over three layers, and a plain LoRA of one."""
    layout = Joined.auto("io (layer side w)", Geometry(6, 5, 2), layers=3)
    guide = Group(TensorGuide(6, 5, 2, layout, (1, 4, 1), start="random"), MODULES, (1.0, 2.0, 0.5))
    plain = Group(LoRA(5, 3, 2), ("head",), (0.25,))
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (
            group,
            {
                flat: torch.randn(shape, generator=draw, dtype=torch.float64)
                for flat, shape in group.tensor_shapes().items()
            },
        )
        for name, group in (("q", guide), ("head", plain))
    }


def test_groups_and_tensors_are_read_as_written(tmp_path: Path) -> None:
    write_groups(tmp_path / "a", pieces(), config={"task_type": "CAUSAL_LM"}, metadata={"why": 1})
    folder = open_tensorguide(tmp_path / "a")
    assert folder.groups == {name: group for name, (group, _) in pieces().items()}
    assert folder.metadata == {"why": 1}
    assert folder.config["task_type"] == "CAUSAL_LM"
    assert set(folder.sites) == {*MODULES, "head"}
    assert folder.dtypes == (torch.float64,)
    for name, (group, tensors) in pieces().items():
        for module in group.modules:
            loaded = folder.load(module)
            assert loaded.keys() == tensors.keys()
            assert all(torch.equal(loaded[flat], tensors[flat]) for flat in tensors), name


def test_each_layer_sees_its_own_part_of_the_map(tmp_path: Path) -> None:
    write_groups(tmp_path / "a", pieces(), config={})
    folder = open_tensorguide(tmp_path / "a")
    group, tensors = pieces()["q"]
    downs, ups = group.map.factors(tensors, {})
    for i, module in enumerate(MODULES):
        site = folder.sites[module]
        assert site.scale == group.scales[i]
        down, up = site.factors(folder.load(module))
        assert down.shape == (1, 2, 6)
        assert close(down[0], downs[i])
        assert close(up[0], ups[i])


def test_shared_parameters_count_once(tmp_path: Path) -> None:
    write_groups(tmp_path / "a", pieces(), config={})
    numbers = sum(value.numel() for _, tensors in pieces().values() for value in tensors.values())
    assert open_tensorguide(tmp_path / "a").params == numbers


def test_open_adapter_knows_groups(tmp_path: Path) -> None:
    write_groups(tmp_path / "a", pieces(), config={})
    assert open_adapter(tmp_path / "a").path == tmp_path / "a"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (group, tensors), (plain, _) = pieces()["q"], pieces()["head"]
    with pytest.raises(SpecError, match="there is no group to write"):
        write_groups(tmp_path / "a", {}, config={})
    with pytest.raises(SpecError, match=r"'h\.q': the name of a group has no dot"):
        write_groups(tmp_path / "a", {"h.q": (group, tensors)}, config={})
    with pytest.raises(SpecError, match=r"the modules \['h.0.q', 'h.1.q', 'h.2.q'\] are in two groups"):
        write_groups(tmp_path / "a", {"q": (group, tensors), "k": (group, tensors)}, config={})
    with pytest.raises(SpecError, match="head: the map needs the tensors"):
        write_groups(tmp_path / "a", {"head": (plain, tensors)}, config={})
    with pytest.raises(ModeError, match="the map needs"):
        write_groups(
            tmp_path / "a",
            {"q": (group, {flat: value[..., :1] for flat, value in tensors.items()})},
            config={},
        )
    key = "base_model.tensorguide_shared.other.tt_core_0"
    with pytest.raises(SpecError, match="is a map's tensor and cannot be passed through"):
        write_groups(tmp_path / "a", {"q": (group, tensors)}, config={}, passthrough={key: torch.ones(1)})
    with pytest.raises(SpecError, match="h: its map serves 3 modules; write_groups writes it"):
        write_tensorguide(tmp_path / "a", {"h": (Site(group.map), tensors)}, config={})
    assert not (tmp_path / "a").exists()


def test_damaged_groups_are_named(tmp_path: Path) -> None:
    write_groups(tmp_path / "a", pieces(), config={})
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    config["groups"]["q"]["modules"][0] = "head"
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"groups: the modules \['head'\] are in two groups"):
        open_tensorguide(tmp_path / "a")
    del config["groups"]["q"]
    (tmp_path / "a" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"tensorguide_shared\.q\.tt_core_0: no site of"):
        open_tensorguide(tmp_path / "a")


def test_a_member_is_one_site_of_its_map() -> None:
    group, _ = pieces()["q"]
    member = Member(group.map, 1)
    assert (member.sites, member.width, member.in_features, member.out_features) == (1, 2, 6, 5)
    assert member.tensor_shapes == group.map.tensor_shapes
    with pytest.raises(ModeError, match="site 3 is outside the 3 sites of the map"):
        Member(group.map, 3)
    with pytest.raises(UnsupportedError, match="the factors of one layer do not fix a map that serves 3"):
        member.from_factors(torch.ones(1, 2, 6), torch.ones(1, 5, 2))
