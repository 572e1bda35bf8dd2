"""Laws: a model's kernel is that of `theory.ntk` on the model with the folder's adapters; shares add up."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.convert.sample import Model, inputs, lora_folder
from tests.report.sample import MAPS, guide_folder, layer_of
from tests.support.tolerance import close
from tntune.adapters import load_adapters
from tntune.errors import SpecError, TargetError
from tntune.report import NetworkKernel, install_folder, network_plan
from tntune.theory import logits, ntk


def test_a_guide_folder_is_as_load_adapters_loads_it(tmp_path: Path) -> None:
    folder = guide_folder(tmp_path / "guide", {"h.0.fc": layer_of(MAPS["io w"])})
    loaded = load_adapters(Model(), folder).eval()
    plan = network_plan(folder, Model(), inputs())
    found = NetworkKernel.of(plan.run(), plan, path=str(folder), output="logits")
    direct = ntk(loaded, inputs(), logits, dtype=torch.float64)
    assert close(torch.tensor(found.spectra[0].eigenvalues), torch.tensor(direct.spectrum().eigenvalues))
    assert found.params == MAPS["io w"].num_parameters


@pytest.mark.parametrize("kind", ["full", "trace", "per_class"])
def test_a_lora_folder_moves_the_model_as_peft_would(tmp_path: Path, kind: str) -> None:
    folder = lora_folder(tmp_path / "lora")
    model = Model()
    install_folder(model, folder)
    plan = network_plan(folder, Model(), inputs(), kind=kind)
    kernel = plan.run()
    found = NetworkKernel.of(kernel, plan, path=str(folder), output="logits")
    assert len(found.spectra) == (7 if kind == "per_class" else 1)
    assert [each.name for each in found.layers] == ["h.0.fc", "h.0.proj", "h.1.fc", "head"]
    assert close(torch.tensor(sum(each.share for each in found.layers)), torch.tensor(1.0))
    assert sum(each.params for each in found.layers) == found.params == 390
    direct = ntk(model.eval(), inputs(), logits, output=kind, dtype=torch.float64)
    assert close(kernel.values, direct.values)
    part = direct.layer("head.generator")
    cosine = (part * direct.values).sum() / (part.norm() * direct.values.norm())
    assert close(torch.tensor(found.layers[3].alignment), cosine)


def test_heads_saved_whole_take_their_place(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora", saved=True)
    model = Model()
    with pytest.raises(TargetError, match=r"carries score\.weight, which Model does not have"):
        install_folder(model, folder)
    model.score = nn.Linear(7, 3, bias=False)
    install_folder(model, folder)
    assert close(model.score.weight, torch.arange(21.0).reshape(3, 7))


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(SpecError, match="kind must be one of full, trace, per_class, not 'half'"):
        network_plan("lora", Model(), inputs(), kind="half")
