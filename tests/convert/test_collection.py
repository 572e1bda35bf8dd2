"""Laws of libraries: errors are what the files hold, sharing pays where members share, order is nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.convert.library import RANK, error_of, factors, library_deltas, member
from tests.convert.sample import lora_deltas, same
from tests.convert.shared import Network, batches, shared_factors, shared_folder
from tests.support.tolerance import close
from tntune.checkpoint import open_library, open_lora, open_tensorguide
from tntune.convert import (
    CollectionReport,
    CollectionSettings,
    Target,
    calibrate,
    compare_adapters,
    convert_collection,
    enlarge_library,
    export_lora,
    export_member,
)
from tntune.convert.candidate import Layers
from tntune.convert.norm import Norm
from tntune.convert.search import JointSearch
from tntune.errors import ModeError, NumericalError, RankError, SpecError, TargetError

WEIGHTS = "adapter_model.safetensors"


def collected(
    sources: dict[str, Path], output: Path, share: float = 0.5, dtype: torch.dtype | None = None
) -> CollectionReport:
    return convert_collection(sources, output, CollectionSettings(Target(params=share), dtype))


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """Four members of one span, each with a little of its own."""
    return {name: member(tmp_path / name, seed, own=0.05) for seed, name in enumerate("abcd")}


def test_the_report_is_what_the_files_hold(tmp_path: Path, sources: dict[str, Path]) -> None:
    report = collected(sources, tmp_path / "library", 0.4)
    found = library_deltas(tmp_path / "library")
    for own in report.members:
        assert same(own.relative_error, error_of(sources[own.name], found[own.name]), factor=1e3)
        compared = compare_adapters(sources[own.name], tmp_path / "library", member=own.name)
        assert same(compared.relative_error, own.relative_error, factor=1e3)
    assert same(report.error**2, np.mean([own.relative_error**2 for own in report.members]))
    numbers = load_file(tmp_path / "library" / WEIGHTS).values()
    assert report.params_after == sum(value.numel() for value in numbers) <= 0.4 * report.params_before
    assert report.params_after == report.shared_params + sum(own.params_after for own in report.members)
    library = open_library(tmp_path / "library")
    assert library.params == report.params_after
    assert library.own_params == {own.name: own.params_after for own in report.members}
    assert report.bytes_after == (tmp_path / "library" / WEIGHTS).stat().st_size < report.bytes_before
    assert report.target_met


def test_members_of_one_span_are_exact_and_better_together(tmp_path: Path, sources: dict[str, Path]) -> None:
    exact = {name: member(tmp_path / f"{name}0", seed) for seed, name in enumerate("abcd")}
    report = collected(exact, tmp_path / "exact", 0.6, torch.float64)
    assert all(same(1 + own.relative_error, 1.0, factor=1e4) for own in report.members)
    rough = collected(sources, tmp_path / "rough", 0.3)
    assert rough.apart_error is not None
    assert rough.svd_error is not None
    assert rough.error < 0.5 * rough.apart_error
    assert rough.error < 0.5 * rough.svd_error


def test_members_that_share_nothing_gain_nothing(tmp_path: Path) -> None:
    sources = {name: member(tmp_path / name, i, span=i, own=1.0) for i, name in enumerate("abc")}
    report = collected(sources, tmp_path / "library", 0.3)
    assert report.apart_error is not None
    assert report.error > 0.9 * report.apart_error


def test_a_library_of_one_is_the_plan_of_its_layers(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")
    report = collected({"one": source}, tmp_path / "library", 0.35)
    layers = Layers.load(open_lora(source))
    search = JointSearch(layers, Norm())
    joint = search.candidate(search.plan(int(0.35 * open_lora(source).params)), Norm())
    assert report.params_after == joint.params
    assert report.apart_error is None
    found = library_deltas(tmp_path / "library")["one"]
    assert found.keys() == joint.factors().keys()
    for name, (down, up) in joint.factors().items():
        assert close(torch.from_numpy(found[name]).float(), (up @ down).float(), factor=10)


def test_the_order_of_the_members_is_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    collected(sources, tmp_path / "first")
    collected(dict(reversed(sources.items())), tmp_path / "second")
    for name in ("adapter_config.json", WEIGHTS):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    renamed = dict(zip("dcba", sources.values(), strict=True))
    report = collected(renamed, tmp_path / "third")
    errors = {own.name: own.relative_error for own in report.members}
    first = {
        name: each.notes["relative_error"] for name, each in open_library(tmp_path / "first").members.items()
    }
    for old, new in zip("abcd", "dcba", strict=True):
        assert same(1 + first[old], 1 + errors[new], factor=1e5)


def test_members_differ_in_rank_scale_and_layers(tmp_path: Path) -> None:
    sources = {
        "narrow": member(tmp_path / "narrow", 0, r=2, own=0.1),
        "loud": member(tmp_path / "loud", 1, lora_alpha=800, own=0.1),
        "lacking": member(tmp_path / "lacking", 2, without="h.1.q", own=0.1),
    }
    report = collected(sources, tmp_path / "library")
    found = library_deltas(tmp_path / "library")
    assert "h.1.q" not in found["lacking"]
    for own in report.members:
        assert same(own.relative_error, error_of(sources[own.name], found[own.name]), factor=1e3)
    errors = [own.relative_error for own in report.members]
    assert max(errors) < 5 * min(errors)  # a member of a hundred times the size does not crowd the others out


def test_rank_stabilised_members_keep_their_scale(tmp_path: Path) -> None:
    plain, stable = member(tmp_path / "a", 0, lora_alpha=6), member(tmp_path / "b", 0, use_rslora=True)
    collected({"a": plain, "b": stable}, tmp_path / "library", 0.9)
    found = library_deltas(tmp_path / "library")
    gain = (8 / 3**0.5) / (6 / 3)
    for name, delta in found["a"].items():
        assert close(torch.from_numpy(gain * delta).float(), torch.from_numpy(found["b"][name]).float())


def test_a_zero_layer_is_left_out(tmp_path: Path) -> None:
    made = shared_factors()
    made["h.2.q"] = (made["h.2.q"][0], 0 * made["h.2.q"][1])
    sources = {"one": shared_folder(tmp_path / "one", made=made), "two": shared_folder(tmp_path / "two")}
    report = collected(sources, tmp_path / "library")
    assert "h.2.q" not in library_deltas(tmp_path / "library")["one"]
    assert [own.layers for own in report.members] == [10, 11]


def test_each_member_is_fitted_in_its_own_task_norm(tmp_path: Path) -> None:
    sources = {name: shared_folder(tmp_path / name, made=shared_factors(i)) for i, name in enumerate("ab")}
    calibrations = {name: calibrate(Network(), batches(seed=i), sources[name]) for i, name in enumerate("ab")}
    settings = CollectionSettings(Target(params=0.3))
    report = convert_collection(sources, tmp_path / "library", settings, calibrations=calibrations)
    plain = convert_collection(sources, tmp_path / "plain", settings)
    found = library_deltas(tmp_path / "library")
    for own in report.members:
        exact, lost, whole = lora_deltas(sources[own.name]), 0.0, 0.0
        for module, delta in exact.items():
            moments = [each.double().numpy() for each in calibrations[own.name].moments(module)]
            sides = [(m + 0.1 * np.trace(m) / len(m) * np.eye(len(m))) / 1.1 for m in moments]
            gap = delta - found[own.name].get(module, 0.0)
            lost += np.trace(sides[1] @ gap @ sides[0] @ gap.T)
            whole += np.trace(sides[1] @ delta @ sides[0] @ delta.T)
        assert own.task_error is not None
        assert same(own.task_error, np.sqrt(lost / whole), factor=1e4)
    assert report.error < plain.error
    assert report.svd_error is not None


def test_a_member_is_exported_alone(tmp_path: Path, sources: dict[str, Path]) -> None:
    collected(sources, tmp_path / "library")
    library = tmp_path / "library"
    found = library_deltas(library)["b"]
    exported = export_lora(library, tmp_path / "lora", member="b")
    assert exported.layers == len(found)
    for name, delta in lora_deltas(tmp_path / "lora").items():
        assert close(torch.from_numpy(delta).float(), torch.from_numpy(found[name]).float())
    guide = export_member(library, tmp_path / "guide", member="b")
    assert guide.params_after == open_tensorguide(tmp_path / "guide").params < guide.params_before
    assert same(1 + compare_adapters(tmp_path / "guide", library, member="b").relative_error, 1.0)
    with pytest.raises(TargetError, match="has no member 'x', only a, b, c, d"):
        export_lora(library, tmp_path / "other", member="x")
    with pytest.raises(TargetError, match=r"is a library; name one of its members: a, b, c, d"):
        compare_adapters(sources["a"], library)
    with pytest.raises(TargetError, match="is a single adapter and has no member 'a'"):
        compare_adapters(sources["b"], sources["a"], member="a")


def test_a_new_member_costs_its_coefficients(tmp_path: Path, sources: dict[str, Path]) -> None:
    report = collected(sources, tmp_path / "library", 0.4)
    new = {"e": member(tmp_path / "e", 9, own=0.05), "again": sources["a"]}
    reports = enlarge_library(tmp_path / "library", new, tmp_path / "more")
    before, after = library_deltas(tmp_path / "library"), library_deltas(tmp_path / "more")
    for name in sources:
        assert all(np.array_equal(after[name][module], delta) for module, delta in before[name].items())
    first, again = report.members[0], next(own for own in reports if own.name == "again")
    assert again.relative_error <= first.relative_error * (1 + 1e-6)
    for own in reports:
        assert own.params_after == first.params_after
        assert same(own.relative_error, error_of(new[own.name], after[own.name]), factor=1e3)
        assert own.svd_relative_error is not None
        assert own.relative_error < own.svd_relative_error
    assert list(open_library(tmp_path / "more").members) == [*"abcd", "again", "e"]
    card = (tmp_path / "more" / "README.md").read_text()
    assert "A library of 6 adapters" in card
    assert f"| e | {reports[1].params_before} | {reports[1].params_after} | {reports[1].error:.4f} |" in card
    with pytest.raises(SpecError, match="has a member 'a' already"):
        enlarge_library(tmp_path / "library", {"a": sources["a"]}, tmp_path / "none")


def test_a_new_member_of_the_span_is_exact_and_other_shapes_are_kept_whole(tmp_path: Path) -> None:
    square = {name: pair for name, pair in factors(0, span=0, own=0.0, rank=RANK).items() if ".q" in name}
    old = {"a": shared_folder(tmp_path / "a", made=square)}
    collected(old, tmp_path / "library", 0.6, torch.float64)
    (own,) = enlarge_library(tmp_path / "library", {"c": member(tmp_path / "c", 5)}, tmp_path / "more")
    assert same(1 + own.relative_error, 1.0, factor=1e5)
    served = [group.modules for group in open_library(tmp_path / "more").groups.values()]
    assert ("c/h.0.up",) in served
    assert any({"a/h.0.q", "c/h.0.q"} <= set(modules) for modules in served)


def test_what_is_no_collection_is_refused(tmp_path: Path, sources: dict[str, Path]) -> None:
    out, half = tmp_path / "out", CollectionSettings(Target(params=0.5))
    with pytest.raises(SpecError, match="a library needs at least one member"):
        convert_collection({}, out, half)
    with pytest.raises(SpecError, match="a library needs a budget"):
        CollectionSettings(Target(tolerance=0.1))
    with pytest.raises(SpecError, match="'a/b': the name of a member has no '/'"):
        convert_collection({"a/b": sources["a"]}, out, half)
    with pytest.raises(RankError, match="a budget of 5 parameters fits no layer; the least possible is 23"):
        convert_collection(sources, out, CollectionSettings(Target(max_params=5)))
    other = member(tmp_path / "other", 0, base_model_name_or_path="opt")
    named = member(tmp_path / "named", 0, base_model_name_or_path="gpt2")
    with pytest.raises(SpecError, match="members adapt different models: named 'gpt2', other 'opt'"):
        convert_collection({"other": other, "named": named}, out, half)
    allowed = CollectionSettings(Target(params=0.5), mixed_bases=True)
    assert convert_collection({"other": other, "named": named}, out, allowed).base_model == "gpt2"
    with pytest.raises(SpecError, match="the library 'gpt2', x 'opt'"):
        enlarge_library(out, {"x": other}, tmp_path / "more")
    wide = {"h.0.q": (torch.ones(3, 15), torch.ones(14, 3))}
    sources["wide"] = shared_folder(tmp_path / "wide", made=wide)
    with pytest.raises(ModeError, match=r"wide/h\.0\.q: is \(14, 15\), but a/h\.0\.q is \(14, 14\)"):
        convert_collection(sources, tmp_path / "none", half)
    zero = {"h.0.q": (torch.ones(3, 14), torch.zeros(14, 3))}
    sources["wide"] = shared_folder(tmp_path / "zero", made=zero)
    with pytest.raises(NumericalError, match="zero: every ΔW is zero: this adapter was never trained"):
        convert_collection(sources, tmp_path / "none", half)
    assert not (tmp_path / "none").exists()


def test_a_new_member_has_the_sizes_of_the_old_ones(tmp_path: Path, sources: dict[str, Path]) -> None:
    convert_collection(sources, tmp_path / "library", CollectionSettings(Target(params=0.5)))
    wide = shared_folder(tmp_path / "wide", made={"h.0.q": (torch.ones(3, 15), torch.ones(14, 3))})
    with pytest.raises(ModeError, match=r"wide/h\.0\.q: is \(14, 15\), but ./h\.0\.q is \(14, 14\)"):
        enlarge_library(tmp_path / "library", {"wide": wide}, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_calibrations_are_of_all_members_or_of_none(tmp_path: Path) -> None:
    sources = {name: shared_folder(tmp_path / name) for name in "ab"}
    calibration = calibrate(Network(), batches(), sources["a"])
    half = CollectionSettings(Target(params=0.5))
    with pytest.raises(SpecError, match="calibrations are of a; members are a, b: each needs one, or none"):
        convert_collection(sources, tmp_path / "out", half, calibrations={"a": calibration})


def test_what_members_carry_comes_along(tmp_path: Path) -> None:
    sources = {
        "a": member(tmp_path / "a", 0, saved=True, modules_to_save=["score"]),
        "b": member(tmp_path / "b", 1),
    }
    collected(sources, tmp_path / "library")
    enlarge_library(tmp_path / "library", {"c": member(tmp_path / "c", 2)}, tmp_path / "more")
    export_lora(tmp_path / "more", tmp_path / "lora", member="a")
    key = "base_model.model.score.weight"
    assert torch.equal(load_file(tmp_path / "lora" / WEIGHTS)[key], load_file(sources["a"] / WEIGHTS)[key])
    assert open_library(tmp_path / "more").member("b").passthrough == ()
