"""Laws: a converted folder is what its report says, measured from the files alone, by another route."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.convert.sample import (
    RANKS,
    SCALES,
    SHAPES,
    Model,
    errors,
    factors,
    guided_deltas,
    inputs,
    listing,
    lora_deltas,
    lora_folder,
    same,
)
from tests.support.tolerance import close
from tntune.adapters import load_adapters
from tntune.convert import ConversionReport, ConversionSettings, Target, convert_lora
from tntune.convert.allocate import ROUNDING
from tntune.errors import CheckpointError, NumericalError, OutputError, RankError, SpecError, UnsupportedError

METHODS = ("tensorguide", "svd", "auto")
TARGETS = (Target(params=0.5), Target(max_params=300), Target(tolerance=0.2), Target(max_rank=2))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOTAL = sum(RANKS[name] * sum(SHAPES[name]) for name in SHAPES)


def converted(source: Path, target: Target, method: str = "tensorguide", **options: Any) -> ConversionReport:
    output = source.with_name(f"{source.name}-{method}")
    return convert_lora(source, output, ConversionSettings(target, method, **options), overwrite=True)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(target.to_json()))
def test_the_report_is_true(tmp_path: Path, target: Target, method: str, dtype: torch.dtype) -> None:
    source = lora_folder(tmp_path / "lora", dtype=dtype)
    report = converted(source, target, method)
    total, layers = errors(source, Path(report.output))
    assert same(1 + report.relative_error, 1 + total)
    for layer in report.layers:
        assert same(1 + layer.relative_error, 1 + layers[layer.name])
        assert same(layer.norm, np.linalg.norm(lora_deltas(source)[layer.name]))
        assert layer.shape == SHAPES[layer.name][::-1]
    tensors = stored(Path(report.output))
    assert report.params_before == TOTAL == sum(layer.params_before for layer in report.layers)
    assert report.params_after == sum(tensor.numel() for tensor in tensors.values())
    assert report.params_after == sum(layer.params_after for layer in report.layers)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert report.dtypes == (str(dtype),)
    assert report.bytes_after == (Path(report.output) / "adapter_model.safetensors").stat().st_size
    assert report.target_met
    if target.tolerance is not None:
        assert all(error <= target.tolerance for error in layers.values())
    elif target.max_rank is not None:
        assert all(max(layer.ranks) <= target.max_rank for layer in report.layers)
    else:
        assert report.params_after <= (target.budget(TOTAL) or 0)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.5, 0.3, 0.1, 0.06])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_is_never_worse_than_one_method(tmp_path: Path, share: float, seed: int) -> None:
    source = lora_folder(tmp_path / "lora", made=factors(seed))
    found = {method: converted(source, Target(params=share), method) for method in METHODS}
    assert all(report.params_after <= share * TOTAL for report in found.values())
    for method in ("svd", "tensorguide"):
        assert found["auto"].relative_error <= (1 + ROUNDING) * found[method].relative_error
    if share == 1.0:
        assert same(1 + found["svd"].relative_error, 1.0, factor=1e4)


@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.01])
def test_auto_meets_a_tolerance_with_no_more_parameters(tmp_path: Path, tolerance: float) -> None:
    source = lora_folder(tmp_path / "lora")
    found = {method: converted(source, Target(tolerance=tolerance), method) for method in METHODS}
    assert found["auto"].params_after <= min(found[m].params_after for m in ("svd", "tensorguide"))


def test_the_svd_method_is_the_dense_truncated_svd(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", dtype=torch.float64)
    report = converted(source, Target(params=0.5), "svd")
    exact, found = lora_deltas(source), guided_deltas(Path(report.output))
    for layer in report.layers:
        u, s, vh = np.linalg.svd(exact[layer.name])
        rank = layer.width
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert close(torch.from_numpy(found.get(layer.name, 0 * best)), torch.from_numpy(best))
        assert same(1 + layer.relative_error, 1 + (layer.svd_relative_error or 0))
    assert same(report.relative_error, report.svd_relative_error or 0.0)


def test_the_svd_baseline_is_that_of_dense_matrices(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora")
    report = converted(source, Target(params=0.4))
    for layer in report.layers:
        s = np.linalg.svd(lora_deltas(source)[layer.name], compute_uv=False)
        tail = s[layer.params_after // sum(SHAPES[layer.name]) :]
        expected = np.linalg.norm(tail) / np.linalg.norm(s)
        assert same(1 + (layer.svd_relative_error or 0.0), 1 + expected)


def test_two_gauges_of_one_adapter_give_one_report(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(5)
    made, other = factors(), {}
    for name, (down, up) in made.items():
        gauge = torch.randn(down.shape[0], down.shape[0], generator=draw, dtype=torch.float64)
        other[name] = (gauge @ down, up @ torch.linalg.inv(gauge))
    first = lora_folder(tmp_path / "first", made=made, dtype=torch.float64)
    second = lora_folder(tmp_path / "second", made=other, dtype=torch.float64)
    for target in TARGETS:
        assert_same_report(*(converted(source, target, "auto") for source in (first, second)))


def test_repeated_singular_values_leave_the_report_alone(tmp_path: Path) -> None:
    """Then the factors are not unique, but every error is."""
    draw = torch.Generator().manual_seed(6)
    made, other = {}, {}
    for name, (inside, outside) in SHAPES.items():
        q, p = (
            torch.linalg.qr(torch.randn(n, RANKS[name], generator=draw, dtype=torch.float64)).Q
            for n in (inside, outside)
        )
        gauge = torch.randn(RANKS[name], RANKS[name], generator=draw, dtype=torch.float64)
        made[name] = (q.mT, p)
        other[name] = (gauge @ q.mT, p @ torch.linalg.inv(gauge))
    first = lora_folder(tmp_path / "first", made=made, dtype=torch.float64)
    second = lora_folder(tmp_path / "second", made=other, dtype=torch.float64)
    for target in (Target(params=0.6), Target(max_rank=3), Target(tolerance=0.6)):
        reports = [converted(source, target, "auto") for source in (first, second)]
        assert same(reports[0].relative_error, reports[1].relative_error, factor=100)
        assert reports[0].params_after == reports[1].params_after


def assert_same_report(one: ConversionReport, two: ConversionReport) -> None:
    """Every choice, and every number to rounding."""
    assert [(a.method, a.layout, a.ranks) for a in one.layers] == [
        (b.method, b.layout, b.ranks) for b in two.layers
    ]
    assert one.params_after == two.params_after
    for a, b in zip((one, *one.layers), (two, *two.layers), strict=True):
        assert same(1 + a.relative_error, 1 + b.relative_error)
        assert same(1 + (a.svd_relative_error or 0), 1 + (b.svd_relative_error or 0))


def test_half_precision_stays_half_and_takes_half_the_bytes(tmp_path: Path) -> None:
    wide = converted(lora_folder(tmp_path / "wide", dtype=torch.float32), Target(max_rank=3), "svd")
    half = converted(lora_folder(tmp_path / "half", dtype=torch.bfloat16), Target(max_rank=3), "svd")
    assert half.dtypes == ("torch.bfloat16",)
    header = (Path(half.output) / "adapter_model.safetensors").stat().st_size - 2 * half.params_after
    assert wide.params_after == half.params_after
    assert wide.bytes_after - header == pytest.approx(2 * (half.bytes_after - header), rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_stored_dtype_can_be_chosen(tmp_path: Path, dtype: torch.dtype) -> None:
    report = converted(lora_folder(tmp_path / "lora", dtype=torch.float64), Target(params=0.5), dtype=dtype)
    assert {tensor.dtype for tensor in stored(Path(report.output)).values()} == {dtype}
    assert report.dtypes == (str(dtype),)
    assert report.settings["dtype"] == str(dtype)


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_below_the_dtype_is_missed_and_said_so(tmp_path: Path, method: str) -> None:
    source = lora_folder(tmp_path / "lora")
    report = converted(source, Target(tolerance=1e-5), method, dtype=torch.bfloat16)
    assert not report.target_met
    assert report.relative_error > 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modules_saved_whole_are_carried_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    source = lora_folder(tmp_path / "lora", saved=True, dtype=dtype)
    report = converted(source, Target(params=0.5))
    key = "base_model.model.score.weight"
    assert report.passthrough == 1
    assert torch.equal(stored(Path(report.output))[key], stored(source)[key])
    config = json.loads((Path(report.output) / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score"]


def test_a_zero_layer_beside_trained_ones(tmp_path: Path) -> None:
    made = factors()
    made["head"] = (made["head"][0], torch.zeros(7, 2))
    source = lora_folder(tmp_path / "lora", made=made)
    for method in METHODS:
        for target in TARGETS:
            report = converted(source, target, method)
            assert same(1 + report.relative_error, 1 + errors(source, Path(report.output))[0])
            assert report.layers[-1].relative_error == 0
            assert report.layers[-1].norm == 0


@pytest.mark.parametrize("exponent", [-30, -10, 10, 30])
@pytest.mark.parametrize("method", METHODS)
def test_any_scale_gives_the_same_errors(tmp_path: Path, exponent: int, method: str) -> None:
    made = {name: (down, 10.0**exponent * up) for name, (down, up) in factors().items()}
    scaled = converted(lora_folder(tmp_path / "scaled", made=made), Target(params=0.5), method)
    plain = converted(lora_folder(tmp_path / "plain"), Target(params=0.5), method)
    assert [layer.ranks for layer in scaled.layers] == [layer.ranks for layer in plain.layers]
    assert same(scaled.relative_error, plain.relative_error, factor=1e4)
    assert same(1 + scaled.relative_error, 1 + errors(tmp_path / "scaled", Path(scaled.output))[0])


def test_duplicated_columns_cost_nothing(tmp_path: Path) -> None:
    made = {
        name: (torch.cat([down, down]), torch.cat([up, up], dim=1)) for name, (down, up) in factors().items()
    }
    source = lora_folder(tmp_path / "lora", made=made)
    report = converted(source, Target(tolerance=1e-5), "svd")
    assert [layer.ranks[0] for layer in report.layers] == list(RANKS.values())


def test_what_a_dtype_cannot_hold_is_refused_by_layer(tmp_path: Path) -> None:
    made = {name: (down, 1e12 * up) for name, (down, up) in factors().items()}
    source = lora_folder(tmp_path / "lora", made=made)
    with pytest.raises(NumericalError, match=r"h\.0\.fc: entries up to .* overflow torch.float16"):
        converted(source, Target(params=0.5), dtype=torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


@pytest.mark.parametrize(
    "layout",
    ["io w", "w io", "side w f", "side f1 f2 w", "(f1 w1) (f2 w2) side", "side f1 (f2 w)", "f1 f2 f3 side w"],
)
@pytest.mark.parametrize("target", [Target(params=0.5), Target(tolerance=0.1)], ids=["share", "tolerance"])
def test_any_joined_layout(tmp_path: Path, layout: str, target: Target) -> None:
    source = lora_folder(tmp_path / "lora")
    report = converted(source, target, layouts=(layout,))
    assert {layer.layout for layer in report.layers if layer.method == "tensorguide"} <= {layout}
    assert same(1 + report.relative_error, 1 + errors(source, Path(report.output))[0])
    assert report.target_met


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "leaky_relu"])
@pytest.mark.parametrize("layout", ["io w", "side w f1 f2", "(f1 w1) (f2 w2) side"])
def test_a_lifted_conversion_computes_the_same_function(tmp_path: Path, layout: str, activation: str) -> None:
    source = lora_folder(tmp_path / "lora", dtype=torch.float64)
    plain = converted(source, Target(max_rank=3), layouts=(layout,))
    expected = load_adapters(Model().double(), plain.output)(inputs().double())
    lifted = converted(source, Target(max_rank=3), layouts=(layout,), activation=activation)
    found = load_adapters(Model().double(), lifted.output)(inputs().double())
    assert close(found, expected)
    assert same(1 + lifted.relative_error, 1 + plain.relative_error)
    assert same(1 + lifted.relative_error, 1 + errors(source, Path(lifted.output))[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_converted_folder_runs_in_a_torch_model(tmp_path: Path, method: str) -> None:
    """Its outputs are those of weights updated by ΔW as read from the files; exact, they are the LoRA's."""
    source = lora_folder(tmp_path / "lora")
    layouts = {} if method == "svd" else {"layouts": ("io w",)}
    for target in (Target(params=0.5), Target(max_rank=4)):
        report = converted(source, target, method, **layouts)
        found = load_adapters(Model(), report.output)(inputs())
        assert close(found, updated(guided_deltas(Path(report.output)))(inputs()))
    assert same(1 + report.relative_error, 1, factor=1e5)
    assert close(found, updated(lora_deltas(source))(inputs()))


