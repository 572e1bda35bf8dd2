"""Law: a resized LoRA is the best of its ranks, its error is the tail of the singular values as written."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.checkpoint.lora_files import ALPHAS, PLACES, deltas, lora_file, tensors
from tests.convert.sample import factors, listing, lora_deltas, lora_folder, same
from tntune.checkpoint.calibration import Calibration
from tntune.convert.norm import Norm
from tntune.convert.resize import resize_lora
from tntune.convert.resize_settings import ResizeSettings, resized_ranks
from tntune.errors import CheckpointError, NumericalError, OutputError, RankError, SpecError, TargetError

AIMS = {
    "rank": {"rank": 2},
    "half": {"params": 0.5},
    "number": {"max_params": 200},
    "tolerance": {"tolerance": 0.3},
    "energy": {"energy": 0.9},
}


def spectrum(delta: Tensor) -> Tensor:
    return torch.linalg.svdvals(delta)


def dense(folder: Path) -> dict[str, Tensor]:
    return {name: torch.from_numpy(delta) for name, delta in lora_deltas(folder).items()}


@pytest.mark.parametrize("uniform", [False, True], ids=["global", "uniform"])
@pytest.mark.parametrize("aim", AIMS.values(), ids=AIMS)
def test_errors_are_tails_of_singular_values(tmp_path: Path, aim: dict[str, float], uniform: bool) -> None:
    lora = lora_folder(tmp_path / "lora", dtype=torch.float64, saved=True)
    report = resize_lora(lora, tmp_path / "out", ResizeSettings(**aim, uniform=uniform))
    before, after = dense(lora), dense(tmp_path / "out")
    lost = whole = 0.0
    for layer in report.layers:
        values = spectrum(before[layer.name])
        gap = before[layer.name] - after.get(layer.name, 0)
        tail = values[layer.rank_after :].norm()
        assert same(layer.norm, values.norm())
        assert same(1 + layer.relative_error * layer.norm, 1 + tail)
        assert same(1 + gap.norm(), 1 + tail)
        lost, whole = lost + tail**2, whole + values.norm() ** 2
    assert same(1 + report.relative_error, 1 + math.sqrt(lost / whole))
    assert same(report.energy, 1 - lost / whole)
    assert report.target_met
    assert report.passthrough == 1
    assert report.params_after == sum(layer.params_after for layer in report.layers)


@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("style", PLACES)
def test_files_come_back_in_their_format(tmp_path: Path, style: str, alphas: dict[str, float]) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lora_file(one, tensors(style, alphas), author="me")
    report = resize_lora(one, two, ResizeSettings(params=0.6))
    before, after = deltas(one), deltas(two)
    assert report.format == ("kohya" if "kohya" in style else "diffusers")
    for layer in report.layers:
        delta = before[layer.name]
        tail = spectrum(delta.flatten(1))[layer.rank_after :].norm()
        gap = (delta - after.get(layer.name, 0)).norm()
        assert same(1 + gap / layer.norm, 1 + tail / layer.norm, factor=1e4)  # stored in float32
        assert same(1 + layer.relative_error, 1 + gap / layer.norm)
    assert report.bytes_after == two.stat().st_size


@pytest.mark.parametrize("seed", range(3))
def test_the_gauge_does_not_matter(tmp_path: Path, seed: int) -> None:
    made = factors(seed)
    draw = torch.Generator().manual_seed(seed)
    mixed = {}
    for name, (down, up) in made.items():
        gauge = torch.randn(len(down), len(down), generator=draw, dtype=torch.float64) + 3 * torch.eye(
            len(down)
        )
        mixed[name] = (gauge @ down, up @ torch.linalg.inv(gauge))
    reports = [
        resize_lora(
            lora_folder(tmp_path / f"lora{i}", dtype=torch.float64, made=own),
            tmp_path / f"out{i}",
            ResizeSettings(params=0.5),
        )
        for i, own in enumerate((made, mixed))
    ]
    ranks = [[layer.rank_after for layer in report.layers] for report in reports]
    assert ranks[0] == ranks[1]
    assert same(reports[0].relative_error, reports[1].relative_error, factor=100)


def test_a_layer_of_the_same_rank_stays_bit_for_bit(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lora_file(one, tensors("kohya unet", ALPHAS["one alpha"], dtype=torch.bfloat16))
    report = resize_lora(one, two, ResizeSettings(rank=3))
    assert [layer.rank_after for layer in report.layers] == [3, 3, 3]
    assert [layer.relative_error == 0 for layer in report.layers] == [False, False, True]
    assert report.dtypes == ("torch.bfloat16",)


def test_what_cannot_be_met_in_the_dtype_is_kept(tmp_path: Path) -> None:
    lora = lora_folder(
        tmp_path / "lora", dtype=torch.bfloat16, rank_pattern={}, made={"h.0.fc": factors()["h.0.fc"]}
    )
    report = resize_lora(lora, tmp_path / "out", ResizeSettings(tolerance=1e-3))
    assert (report.relative_error, report.target_met, report.params_after) == (0, True, report.params_before)


@pytest.mark.parametrize("aim", [{"tolerance": 0.05}, {"energy": 0.99}, {"tolerance": 0.3}])
def test_a_tolerance_is_met_as_stored(tmp_path: Path, aim: dict[str, float]) -> None:
    lora = lora_folder(tmp_path / "lora", dtype=torch.bfloat16)
    for uniform in (False, True):
        report = resize_lora(lora, tmp_path / f"{uniform}", ResizeSettings(**aim, uniform=uniform))
        assert report.target_met
        allowed = math.sqrt(ResizeSettings(**aim).lost)
        errors = [layer.relative_error for layer in report.layers] if uniform else [report.relative_error]
        assert 0 < max(errors) <= allowed


def test_a_missed_tolerance_is_said(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    report = resize_lora(lora, tmp_path / "out", ResizeSettings(tolerance=1e-4, dtype=torch.bfloat16))
    assert not report.target_met
    assert report.dtypes == ("torch.bfloat16",)


# The choice of ranks.


@st.composite
def spectra(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, int], dict[str, int]]:
    """Falling singular values, widths and sizes of a few layers."""
    count = draw(st.integers(1, 5))
    values, widths, sizes = {}, {}, {}
    for i in range(count):
        width = draw(st.integers(1, 6))
        drawn = draw(st.lists(st.floats(1e-3, 1e3), min_size=width, max_size=width))
        values[f"{i}"] = torch.tensor(sorted(drawn, reverse=True), dtype=torch.float64)
        widths[f"{i}"], sizes[f"{i}"] = width, draw(st.integers(2, 40))
    return values, widths, sizes


def left(values: dict[str, Tensor], ranks: dict[str, int]) -> float:
    return sum(float(own[ranks[name] :].square().sum()) for name, own in values.items())


@given(spectra(), st.floats(0.02, 1.0))
def test_budgets_are_kept_and_global_ranks_leave_no_more(drawn: tuple, share: float) -> None:
    values, widths, sizes = drawn
    total = sum(widths[name] * sizes[name] for name in widths)
    try:
        even = resized_ranks(ResizeSettings(params=share, uniform=True), values, widths, sizes)
    except RankError:
        return
    free = resized_ranks(ResizeSettings(params=share), values, widths, sizes)
    for ranks in (even, free):
        assert sum(ranks[name] * sizes[name] for name in ranks) <= share * total
        assert all(0 <= ranks[name] <= widths[name] for name in widths)
    assert left(values, free) <= left(values, even)


@given(spectra(), st.floats(0.01, 0.99))
def test_tolerances_are_kept_and_global_ranks_cost_no_more(drawn: tuple, tolerance: float) -> None:
    values, widths, sizes = drawn
    whole = {name: float(own.square().sum()) for name, own in values.items()}
    even = resized_ranks(ResizeSettings(tolerance=tolerance, uniform=True), values, widths, sizes)
    free = resized_ranks(ResizeSettings(tolerance=tolerance), values, widths, sizes)
    slack = 1 + 1e-12
    assert left(values, free) <= tolerance**2 * sum(whole.values()) * slack
    for name, own in values.items():
        assert left({name: own}, even) <= tolerance**2 * whole[name] * slack
        assert (
            even[name] == 0 or left({name: own}, {name: even[name] - 1}) > tolerance**2 * whole[name] / slack
        )
    assert sum(free[name] * sizes[name] for name in free) <= sum(even[name] * sizes[name] for name in even)


def test_equal_sizes_give_the_best_ranks_there_are() -> None:
    """With layers of one size, global ranks keep exactly the largest singular values of all."""
    draw = torch.Generator().manual_seed(0)
    values = {
        f"{i}": torch.rand(6, generator=draw, dtype=torch.float64).sort(descending=True)[0] for i in range(5)
    }
    widths, sizes = dict.fromkeys(values, 6), dict.fromkeys(values, 10)
    ranks = resized_ranks(ResizeSettings(max_params=110), values, widths, sizes)
    best = torch.cat(list(values.values())).sort(descending=True)[0][11:]
    assert same(left(values, ranks), best.square().sum())


# The task norm.


def calibration(names: dict[str, tuple[int, int]], seed: int = 0) -> Calibration:
    """Moments of uneven directions."""
    draw = torch.Generator().manual_seed(seed)

    def moment(size: int) -> Tensor:
        rows = torch.randn(2 * size, size, generator=draw) * torch.logspace(-1, 1, size)
        return rows.T @ rows / len(rows)

    inputs = {name: moment(shape[1]) for name, shape in names.items()}
    outputs = {name: moment(shape[0]) for name, shape in names.items()}
    return Calibration(inputs, outputs, {name: name for name in names}, {})


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix.double())
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def damped(moment: Tensor, damping: float) -> Tensor:
    moment = moment.double()
    return (moment + damping * moment.trace() / len(moment) * torch.eye(len(moment))) / (1 + damping)


def test_in_the_task_norm_errors_are_tails_of_weighted_singular_values(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora", dtype=torch.float64)
    before = dense(lora)
    found = calibration({name: tuple(delta.shape) for name, delta in before.items()})
    norm = Norm(found, damping=0.1)
    report = resize_lora(lora, tmp_path / "out", ResizeSettings(params=0.5), norm=norm)
    plain = resize_lora(lora, tmp_path / "plain", ResizeSettings(params=0.5))
    lost = whole = 0.0
    for layer in report.layers:
        inputs, outputs = (root(damped(moment, 0.1)) for moment in found.moments(layer.name))
        values = spectrum(outputs @ before[layer.name] @ inputs)
        tail = values[layer.rank_after :].norm()
        assert same(1 + layer.task_error, 1 + tail / values.norm(), factor=100)
        lost, whole = lost + tail**2, whole + values.norm() ** 2
    assert same(1 + report.task_error, 1 + math.sqrt(lost / whole), factor=100)
    assert report.relative_error > plain.relative_error
    assert report.norm == norm.name
    with pytest.raises(TargetError, match="the calibration has no such layer"):
        resize_lora(lora, tmp_path / "x", ResizeSettings(rank=1), norm=Norm(calibration({"other": (2, 2)})))


# Refusals.


def test_zero_layers_cost_nothing(tmp_path: Path) -> None:
    made = factors()
    made["head"] = (made["head"][0], 0 * made["head"][1])
    lora = lora_folder(tmp_path / "lora", dtype=torch.float64, made=made)
    report = resize_lora(lora, tmp_path / "out", ResizeSettings(rank=2))
    assert {layer.name: layer.rank_after for layer in report.layers}["head"] == 0
    untrained = lora_folder(tmp_path / "zero", made={name: (a, 0 * b) for name, (a, b) in made.items()})
    with pytest.raises(NumericalError, match="every ΔW is zero"):
        resize_lora(untrained, tmp_path / "x", ResizeSettings(rank=2))


def test_settings_that_make_no_sense() -> None:
    for wrong, message in (
        ({}, "given: none"),
        ({"rank": 2, "params": 0.5}, "given: rank, params"),
        ({"params": 0}, r"params is the share to keep, in \(0, 1\], not 0"),
        ({"energy": 1.5}, r"energy is the share to keep, in \(0, 1\], not 1.5"),
        ({"tolerance": 1.0}, r"tolerance must be in \[0, 1\), not 1.0"),
        ({"tolerance": math.nan}, "not nan"),
        ({"rank": 0}, "rank must be at least 1, not 0"),
        ({"max_params": -1}, "max_params must be at least 1, not -1"),
    ):
        with pytest.raises(SpecError, match=message):
            ResizeSettings(**wrong)


def test_refusals_change_nothing(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    one = lora_file(tmp_path / "one.safetensors", tensors("kohya unet", {}))
    bad = lora_file(tmp_path / "bad.safetensors", {"lora_unet_x.lokr_w1": torch.ones(2)})
    before = listing(tmp_path)
    rank = ResizeSettings(rank=1)
    for source, output, settings, error, message in (
        (one, "out", rank, OutputError, r"a single LoRA file is named \*\.safetensors"),
        (one, "one.safetensors", rank, OutputError, "is the source"),
        (one, "bad.safetensors", rank, OutputError, "exists already"),
        (lora, "lora/in", rank, OutputError, "is the source .* or inside it"),
        (bad, "out.safetensors", rank, CheckpointError, "a LoKr factor"),
        (tmp_path / "none", "out", rank, CheckpointError, "not a whole safetensors file"),
        (
            lora,
            "out",
            ResizeSettings(max_params=5),
            RankError,
            "a budget of 5 of 390 parameters is too small",
        ),
    ):
        with pytest.raises(error, match=message):
            resize_lora(source, tmp_path / output, settings)
    assert listing(tmp_path) == before
