"""Laws: an exported LoRA has the same ΔW, and stock PEFT runs it where tntune cannot be imported."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.convert.models import toy
from tests.convert.sample import (
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
from tests.support.tolerance import TOLERANCE, close
from tntune.adapters import load_adapters, save_adapters
from tntune.convert import (
    ConversionReport,
    ConversionSettings,
    Target,
    compare_adapters,
    convert_lora,
    export_lora,
)
from tntune.errors import ModeError, OutputError, TargetError, UnsupportedError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALF = Target(params=0.5)


def converted(source: Path, target: Target = HALF, **options: Any) -> ConversionReport:
    return convert_lora(source, source.with_name("converted"), ConversionSettings(target, **options))


@pytest.mark.parametrize("method", ["tensorguide", "svd", "auto"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_export_keeps_delta(tmp_path: Path, dtype: torch.dtype, method: str) -> None:
    source = lora_folder(tmp_path / "lora", dtype=dtype)
    guide = Path(converted(source, method=method).output)
    report = export_lora(guide, tmp_path / "out")
    exact, found = guided_deltas(guide), lora_deltas(tmp_path / "out")
    assert exact.keys() == found.keys()
    for name, delta in exact.items():
        assert close(torch.from_numpy(found[name]).to(dtype), torch.from_numpy(delta).to(dtype))
    gap = sum(np.linalg.norm(found[name] - delta) ** 2 for name, delta in exact.items())
    whole = sum(np.linalg.norm(delta) ** 2 for delta in exact.values())
    assert same(1 + report.relative_error, 1 + (gap / whole) ** 0.5)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert report.params_after == sum(tensor.numel() for tensor in tensors.values())
    assert report.layers == len(exact)


def test_layers_keep_ranks_of_their_own(tmp_path: Path) -> None:
    report = converted(lora_folder(tmp_path / "lora"), method="svd")
    exported = export_lora(report.output, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    widths = {layer.width for layer in report.layers}
    assert len(widths) > 1
    assert exported.rank == config["r"] == max(widths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_factors_can_be_chosen(tmp_path: Path, dtype: torch.dtype) -> None:
    guide = converted(lora_folder(tmp_path / "lora")).output
    report = export_lora(guide, tmp_path / "out", dtype=dtype)
    assert report.dtypes == (str(dtype),)
    assert report.relative_error < TOLERANCE[dtype]


def test_modules_saved_whole_are_carried_bit_for_bit(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", saved=True)
    export_lora(converted(source).output, tmp_path / "out")
    key = "base_model.model.score.weight"
    tensors = [load_file(folder / "adapter_model.safetensors") for folder in (source, tmp_path / "out")]
    assert torch.equal(tensors[0][key], tensors[1][key])


def test_a_nonlinear_adapter_is_refused(tmp_path: Path) -> None:
    guide = converted(lora_folder(tmp_path / "lora"), activation="relu").output
    with pytest.raises(UnsupportedError, match=r"h\.0\.proj: has the activation 'relu', so no LoRA"):
        export_lora(guide, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_is_not_exported_onto_itself(tmp_path: Path) -> None:
    guide = Path(converted(lora_folder(tmp_path / "lora")).output)
    with pytest.raises(OutputError, match="is the source"):
        export_lora(guide, guide, overwrite=True)


def test_a_zero_reference_is_infinitely_far_from_anything(tmp_path: Path) -> None:
    made = {name: (down, torch.zeros_like(up)) for name, (down, up) in factors().items()}
    zero, source = lora_folder(tmp_path / "zero", made=made), lora_folder(tmp_path / "lora")
    assert compare_adapters(zero, source).relative_error == float("inf")
    assert compare_adapters(zero, zero).relative_error == 0
    assert compare_adapters(source, zero).relative_error == pytest.approx(1.0)


def test_carried_tensors_are_compared_by_name(tmp_path: Path) -> None:
    source, bare = lora_folder(tmp_path / "lora", saved=True), lora_folder(tmp_path / "bare")
    assert compare_adapters(source, source).passthrough_differs == ()
    assert compare_adapters(source, bare).passthrough_differs == ("base_model.model.score.weight",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", [HALF, Target(max_params=40)], ids=["half", "dropped layers"])
def test_comparison_agrees_with_the_report(tmp_path: Path, dtype: torch.dtype, target: Target) -> None:
    source = lora_folder(tmp_path / "lora", dtype=dtype)
    report = converted(source, target, method="auto")
    found = compare_adapters(source, report.output)
    assert same(1 + found.relative_error, 1 + report.relative_error)
    assert same(1 + found.relative_error, 1 + errors(source, Path(report.output))[0])
    by_name = {layer.name: layer.relative_error for layer in found.layers}
    assert all(same(1 + by_name[layer.name], 1 + layer.relative_error) for layer in report.layers)
    export_lora(report.output, tmp_path / "out")
    assert compare_adapters(report.output, tmp_path / "out").relative_error < TOLERANCE[dtype]
    assert compare_adapters(source, source).relative_error < TOLERANCE[torch.float64]


def test_comparison_of_functions_where_one_is_nonlinear(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora", dtype=torch.float64)
    lifted = converted(source, Target(max_rank=4), activation="gelu", layouts=("io w",))
    found = compare_adapters(source, lifted.output)
    assert {layer.measure for layer in found.layers} == {"probe"}
    assert same(1 + found.relative_error, 1)
    for layer in found.layers:
        assert 0.8 < layer.norm / np.linalg.norm(lora_deltas(source)[layer.name]) < 1.25


def test_adapters_that_do_not_compare(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 12, generator=draw), torch.randn(20, 4, generator=draw)
    first = lora_folder(tmp_path / "first", made={"h.0.fc": (down, up)})
    other = lora_folder(tmp_path / "other", made={"h.1.fc": (down, up)})
    wider = lora_folder(tmp_path / "wider", made={"h.0.fc": (down, torch.cat([up, up]))})
    with pytest.raises(TargetError, match="have no adapted layer in common"):
        compare_adapters(first, other)
    with pytest.raises(ModeError, match=r"h\.0\.fc: is \(20, 12\) in the first adapter and \(40, 12\)"):
        compare_adapters(first, wider)


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tntune":
            raise ModuleNotFoundError("tntune is blocked")

sys.meta_path.insert(0, Block())
sys.path.insert(0, {model!r})
try:
    import tntune
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tntune could be imported")
import torch
from safetensors.torch import load_file, save_file
from peft import PeftModel
from stock_model import Model, inputs
model = PeftModel.from_pretrained(Model(), {lora!r})
with torch.no_grad():
    save_file({{"logits": model(inputs())}}, {logits!r})
"""


