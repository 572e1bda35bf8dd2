"""Several adapters in one model: chosen, added up, left out, deleted; the others never notice."""

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel, get_layer_status, get_model_status, get_peft_model, inject_adapter_in_model

from tests.peft.models import MARKS, TOKENS, VARIANTS, adapted, cores, decoder, gpt2, inputs, logits, tower
from tests.support.tolerance import close
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.peft import TensorGuideConfig, TensorGuideLayer
from tntune.peft.plan import Sizes

pytestmark = MARKS

FIRST = {"r": 4, "ranks": 3, "target_modules": ["up", "fc"], "init_weights": False}
SECOND = {"r": 2, "ranks": 2, "target_modules": ["up", "down"], "init_weights": False}


def pair(variant: str) -> PeftModel:
    """The tower with two adapters that have one target in common."""
    model = adapted(tower(), VARIANTS[variant](**FIRST), adapter_name="first")
    model.add_adapter("second", VARIANTS[variant](**SECOND))
    return model.eval()


def alone(model: PeftModel, name: str) -> torch.Tensor:
    model.set_adapter(name)
    return model(inputs()).detach()


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_adapter_is_itself_when_chosen(variant: str) -> None:
    model, x = pair(variant), inputs()
    reference = adapted(tower(), VARIANTS[variant](**FIRST), adapter_name="first")(x)
    assert torch.equal(alone(model, "first"), reference)
    assert not torch.allclose(alone(model, "second"), reference)
    assert torch.equal(alone(model, "first"), reference)
    with model.disable_adapter():
        assert torch.equal(model(x), tower()(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_active_together_their_updates_add_up(variant: str) -> None:
    """At one layer, whose input no other layer changes: ``y - base = (y1 - base) + (y2 - base)``."""
    model = pair(variant)
    layer, x = model.base_model.model.blocks[0]["up"], inputs()
    outputs = []
    for names in (["first"], ["second"], ["first", "second"]):
        model.base_model.set_adapter(names)
        outputs.append(layer(x) - layer.base_layer(x))
    assert close(outputs[2], outputs[0] + outputs[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_chosen_adapter_is_trained(variant: str) -> None:
    model = pair(variant)
    for name, other in (("first", "second"), ("second", "first")):
        model.set_adapter(name)
        assert cores(model)
        assert all(f".{name}." in key and f".{other}." not in key for key in cores(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_adding_an_adapter_leaves_the_other_as_it_was(variant: str) -> None:
    model = adapted(tower(), VARIANTS[variant](**FIRST), adapter_name="first")
    before = {name: p.clone() for name, p in cores(model).items()}
    model.add_adapter("second", VARIANTS[variant](**SECOND))
    assert cores(model).keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in cores(model).items())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("trained", [True, False])
def test_adding_an_adapter_neither_freezes_nor_thaws_the_other(variant: str, trained: bool) -> None:
    model = adapted(tower(), VARIANTS[variant](**FIRST, inference_mode=not trained), adapter_name="first")
    before = trainable(model)
    model.add_adapter("second", VARIANTS[variant](**SECOND, inference_mode=trained))
    assert trainable(model) == before
    assert set(before.values()) == {trained}


def trainable(model: PeftModel) -> dict[str, bool]:
    """Whether each tensor of the first adapter is trained."""
    return {name: p.requires_grad for name, p in model.named_parameters() if ".first." in name}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_deleted_adapter_leaves_nothing_behind(variant: str) -> None:
    model = pair(variant)
    wanted = alone(model, "first")
    model.delete_adapter("second")
    assert not any(".second." in name for name in model.state_dict())
    for layer in model.modules():
        if isinstance(layer, TensorGuideLayer):
            for attribute in vars(layer).values():
                assert not (isinstance(attribute, dict) and "second" in attribute)
    assert torch.equal(alone(model, "first"), wanted)
    model.add_adapter("second", VARIANTS[variant](**SECOND))
    assert torch.equal(alone(model, "first"), wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_statuses_name_and_count_the_adapters(variant: str) -> None:
    model = pair(variant)
    status = get_model_status(model)
    kind = VARIANTS[variant]().peft_type.value
    assert status.peft_types == {"first": kind, "second": kind}
    assert status.available_adapters == ["first", "second"]
    assert status.active_adapters == ["first"]
    assert status.trainable_params == sum(p.numel() for p in cores(model).values())
    assert status.enabled is True
    found = {each.name.removeprefix("model."): each for each in get_layer_status(model)}
    assert found["blocks.0.up"].available_adapters == ["first", "second"]
    assert found["blocks.0.down"].available_adapters == ["second"]
    assert {each.module_type for each in found.values()} == {"tensorguide.Linear"}
    assert model.get_nb_trainable_parameters()[0] == status.trainable_params


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_adapter_may_find_all_linear_layers(variant: str) -> None:
    model = adapted(tower(), VARIANTS[variant](**FIRST))
    model.add_adapter("all", VARIANTS[variant](r=2, target_modules="all-linear"))
    found = {each.name: each.available_adapters for each in get_layer_status(model)}
    assert {name for name, names in found.items() if "all" in names} == {
        f"model.{name}"
        for name in ("fc", "head", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down")
    }


def test_a_failed_shared_adapter_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: TensorGuideConfig, targets: dict[str, Sizes]) -> None:
        raise SpecError("not today")

    model = adapted(tower(), VARIANTS["shared"](**FIRST), adapter_name="first")
    wanted = model(inputs())
    with monkeypatch.context() as patch:
        patch.setattr("tntune.peft.model.plan_groups", refuse)
        with pytest.raises(SpecError, match="not today"):
            model.add_adapter("second", VARIANTS["shared"](**SECOND))
    assert not any("second" in name for name in model.state_dict())
    assert torch.equal(model(inputs()), wanted)


TWICE = pytest.mark.filterwarnings("ignore:(You are trying to modify a model|Already found a)")


@TWICE
@pytest.mark.parametrize("name", ["default", "second"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_that_is_adapted_twice_trains_the_second(variant: str, name: str) -> None:
    """As a cell of a notebook that is run again: the layers are those of the first, the cores are new."""
    base = tower()
    first = get_peft_model(base, VARIANTS[variant](**FIRST))
    model = get_peft_model(base, VARIANTS[variant](**FIRST), adapter_name=name)
    own = {path: p for path, p in model.named_parameters() if p.requires_grad and f".{name}." in path}
    before = {path: p.detach().clone() for path, p in own.items()}
    model(inputs()).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert before
    assert [path for path, p in own.items() if torch.equal(p, before[path])] == []
    fresh = adapted(tower(), VARIANTS[variant](**FIRST), adapter_name=name)
    fresh.load_state_dict(model.state_dict(), strict=False)
    assert close(fresh(inputs()), model(inputs()))
    assert first(inputs()).shape == (5, 3)


@TWICE
def test_two_kinds_do_not_meet_in_a_layer() -> None:
    for one, other in (VARIANTS.values(), reversed(VARIANTS.values())):
        base = get_peft_model(tower(), one(**FIRST)).base_model.model
        with pytest.raises(UnsupportedError, match=r"fc: has an adapter of TensorGuide's other kind; unload"):
            get_peft_model(base, other(**FIRST))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_for_each_row_is_refused(variant: str) -> None:
    model = adapted(gpt2(), VARIANTS[variant](target_modules=["c_attn"]))
    with pytest.raises(UnsupportedError, match="adapter_names: an adapter for each row of a batch"):
        model(TOKENS, adapter_names=["default", "__base__"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_trains_single_tokens_is_unloaded(variant: str, tied: bool) -> None:
    config = VARIANTS[variant](target_modules=["c_attn"], trainable_token_indices=[1], init_weights=False)
    model = adapted(gpt2(tied=tied), config).eval()
    before = model(TOKENS).logits
    merged = model.merge_and_unload()
    assert isinstance(merged, type(gpt2()))
    assert close(merged(TOKENS).logits, before, factor=10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_module_at_several_places_is_refused(variant: str) -> None:
    """PEFT would adapt it at one of them."""
    model = tower()
    model.blocks[1]["up"] = model.blocks[0]["up"]
    with pytest.raises(TargetError, match=r"is one module at \['blocks\.0\.up', 'blocks\.1\.up'\], and PEFT"):
        adapted(model, VARIANTS[variant](r=2, ranks=2, target_modules=["up"]))


def test_injected_into_a_model_it_is_the_same_layers() -> None:
    config = TensorGuideConfig(**FIRST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        injected = inject_adapter_in_model(config, tower()).eval()
    assert torch.equal(injected(inputs()), adapted(tower(), config)(inputs()))


def test_what_layers_share_cannot_be_injected() -> None:
    with pytest.raises(ValueError, match=r"not support .*TENSORGUIDE_SHARED because it uses shared state"):
        inject_adapter_in_model(VARIANTS["shared"](**FIRST), tower())


@pytest.mark.parametrize("variant", VARIANTS)
def test_text_is_generated(variant: str) -> None:
    model = decoder(variant)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    written = model.generate(input_ids=TOKENS, **options)
    merged = model.merge_and_unload().generate(input_ids=TOKENS, **options)
    assert torch.equal(written, merged)
    assert logits(gpt2()).shape == logits(model).shape