def updated(deltas: dict[str, np.ndarray]) -> Model:
    model = Model()
    for name, delta in deltas.items():
        model.get_submodule(name).weight.data += torch.from_numpy(delta).float()
    return model


def test_a_budget_below_every_layer_is_refused(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora")
    for method in METHODS:
        with pytest.raises(RankError, match="4 trained layers, and none fits the budget"):
            converted(source, Target(max_params=1), method)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_layers_are_trained_however_small(tmp_path: Path) -> None:
    made = {name: (down, up * 1e-9) for name, (down, up) in factors().items()}
    made["head"] = (made["head"][0], 0 * made["head"][1])
    with pytest.raises(RankError, match="3 trained layers, and none fits the budget"):
        converted(lora_folder(tmp_path / "lora", made=made), Target(max_params=1), "svd")


def test_a_small_budget_drops_layers_and_reports_them(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora")
    report = converted(source, Target(max_params=40), "svd")
    kept = {layer.name for layer in report.layers if layer.method != "dropped"}
    assert kept == set(guided_deltas(Path(report.output)))
    assert all(layer.relative_error == 1 for layer in report.layers if layer.method == "dropped")
    assert same(1 + report.relative_error, 1 + errors(source, Path(report.output))[0])


def test_an_untrained_adapter_is_refused(tmp_path: Path) -> None:
    made = {name: (down, torch.zeros_like(up)) for name, (down, up) in factors().items()}
    with pytest.raises(NumericalError, match="every ΔW is zero: this adapter was never trained"):
        converted(lora_folder(tmp_path / "lora", made=made), Target(params=0.5))


def test_what_would_change_the_source_is_refused(tmp_path: Path) -> None:
    outer, settings = lora_folder(tmp_path / "outer"), ConversionSettings(Target(params=0.5))
    source = lora_folder(outer / "inner")
    before = listing(tmp_path)
    for output, reason in (
        (source, "is the source"),
        (source / "nested", "is the source .* or inside it"),
        (outer, "holds the source"),
    ):
        with pytest.raises(OutputError, match=reason):
            convert_lora(source, output, settings, overwrite=True)
    with pytest.raises(RankError, match="none fits"):
        convert_lora(source, tmp_path / "new", ConversionSettings(Target(max_params=1)))
    assert listing(tmp_path) == before


def test_a_layer_stays_as_it_is_where_no_train_is_smaller(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", dtype=torch.bfloat16)
    for target in (Target(params=1.0), Target(tolerance=0.0)):
        report = converted(source, target)
        assert {layer.method for layer in report.layers} == {"kept"}
        assert (report.params_after, report.relative_error) == (report.params_before, 0.0)
        assert report.target_met


def test_progress_counts_every_layer_of_both_stages(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    source = lora_folder(tmp_path / "lora")
    settings = ConversionSettings(Target(params=0.5))
    convert_lora(source, tmp_path / "out", settings, progress=lambda *call: calls.append(call))
    assert calls == [(stage, done, 4) for stage in ("survey", "encode") for done in range(1, 5)]


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora")

    def interrupt(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("encode", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_lora(source, tmp_path / "out", ConversionSettings(Target(params=0.5)), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_the_card_tells_the_numbers(tmp_path: Path) -> None:
    report = converted(lora_folder(tmp_path / "lora"), Target(params=0.5))
    card = (Path(report.output) / "README.md").read_text()
    assert f"{report.params_before:,} parameters before, {report.params_after:,} after" in card
    assert f"{report.relative_error:.6f}" in card
    assert all(f"| {layer.name} |" in card for layer in report.layers)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "best"}, SpecError, "method must be one of tensorguide, joint, svd, auto, not 'best'"),
        ({"layouts": ()}, SpecError, "at least one layout"),
        ({"layouts": ("concat",)}, SpecError, "conversion needs joined layouts, not 'concat'"),
        ({"layouts": ("side f1",)}, SpecError, "side f1"),
        ({"layouts": ("io w",), "method": "svd"}, SpecError, "'svd' chooses no layouts"),
        ({"layouts": ("io w",), "method": "joint"}, SpecError, "'joint' chooses no layouts"),
        ({"activation": "tanh"}, UnsupportedError, "no exact form with activation 'tanh'"),
        ({"activation": "relu", "method": "svd"}, SpecError, "'relu' needs method 'tensorguide', not 'svd'"),
    ],
)
def test_settings_that_no_conversion_has(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ConversionSettings(Target(params=0.5), **options)


@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5), st.floats(0.05, 1.0))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_layers_of_any_size(tmp_path: Path, inside: int, outside: int, rank: int, share: float) -> None:
    draw = torch.Generator().manual_seed(inside + 100 * outside)
    down, up = (torch.randn(shape, generator=draw) for shape in ((rank, inside), (outside, rank)))
    folder = tmp_path / f"{inside}-{outside}-{rank}-{share}"
    if folder.exists():
        return
    source = lora_folder(folder, made={"h.0.fc": (down, up)})
    if int(share * rank * (inside + outside)) < inside + outside:  # no room for rank one
        return
    report = converted(source, Target(params=share), "auto")
    assert report.params_after <= share * rank * (inside + outside)
    assert same(1 + report.relative_error, 1 + errors(source, Path(report.output))[0], factor=10)


def test_sources_that_are_no_lora(tmp_path: Path) -> None:
    report = converted(lora_folder(tmp_path / "lora"), Target(params=0.5))
    with pytest.raises(CheckpointError, match="peft_type: must be 'LORA', not 'TENSORGUIDE'"):
        converted(Path(report.output), Target(params=0.5))


def test_scales_are_those_of_the_configuration() -> None:
    assert SCALES == {"h.0.fc": 2.0, "h.0.proj": 8 / 3, "h.1.fc": 2.0, "head": 4.0}
