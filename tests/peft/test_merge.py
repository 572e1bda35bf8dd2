"""Merging: the same function in one matrix, undone bit for bit, or refused before anything is changed."""

import copy

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel

from tests.peft.models import MARKS, VARIANTS, adapted, cores, decoder, gpt2, inputs, logits, tower
from tests.support.tolerance import close
from tntune.errors import MergeError, UnsupportedError
from tntune.peft import TensorGuideConfig

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:.*tied.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
]


def weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The base's tensors, copied."""
    return {name: t.clone() for name, t in model.state_dict().items() if "tensorguide" not in name}


def unchanged(model: PeftModel, before: dict[str, torch.Tensor]) -> bool:
    now = weights(model)
    return all(now[name].dtype == t.dtype and torch.equal(now[name], t) for name, t in before.items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merged_it_is_the_same_function_and_unmerged_the_same_bits(variant: str, dtype: torch.dtype) -> None:
    model = decoder(variant, dtype=dtype)
    before, wanted = weights(model), logits(model)
    assert not torch.allclose(wanted, logits(gpt2(dtype)))
    for _ in range(3):
        model.merge_adapter()
        assert not unchanged(model, before)
        assert close(logits(model), wanted)
        model.unmerge_adapter()
        assert unchanged(model, before)
        assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("safe", [True, False])
def test_merged_and_unloaded_it_is_a_plain_model(variant: str, safe: bool) -> None:
    model = decoder(variant)
    wanted = logits(model)
    plain = model.merge_and_unload(safe_merge=safe)
    assert type(plain) is type(gpt2())
    assert plain.state_dict().keys() == gpt2().state_dict().keys()
    assert close(logits(plain), wanted)


def test_unloaded_it_is_the_base() -> None:
    assert torch.equal(logits(decoder("shared").unload()), logits(gpt2()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_adapter_can_be_disabled_and_comes_back(variant: str) -> None:
    model = decoder(variant)
    wanted = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(gpt2()))
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_broken_adapter_leaves_the_base_as_it_was(variant: str) -> None:
    model = decoder(variant)
    before = weights(model)
    with torch.no_grad():
        next(iter(cores(model).values()))[0, 0, 0] = torch.nan
    with pytest.raises(MergeError, match=r"NaNs detected in the merged weights. The adapter default seems"):
        model.merge_adapter(safe_merge=True)
    assert unchanged(model, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tied_embedding_keeps_its_weight(variant: str) -> None:
    model = decoder(variant, target_modules=["c_attn", "lm_head"])
    wanted, embedding = logits(model), model.get_input_embeddings().weight
    before = embedding.clone()
    assert model.base_model.model.lm_head.weight is embedding
    model.merge_adapter()
    assert close(logits(model), wanted)
    assert torch.equal(model.get_input_embeddings().weight, before)
    model.unmerge_adapter()
    assert model.base_model.model.lm_head.weight is embedding
    merged = model.merge_and_unload()
    assert close(logits(merged), wanted)
    assert torch.equal(merged.get_input_embeddings().weight, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nonlinear_adapter_is_refused_before_anything_is_changed(variant: str) -> None:
    model = decoder(variant, activation="relu")
    before, wanted = weights(model), logits(model)
    for attempt in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UnsupportedError, match=r"activation 'relu': it is no matrix, .* neither merged"):
            attempt()
        assert unchanged(model, before)
        assert torch.equal(logits(model), wanted)
    with pytest.raises(UnsupportedError, match=r"adapter 'default' has the activation 'relu'"):
        model.base_model.model.transformer.h[0].attn.c_attn.get_delta_weight("default")


@pytest.mark.parametrize("order", [["plain", "bent"], ["bent", "plain"]])
def test_one_nonlinear_adapter_among_several_refuses_them_all(order: list[str]) -> None:
    """Whichever comes first, on whichever layer: nothing is merged by half."""
    fields = {"r": 3, "ranks": 2, "init_weights": False}
    configs = {
        "plain": TensorGuideConfig(target_modules=["fc", "up"], **fields),
        "bent": TensorGuideConfig(target_modules=["down"], activation="relu", **fields),
    }
    model = adapted(tower(), configs["plain"], adapter_name="plain")
    model.add_adapter("bent", configs["bent"])
    before = weights(model)
    model.base_model.set_adapter(order)
    with pytest.raises(UnsupportedError, match=r"adapter 'bent' has the activation 'relu'"):
        model.merge_adapter()
    assert unchanged(model, before)
    model.set_adapter("plain")
    wanted = model(inputs())
    model.merge_adapter()
    assert close(model(inputs()), wanted)


def test_one_layer_refuses_before_it_merges_a_part() -> None:
    model = adapted(tower(), TensorGuideConfig(r=2, ranks=2, target_modules=["fc"], init_weights=False))
    bent = TensorGuideConfig(r=2, ranks=2, target_modules=["fc"], init_weights=False, activation="relu")
    model.add_adapter("bent", bent)
    layer, before = model.base_model.model.fc, weights(model)
    with pytest.raises(UnsupportedError, match=r"adapter 'bent' has the activation 'relu'"):
        layer.merge(adapter_names=["default", "bent"])
    assert layer.merged_adapters == []
    assert unchanged(model, before)


def test_a_named_adapter_is_merged_alone() -> None:
    model = decoder("per layer", target_modules=["c_fc"])
    model.add_adapter("other", TensorGuideConfig(r=2, ranks=2, target_modules=["c_fc"], init_weights=False))
    model.set_adapter("other")
    wanted = logits(model)
    model.set_adapter("default")
    model.merge_adapter(adapter_names=["other"])
    assert close(logits(model), wanted)


def test_several_adapters_are_merged_and_unmerged_together() -> None:
    model = adapted(tower(), TensorGuideConfig(r=2, ranks=2, target_modules=["fc", "up"], init_weights=False))
    model.add_adapter("other", TensorGuideConfig(r=3, ranks=2, target_modules=["fc"], init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    before, wanted = weights(model), model(inputs())
    model.merge_adapter()
    assert model.base_model.model.fc.merged_adapters == ["default", "other"]
    assert close(model(inputs()), wanted)
    model.unmerge_adapter()
    assert unchanged(model, before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_merged_model_moves_and_copies_with_its_old_weights(variant: str) -> None:
    model = decoder(variant)
    before = weights(model)
    model.merge_adapter()
    copied = copy.deepcopy(model)
    copied.double().unmerge_adapter()
    assert unchanged(copied, {name: t.double() if t.is_floating_point() else t for name, t in before.items()})
    model.unmerge_adapter()
    assert unchanged(model, before)


def test_unmerging_twice_warns() -> None:
    model = decoder("per layer")
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_dropout_does_not_reach_the_merged_weight() -> None:
    model = decoder("per layer", dropout=0.5).eval()
    wanted = logits(model)
    model.train().merge_adapter()
    assert close(logits(model.eval()), wanted)


def test_a_latent_drawn_at_each_call_is_merged_at_its_stored_value() -> None:
    model = decoder("per layer", latent="resample")
    wanted = logits(model)
    model.train().merge_adapter()
    assert close(logits(model.eval()), wanted)