@pytest.mark.peft
def test_stock_peft_gives_the_logits_of_our_model(tmp_path: Path) -> None:
    if find_spec("peft") is None:
        pytest.skip("needs the peft extra")
    guide = converted(lora_folder(tmp_path / "lora"), method="auto").output
    export_lora(guide, tmp_path / "out")
    sources = [Path(sys.modules[Model.__module__].__file__ or "").read_text()]
    plain = sources[0].replace("from tests.support.tolerance import close\n", "")
    (tmp_path / "stock_model.py").write_text(plain)
    places = {name: str(tmp_path / name) for name in ("out", "logits.safetensors")}
    code = BLOCKED.format(model=str(tmp_path), lora=places["out"], logits=places["logits.safetensors"])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = load_file(places["logits.safetensors"])["logits"]
    with torch.no_grad():
        ours = load_adapters(Model(), guide)(inputs())
        assert not torch.allclose(ours, Model()(inputs()))
    assert close(found, ours, factor=0.1)


def test_trained_adapters_export_to_their_function(tmp_path: Path) -> None:
    model = toy(0, alpha=2.0)
    save_adapters(model, tmp_path / "trained")
    export_lora(tmp_path / "trained", tmp_path / "out")
    deltas = lora_deltas(tmp_path / "out")
    for name, delta in deltas.items():
        assert close(torch.from_numpy(delta).float(), model.get_submodule(name).delta_weight())


def test_a_damaged_source_leaves_nothing(tmp_path: Path) -> None:
    guide = Path(converted(lora_folder(tmp_path / "lora")).output)
    tensors = load_file(guide / "adapter_model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, guide / "adapter_model.safetensors")
    before = listing(tmp_path)
    with pytest.raises(ArithmeticError, match="NaN or infinite"):
        export_lora(guide, tmp_path / "out")
    assert listing(tmp_path) == before
