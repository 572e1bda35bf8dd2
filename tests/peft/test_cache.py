"""Factors are kept in evaluation, and no change of a model is missed for it."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from tests.peft.models import MARKS, TARGETS, TOKENS, VARIANTS, cores, decoder, gpt2, logits
from tntune.peft import TensorGuideLayer

pytestmark = MARKS


def step(model: PeftModel) -> None:
    optimizer = torch.optim.SGD(cores(model).values(), lr=0.5)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()


def write(model: PeftModel) -> None:
    for core in cores(model).values():
        core.data.mul_(2)


def write_past_the_version(model: PeftModel) -> None:
    for core in cores(model).values():
        core.data.numpy()[...] *= 2


def replace(model: PeftModel) -> None:
    for core in cores(model).values():
        core.data = core.data * 2


def load(model: PeftModel) -> None:
    state = {name: 2 * t for name, t in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, state)


def scale(model: PeftModel) -> None:
    for layer in model.modules():
        if isinstance(layer, TensorGuideLayer):
            layer.set_scale("default", 3.0)


def cast(model: PeftModel) -> None:
    model.double()


def cast_there_and_back(model: PeftModel) -> None:
    """To bfloat16 and back: other values at the dtype they had."""
    model.bfloat16().float()


CHANGES: dict[str, Callable[[PeftModel], None]] = {
    "optimiser step": step,
    "write": write,
    "write past the version": write_past_the_version,
    "replace": replace,
    "load": load,
    "scale": scale,
    "cast": cast,
    "cast there and back": cast_there_and_back,
}


def fresh(model: PeftModel, folder: Path) -> PeftModel:
    """A model that never had a cache, from what the changed one stores, at its scale and dtype."""
    model.save_pretrained(folder)
    made = PeftModel.from_pretrained(gpt2(), folder)
    made.load_state_dict(model.state_dict())
    layers = [m for m in model.modules() if isinstance(m, TensorGuideLayer)]
    own = [m for m in made.modules() if isinstance(m, TensorGuideLayer)]
    for layer, twin in zip(layers, own, strict=True):
        twin.scaling.update(layer.scaling)
    return made.to(model.dtype)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("latent", ["none", "fixed"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_output_is_that_of_a_fresh_model(
    tmp_path: Path, variant: str, latent: str, change: Callable[[PeftModel], None]
) -> None:
    model = decoder(variant, latent=latent)
    before = logits(model)
    assert is_kept(model)
    change(model)
    after = logits(model)
    assert not torch.equal(after, before)
    assert torch.equal(after, logits(fresh(model, tmp_path)))


def is_kept(model: PeftModel) -> bool:
    """Whether evaluation makes no factors: their tensors are the same objects at the next call."""
    layer = next(m for m in model.modules() if isinstance(m, TensorGuideLayer))
    with torch.no_grad():
        first, second = (layer.chains("default") for _ in range(2))
    pairs = zip((*first.down, *first.up), (*second.down, *second.up), strict=True)
    return all(one.data_ptr() == two.data_ptr() for one, two in pairs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_have_a_cache_of_their_own(variant: str) -> None:
    model = decoder(variant)
    before = logits(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(copied), before)
        write(copied)
        assert not torch.equal(logits(copied), before)
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merge_is_of_the_cores_as_they_are(variant: str) -> None:
    model, twin = decoder(variant), decoder(variant)
    logits(model)
    for each in (model, twin):
        write(each)
        each.merge_adapter()
    assert torch.equal(logits(model), logits(twin))


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_between_steps_does_not_change_training(variant: str) -> None:
    watched, alone = decoder(variant), decoder(variant)
    for _ in range(3):
        for model in (watched, alone):
            step(model.train())
        logits(watched.eval())
    assert torch.equal(logits(watched.eval()), logits(alone.eval()))


def test_a_deleted_and_added_adapter_is_the_new_one() -> None:
    model = decoder("shared")
    before = logits(model)
    model.add_adapter("other", VARIANTS["shared"](r=2, target_modules=TARGETS, init_weights=False))
    model.set_adapter("other")
    model.delete_adapter("default")
    other = logits(model)
    assert not torch.equal(other, before)
    model.add_adapter("default", VARIANTS["shared"](r=4, target_modules=TARGETS))
    model.set_adapter("default")
    assert torch.equal(logits(model), logits(gpt2()))


def test_what_needs_a_gradient_is_made_anew() -> None:
    model = decoder("per layer")
    logits(model)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(p.grad.any() for p in cores(model).values())


def test_an_inference_mode_does_not_leak() -> None:
    model = decoder("per layer")
    with torch.inference_mode():
        inside = model(input_ids=TOKENS).logits
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert torch.equal(logits(model), inside)
