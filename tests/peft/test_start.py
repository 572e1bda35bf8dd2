"""``init_weights="lora:<folder>"``: training starts from a trained LoRA, exactly where the ranks suffice."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model

from tests.peft.models import MARKS, VARIANTS, adapted, cores, inputs, tower
from tests.support.tolerance import close
from tntune.errors import CheckpointError, SpecError
from tntune.peft import TensorGuideConfig

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore:fan_in_fan_out is set")]

TARGETS = ["up", "down", "fc"]


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A trained-looking LoRA of rank 3 on every linear layer but the head, of which one has rank 2."""
    config = LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, rank_pattern={"fc": 2})
    model = get_peft_model(tower(), config)
    draw = torch.Generator().manual_seed(5)
    for p in cores(model).values():
        p.data = torch.randn(p.shape, generator=draw) / 3
    model.save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def started(variant: str, lora: Path, **fields: object) -> PeftModel:
    chosen = {"r": 3, "ranks": 64, "target_modules": TARGETS, "init_weights": f"lora:{lora}", **fields}
    return adapted(tower(), VARIANTS[variant](**chosen))


def reference(lora: Path) -> torch.Tensor:
    return PeftModel.from_pretrained(tower(), lora)(inputs())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fields", [{}, {"r": 5}, {"alpha": 12}, {"alpha_pattern": {"up": 1}}], ids=str)
def test_at_full_ranks_it_is_the_function_of_the_lora(
    variant: str, lora: Path, fields: dict[str, object]
) -> None:
    model = started(variant, lora, **fields)
    assert close(model(inputs()), reference(lora), factor=10)
    assert not torch.allclose(model(inputs()), tower()(inputs()))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sigma", ["relu", "gelu", "silu"])
def test_a_nonlinear_adapter_of_twice_the_width_is_the_lora(variant: str, lora: Path, sigma: str) -> None:
    model = started(variant, lora, r=6, activation=sigma)
    assert close(model(inputs()), reference(lora), factor=10)


def test_a_lora_map_takes_the_factors_as_they_are(lora: Path) -> None:
    model = started("per layer", lora, method="lora", ranks=None)
    assert close(model(inputs()), reference(lora))


def test_lower_ranks_come_as_close_as_they_can(lora: Path) -> None:
    models = [started("per layer", lora, ranks=rank).requires_grad_(False) for rank in (1, 3, 6, 18)]
    gaps = [float((model(inputs()) - reference(lora).detach()).norm()) for model in models]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_saved_and_trained_on_without_the_lora(variant: str, lora: Path, tmp_path: Path) -> None:
    model = started(variant, lora)
    model.save_pretrained(tmp_path / "guide")
    assert str(lora) not in (tmp_path / "guide" / "adapter_config.json").read_text()
    for file in lora.iterdir():
        file.unlink()
    loaded = PeftModel.from_pretrained(tower(), tmp_path / "guide", is_trainable=True)
    assert torch.equal(loaded(inputs()), model(inputs()))
    loaded(inputs()).square().sum().backward()
    assert all(p.grad.any() for p in cores(loaded).values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_lora_does_not_have_is_refused(variant: str, lora: Path) -> None:
    with pytest.raises(SpecError, match=r"head is a target, but the LoRA in .*lora does not adapt it"):
        started(variant, lora, target_modules=["fc", "head"])
    with pytest.raises(SpecError, match=r"has rank 3, which needs r >= 3 with activation 'identity', not 2"):
        started(variant, lora, r=2)
    with pytest.raises(SpecError, match=r"has rank \d, which needs r >= \d with activation 'relu', not 3"):
        started(variant, lora, activation="relu")


def test_a_folder_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/adapter_config.json: cannot be read"):
        started("per layer", tmp_path / "nowhere")


def test_a_used_config_starts_from_the_lora_again(lora: Path) -> None:
    config = TensorGuideConfig(r=3, ranks=64, target_modules=TARGETS, init_weights=f"lora:{lora}")
    first, second = (adapted(tower(), config)(inputs()) for _ in range(2))
    assert torch.equal(first, second)
    assert close(second, reference(lora), factor=10)


@pytest.mark.parametrize("start", ["paper", "published"])
def test_the_starts_of_tensorguide_are_those_of_its_map(start: str) -> None:
    config = TensorGuideConfig(r=4, ranks=3, target_modules=["fc"], latent="fixed", init_weights=start)
    model = adapted(tower(), config)
    generator = model.base_model.model.fc.generator("default")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        params, fixed = generator.map.init()
    assert generator.map.start == start
    for name, tensor in {**params, **fixed}.items():
        assert torch.equal(generator.tensors()[name], tensor)
