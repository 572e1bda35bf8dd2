"""Law: every number of a report is what its files say, read with safetensors, json and numpy alone."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.convert.sample import PREFIX, lora_deltas, same
from tests.convert.shared import Network, batches, shared_folder
from tests.support.tolerance import close
from tntune.checkpoint import Calibration, save_calibration
from tntune.convert import (
    ConversionReport,
    ConversionSettings,
    Distillation,
    Target,
    Task,
    Teacher,
    calibrate,
    convert_lora,
    export_lora,
    model_divergence,
    model_score,
)

Deltas = dict[str, np.ndarray]
TENSORS = "adapter_model.safetensors"


def stored_deltas(folder: Path) -> Deltas:
    """ΔW of each module of a converted folder, its maps for groups or for single modules."""
    config = json.loads((folder / "adapter_config.json").read_text())
    numbers = {name: value.double().numpy() for name, value in load_file(folder / TENSORS).items()}
    found: Deltas = {}
    for name, group in config.get("groups", {}).items():
        own = _below(numbers, f"base_model.tensorguide_shared.{name}.")
        for index, (module, scale) in enumerate(zip(group["modules"], group["scales"], strict=True)):
            found[module] = scale * _delta(group["map"], own, index)
    for name, site in config.get("sites", {}).items():
        own = _below(numbers, f"{PREFIX}{name}.tensorguide_gen.")
        found[name] = site["scale"] * _delta(site["map"], own, 0)
    return found


def _below(numbers: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}


def _rows(map: dict[str, Any], own: Mapping[str, np.ndarray], index: int, side: int) -> np.ndarray:
    """Rows of down, or of the transpose of up, among those that a stream has for all sites and sides."""
    stream = (map["inputs"], map["outputs"])[side][index]
    places = [
        (site, end)
        for site, ends in enumerate(zip(map["inputs"], map["outputs"], strict=True))
        for end in (0, 1)
        if ends[end] == stream
        for _ in range(map["widths"][site])
    ]
    columns = [column for column, place in enumerate(places) if place == (index, side)]
    return own[f"coefficients_{stream}"][:, columns].T @ own[f"basis_{stream}"].T


def _delta(map: dict[str, Any], own: Mapping[str, np.ndarray], index: int) -> np.ndarray:
    """up @ down of one layer of a LoRA, or of a train of modes ``io (layer side w)``."""
    if map["kind"] == "lora":
        return own["lora_up"] @ own["lora_down"]
    if map["kind"] == "streams":
        return _rows(map, own, index, 1).T @ _rows(map, own, index, 0)
    assert map["layout"]["pattern"] == "io (layer side w)"
    whole = own["tt_core_0"][0] @ own["tt_core_1"][:, :, 0]
    whole = whole.reshape(map["layout"]["sizes"])  # (io, layer, side, w)
    inside = map["in_features"]
    return whole[inside:, index, 1] @ whole[:inside, index, 0].T


def relative(exact: Deltas, found: Deltas, calibration: Path | None) -> float:
    """``sqrt(Σ tr(G E C Eᵀ) / Σ tr(G ΔW C ΔWᵀ))`` over all layers, damped by a tenth."""
    moments = {} if calibration is None else load_file(calibration)
    lost = whole = 0.0
    for name, delta in exact.items():
        inputs, outputs = np.eye(delta.shape[1]), np.eye(delta.shape[0])
        if calibration is not None:
            inputs = _damped(moments[f"inputs.{_reader(calibration, name)}"])
            outputs = _damped(moments[f"outputs.{name}"])
        gap = delta - found.get(name, 0.0)
        lost += np.trace(outputs @ gap @ inputs @ gap.T)
        whole += np.trace(outputs @ delta @ inputs @ delta.T)
    return float(np.sqrt(lost / whole))


def _damped(moment: torch.Tensor) -> np.ndarray:
    own = moment.double().numpy()
    return (own + 0.1 * np.trace(own) / len(own) * np.eye(len(own))) / 1.1


def _reader(calibration: Path, name: str) -> str:
    """The layer whose inputs a layer reads, from the head of the file."""
    content = calibration.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["tntune"])["input_of"][name]


def logits(deltas: Deltas) -> np.ndarray:
    """What the network says on the held-out batches with ΔW added to its weights."""
    model = deepcopy(Network()).double()
    for name, delta in deltas.items():
        model.get_submodule(name).weight.data += torch.from_numpy(delta)
    with torch.no_grad():
        return torch.cat([model(x.double()) for x in batches(seed=7)]).numpy()


def divergence(exact: Deltas, found: Deltas) -> float:
    """Mean KL of the softmax of rows."""
    right, own = (
        each - np.log(np.exp(each).sum(1, keepdims=True)) for each in (logits(exact), logits(found))
    )
    return float((np.exp(right) * (right - own)).sum(1).mean())


def converted(tmp_path: Path, method: str, distill: bool, dtype: torch.dtype) -> ConversionReport:
    source = shared_folder(tmp_path / "lora")
    calibration = calibrate(Network(), batches(), source)
    save_calibration(tmp_path / "c.safetensors", calibration)
    return convert_lora(
        source,
        tmp_path / "out",
        ConversionSettings(Target(params=0.35), method, dtype=dtype),
        task=task(source, calibration, distill),
    )


def task(source: Path, calibration: Calibration, distill: bool) -> Task:
    model = Network()
    taught = Distillation(Teacher(model, batches(seed=5), source), 30) if distill else None
    score = model_score(model, lambda own: float(own(batches(seed=7)[0]).double().mean()), source)
    return Task(calibration, model_divergence(model, batches(seed=7), source), taught, score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("method", ["svd", "joint"])
def test_the_report_is_what_the_files_say(
    tmp_path: Path, method: str, distill: bool, dtype: torch.dtype
) -> None:
    report = converted(tmp_path, method, distill, dtype)
    export_lora(tmp_path / "out", tmp_path / "exported", dtype=torch.float64)
    exact = lora_deltas(tmp_path / "lora")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert ("groups" in config) == (method == "joint")
    assert (report.distillation is not None) == distill == report.chosen.endswith(", distilled")
    for found in (stored_deltas(tmp_path / "out"), lora_deltas(tmp_path / "exported")):
        assert same(report.relative_error, relative(exact, found, None), factor=100)
        assert same(report.task_error, relative(exact, found, tmp_path / "c.safetensors"), factor=1e4)
        assert near(report.divergence, divergence(exact, found))
        assert near(report.score_after, logits(found)[:32].mean())
        for layer in report.layers:
            gap = exact[layer.name] - found.get(layer.name, 0.0)
            assert same(
                layer.relative_error, np.linalg.norm(gap) / np.linalg.norm(exact[layer.name]), factor=100
            )
    assert near(report.score_before, logits(exact)[:32].mean())
    numbers = load_file(tmp_path / "out" / TENSORS)
    assert report.params_after == sum(value.numel() for value in numbers.values())
    assert {value.dtype for value in numbers.values()} == {dtype}
    assert report.bytes_after == (tmp_path / "out" / TENSORS).stat().st_size
    assert report.bytes_before == (tmp_path / "lora" / TENSORS).stat().st_size
    chosen = next(each for each in report.candidates if each.name == report.chosen)
    assert chosen.bytes == sum(value.nbytes for value in numbers.values())
    assert (chosen.params, chosen.score) == (report.params_after, report.score_after)


def near(a: float | None, b: float) -> bool:
    """Whether numbers agree to what a network in float32 can say."""
    assert a is not None
    return close(torch.tensor(a).float(), torch.tensor(b).float(), factor=10)
