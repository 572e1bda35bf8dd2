"""The tensor family inside PEFT: started, trained, stored, merged, exported, and started from a LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from tests.peft.models import MARKS, TOKENS, adapted, cores, gpt2, logits
from tests.support.tolerance import TOLERANCE, close
from tntune.adapters import adapted_layers, load_adapters
from tntune.checkpoint import open_tensorguide
from tntune.convert import compare_adapters
from tntune.errors import SpecError
from tntune.maps.build_joint import HEAD_METHODS, STACK_METHODS
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig
from tntune.peft.plan import plan_groups

pytestmark = MARKS

LAYERS = ("loretta", "delta_train")
SOME = ("lotr", "fact_tucker", "lorta", "metatt_5d", "tenslora_att_qkv_depth", "tenslora_qkv_cp", *LAYERS)
TARGETS = ["c_attn", "attn.c_proj", "c_fc"]
GRID = {f"h.{i}.{role}": (12, 12) for i in range(3) for role in ("q", "o")}


def config(method: str, **fields: Any) -> TensorGuideConfig:
    chosen = {"r": 4, "alpha": 8, "method": method, "target_modules": TARGETS, **fields}
    if method in LAYERS:
        return TensorGuideConfig(ranks=3, **chosen)
    if method in HEAD_METHODS:
        chosen.setdefault("input_heads", ["attn.c_proj"])
    return SharedTensorGuideConfig(**chosen)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for core in cores(model).values():
            core.normal_(generator=generator).mul_(0.5)
    return model


@pytest.mark.parametrize("method", [*STACK_METHODS, *LAYERS])
def test_the_start_changes_nothing_and_trains(method: str) -> None:
    model = adapted(gpt2(), config(method))
    assert torch.equal(logits(model), logits(gpt2()))
    optimizer = torch.optim.Adam(cores(model).values(), lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(core.grad.any() for core in cores(model).values())


@pytest.mark.parametrize("method", SOME)
def test_what_is_stored_is_shared_once_and_loads_everywhere(method: str, tmp_path: Path) -> None:
    model = randomised(adapted(gpt2(), config(method)))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(gpt2(), tmp_path).eval()
    assert torch.equal(logits(again), logits(model))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == sum(c.numel() for c in cores(model).values())
    assert open_tensorguide(tmp_path).params == sum(core.numel() for core in cores(model).values())
    plain = load_adapters(gpt2(), tmp_path).eval()
    assert close(logits(plain), logits(model))
    assert len(list(adapted_layers(plain))) == 6


@pytest.mark.parametrize("method", SOME)
def test_merging_and_the_lora_of_the_same_delta(method: str, tmp_path: Path) -> None:
    model = randomised(adapted(gpt2(), config(method)))
    wanted = logits(model)
    model.save_pretrained(tmp_path / "family")
    model.base_model.save_as_lora(tmp_path / "lora")
    assert compare_adapters(tmp_path / "family", tmp_path / "lora").relative_error < TOLERANCE[torch.float32]
    stock = PeftModel.from_pretrained(gpt2(), tmp_path / "lora").eval()
    assert close(logits(stock), wanted)
    assert close(logits(model.merge_and_unload()), wanted)


@pytest.mark.parametrize("method", ["lotr", "fact_tt", "metatt_4d", "tenslora_att"])
def test_a_lora_is_a_start(method: str, tmp_path: Path) -> None:
    """What the map itself wrote as a LoRA is found again, at the same rank."""
    model = randomised(adapted(gpt2(), config(method)))
    model.base_model.save_as_lora(tmp_path / "lora")
    again = adapted(gpt2(), config(method, init_weights=f"lora:{tmp_path / 'lora'}"))
    assert close(logits(again), logits(model))


# Plans.


def test_heads_come_from_the_models_configuration() -> None:
    model = adapted(gpt2(), config("lorta"))
    assert model.peft_config["default"].head_dim == 6
    groups = plan_groups(model.peft_config["default"], {f"h.{i}.attn.c_proj": (12, 12) for i in range(2)})
    assert (groups["12x12"].map.heads, groups["12x12"].map.input_heads) == (2, (0,))


def test_budgets_are_shares_of_a_lora() -> None:
    for method in STACK_METHODS:
        heads = {"head_dim": 4} if method in HEAD_METHODS else {}
        chosen = SharedTensorGuideConfig(r=4, params=0.75, method=method, **heads)
        (group,) = plan_groups(chosen, GRID).values()
        assert 0 < group.map.num_parameters <= 0.75 * 6 * 4 * 24
        assert group.scales == (1.0,) * 6


def test_ragged_roles_are_numbered_groups() -> None:
    targets = {name: sizes for name, sizes in GRID.items() if name != "h.1.o"}
    groups = plan_groups(SharedTensorGuideConfig(r=2, method="lotr"), targets)
    assert {name: group.modules for name, group in groups.items()} == {
        "12x12": ("h.0.q", "h.1.q", "h.2.q"),
        "12x12-2": ("h.0.o", "h.2.o"),
    }


def test_input_heads_that_name_nothing_are_refused() -> None:
    chosen = SharedTensorGuideConfig(r=2, method="lorta", head_dim=4, input_heads=["out"])
    with pytest.raises(SpecError, match="input_heads: 'out' matches none of the 6 targets"):
        plan_groups(chosen, GRID)
