"""Law: a LoRA in the maps of any method differs from itself by what the report says, layer by layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.cli.command import tntune
from tests.convert.sample import lora_deltas, lora_folder, same
from tests.convert.shared import RANK, SIZE, shared_factors, shared_folder
from tests.support.tolerance import TOLERANCE
from tntune.checkpoint import open_tensorguide
from tntune.convert import (
    FAMILY_METHODS,
    ConversionSettings,
    FamilySettings,
    Target,
    compare_adapters,
    convert_family,
    convert_lora,
    export_lora,
)
from tntune.errors import ModeError, NumericalError, OutputError, SpecError
from tntune.maps import JOINT_METHODS, Stack, build_joint
from tntune.maps.build_joint import HEAD_METHODS

EVERY = pytest.mark.parametrize("method", FAMILY_METHODS)
HEAD = SIZE // 2


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten layers of one shape."""
    made = {name: pair for name, pair in shared_factors().items() if name != "up"}
    return shared_folder(tmp_path_factory.mktemp("source") / "lora", made=made)


def settings(method: str, **target: Any) -> FamilySettings:
    return FamilySettings(Target(**target), method, HEAD if method in HEAD_METHODS else None)


def dense_errors(source: Path, output: Path, lora: Path) -> tuple[float, dict[str, float]]:
    """Relative errors in total and of each layer, of the exported LoRA, dense in numpy."""
    export_lora(output, lora)
    exact, found = lora_deltas(source), lora_deltas(lora)
    gaps = {name: float(np.linalg.norm(delta - found[name])) for name, delta in exact.items()}
    norms = {name: float(np.linalg.norm(delta)) for name, delta in exact.items()}
    total = np.linalg.norm(list(gaps.values())) / np.linalg.norm(list(norms.values()))
    return float(total), {name: gaps[name] / norms[name] for name in exact}


@EVERY
def test_the_report_is_what_the_files_hold(source: Path, tmp_path: Path, method: str) -> None:
    output = tmp_path / "small"
    report = convert_family(source, output, settings(method, params=0.6))
    assert report.params_after <= 0.6 * report.params_before
    assert report.params_after == sum(layer.params_after for layer in report.layers)
    assert report.params_after == open_tensorguide(output).params
    total, layers = dense_errors(source, output, tmp_path / "lora")
    assert same(report.relative_error, total, factor=1e5)  # an exported LoRA is of float32
    for layer in report.layers:
        assert (layer.method, layer.params_before) == (method, RANK * 2 * SIZE)
        assert same(layer.relative_error, layers[layer.name], factor=1e5)
    assert same(compare_adapters(source, output).relative_error, report.relative_error, factor=1e4)
    assert report.bytes_after == (output / "adapter_model.safetensors").stat().st_size
    assert set(report.dtypes) == {"torch.float32"}


@EVERY
def test_maps_are_shared_where_the_method_shares(source: Path, tmp_path: Path, method: str) -> None:
    convert_family(source, tmp_path / "small", settings(method, params=0.6))
    folder = open_tensorguide(tmp_path / "small")
    served = [group.map.sites for group in folder.groups.values()]
    assert served == ([10] if method in JOINT_METHODS else [])
    assert len(folder.sites) == 10


@pytest.mark.parametrize("method", ["lotr", "fact_tt", "fact_tucker", "metatt_4d", "tenslora_qkv_depth"])
def test_an_adapter_that_the_method_made_is_found_again(tmp_path: Path, method: str) -> None:
    stack = Stack(SIZE, SIZE, layers=5, projections=2)
    map = build_joint(method, stack, rank=2, start="random")
    params, fixed = map.init(torch.Generator().manual_seed(0), dtype=torch.float64)
    down, up = map.factors(params, fixed)
    names = [name for name in shared_factors() if name != "up"]
    made = {name: (down[k], up[k]) for k, name in enumerate(names)}
    asked = {"r": map.width, "lora_alpha": map.width, "rank_pattern": {}, "target_modules": ["q", "o"]}
    source = lora_folder(tmp_path / "lora", made=made, **asked)
    report = convert_family(source, tmp_path / "again", settings(method, max_params=map.num_parameters))
    assert report.params_after == map.num_parameters
    assert report.relative_error < TOLERANCE[torch.float32]


@pytest.mark.parametrize("method", ["lotr", "metatt_5d", "tt_lora", "delta_train"])
def test_a_tolerance_is_met_by_the_least_rank(source: Path, tmp_path: Path, method: str) -> None:
    report = convert_family(source, tmp_path / "small", settings(method, tolerance=0.3))
    assert report.target_met
    assert report.relative_error <= 0.3
    rank = max(max(layer.ranks) for layer in report.layers)
    lower = convert_family(source, tmp_path / "lower", settings(method, max_rank=rank - 1))
    assert lower.relative_error > 0.3
    assert max(max(layer.ranks) for layer in lower.layers) == rank - 1


def test_a_tolerance_that_is_out_of_reach_is_missed(source: Path, tmp_path: Path) -> None:
    report = convert_family(source, tmp_path / "small", settings("lorta", tolerance=0.0))
    assert not report.target_met
    assert report.params_after <= report.params_before
    nearest = convert_family(source, tmp_path / "whole", settings("lorta", params=1.0))
    assert same(report.relative_error, nearest.relative_error)


def test_layers_of_several_shapes_and_ranks(tmp_path: Path) -> None:
    """Of two shapes, and of different ranks in different gauges."""
    made = shared_factors()
    turned = {}
    for k, (name, (down, up)) in enumerate(made.items()):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(k)).double())[0]
        turned[name] = (2.0 * turn @ down, up @ turn.mT / 2.0)
    one, other = (shared_folder(tmp_path / name, made=own) for name, own in (("a", made), ("b", turned)))
    for method in ("lotr", "tt_lora"):
        first, second = (
            convert_family(each, tmp_path / f"{method} {each.name}", settings(method, params=0.7))
            for each in (one, other)
        )
        assert same(first.relative_error, second.relative_error, factor=1e5)
    assert {layer.shape for layer in first.layers} == {(SIZE, SIZE), (9, SIZE)}


def test_what_is_carried_along(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", saved=True)
    report = convert_family(
        source, tmp_path / "small", FamilySettings(Target(max_rank=2), "lotr", dtype=torch.bfloat16)
    )
    assert report.passthrough == 1
    assert report.dtypes == ("torch.bfloat16",)
    tensors = load_file(tmp_path / "small" / "adapter_model.safetensors")
    assert torch.equal(
        tensors["base_model.model.score.weight"],
        load_file(source / "adapter_model.safetensors")["base_model.model.score.weight"],
    )
    assert "| lotr |" in (tmp_path / "small" / "README.md").read_text()


def test_input_heads_reach_the_maps(source: Path, tmp_path: Path) -> None:
    asked = FamilySettings(Target(params=0.5), "lorta", HEAD, ("o",))
    convert_family(source, tmp_path / "small", asked)
    (group,) = open_tensorguide(tmp_path / "small").groups.values()
    assert group.map.input_heads == (group.modules.index("h.0.o"),)
    assert asked.to_json()["input_heads"] == ["o"]


def test_plain_svd_stands_beside(source: Path, tmp_path: Path) -> None:
    """The baseline is what convert_lora says of the same size."""
    report = convert_family(source, tmp_path / "small", settings("lotr", params=0.5))
    plain = convert_lora(
        source, tmp_path / "svd", ConversionSettings(Target(max_params=report.params_after), "svd")
    )
    assert same(report.svd_relative_error or 0.0, plain.svd_relative_error or 0.0)


def report_of(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return ran.json


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    found = report_of(
        tntune(
            *("convert", source, "-o", tmp_path / "small", "--method", "metatt_5d", "--head-dim", HEAD),
            *("--input-heads", "o", "--params", 0.5, "--json"),
        )
    )
    assert found["settings"]["method"] == "metatt_5d"
    assert found["settings"]["input_heads"] == ["o"]
    assert found["params_after"] <= 0.5 * found["params_before"]
    verified = report_of(tntune("verify", source, tmp_path / "small", "--json"))
    assert same(verified["relative_error"], found["relative_error"], factor=1e4)
    report_of(tntune("export", tmp_path / "small", "--to", "lora", "-o", tmp_path / "lora", "--json"))
    printed = tntune("convert", source, "-o", tmp_path / "text", "--method", "lotr", "--params", 0.5)
    assert printed.code == 0
    assert "lotr" in printed.out
    assert "plain SVD at this size" in printed.out
    missed = tntune("convert", source, "-o", tmp_path / "no", "--method", "lotr", "--tolerance", 0)
    assert missed.code == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "lotr", "--dry-run"), "method 'lotr' has no --dry-run"),
        (("--method", "lotr", "--activation", "relu"), "method 'lotr' has no --activation"),
        (("--method", "lotr", "--layout", "io w"), "method 'lotr' has no --layout"),
        (("--method", "lotr", "--head-dim", 7), "has no mode for heads, but head_dim=7"),
        (("--method", "lorta"), "has a mode for attention heads: give head_dim"),
        (("--method", "svd", "--head-dim", 7), "method 'svd' has no --head-dim"),
        (("--head-dim", 7), "method 'tensorguide' has no --head-dim"),
        (("--method", "vera"), "method must be one of tensorguide"),
    ],
)
def test_options_that_a_method_does_not_have(
    source: Path, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    ran = tntune("convert", source, "-o", tmp_path / "small", "--params", 0.5, *options)
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "small").exists()


def test_what_it_refuses(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"method must be one of tt_lora, .*, not 'lora'"):
        FamilySettings(Target(params=0.5), "lora")
    with pytest.raises(SpecError, match="target must be a Target"):
        FamilySettings(0.5, "lotr")
    with pytest.raises(
        SpecError, match=r"a budget of 20 parameters for 10 layers is less than the \d+ of rank 1"
    ):
        convert_family(source, tmp_path / "small", settings("lotr", max_params=20))
    with pytest.raises(ModeError, match="heads of 5 do not divide 14 features"):
        convert_family(source, tmp_path / "small", FamilySettings(Target(params=0.5), "lorta", 5))
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        convert_family(source, tmp_path / "taken", settings("lotr", params=0.5))
    zero = {name: (down, 0 * up) for name, (down, up) in shared_factors().items()}
    with pytest.raises(NumericalError, match="every ΔW is zero"):
        convert_family(
            shared_folder(tmp_path / "zero", made=zero), tmp_path / "z", settings("lotr", params=0.5)
        )
