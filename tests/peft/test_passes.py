"""Law: a call of the model generates once for all layers what it can, and changes no number by it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model

from tests.peft.models import MARKS, VARIANTS, adapted, cores
from tests.support.tolerance import close
from tntune.adapters.forward_pass import ForwardPass
from tntune.maps import TensorGuide
from tntune.peft import TensorGuideConfig, TensorGuideLayer

pytestmark = MARKS
BLOCKS = 3


class Stack(nn.Module):
    """Blocks of two linear layers of one shape, each of which may be checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(BLOCKS)
        )
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + (block(x) if self.reentrant is None else self.recomputed(block, x))
        return x

    def recomputed(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=self.reentrant)


def stack(reentrant: bool | None = None) -> Stack:
    """The same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Stack(reentrant).double()


def config(variant: str) -> TensorGuideConfig:
    return VARIANTS[variant](r=2, ranks=2, target_modules=r"blocks\.\d\.[02]", init_weights=False)


def model(variant: str, reentrant: bool | None = None) -> PeftModel:
    return adapted(stack(reentrant), config(variant)).train()


def inputs() -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_()


def passes(base: nn.Module) -> int:
    hooks = [hook for module in base.modules() for hook in module._forward_pre_hooks.values()]
    return sum(isinstance(getattr(hook, "__self__", None), ForwardPass) for hook in hooks)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every contraction of a train: how many sites it made."""
    calls: list[int] = []
    for name in ("factors", "site_factors"):
        original = getattr(TensorGuide, name)

        def counted(self: TensorGuide, *own: object, original: object = original) -> object:
            found = original(self, *own)
            calls.append(len(found.down))
            return found

        monkeypatch.setattr(TensorGuide, name, counted)
    return calls


def test_a_shared_map_is_generated_once_for_a_pass(made: list[int]) -> None:
    shared = model("shared")
    made.clear()
    shared(inputs()).square().sum().backward()
    assert made == [2 * BLOCKS]
    shared.eval()
    made.clear()
    with torch.no_grad():
        shared(inputs())
        shared(inputs())
    assert made == [2 * BLOCKS]


def test_layers_of_one_shape_go_together(made: list[int]) -> None:
    """One contraction for all of them, in the second pass too."""
    own = model("per layer")
    for _ in range(2):
        made.clear()
        own(inputs()).square().sum().backward()
        assert made == [1]  # under vmap


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradients_are_those_of_layers_alone(variant: str, reentrant: bool | None) -> None:
    together, alone = model(variant, reentrant), model(variant)
    for _ in range(2):
        together(inputs()).square().sum().backward()
        alone.base_model.model.forward(inputs()).square().sum().backward()  # no hooks
        for found, wanted in zip(cores(together).values(), cores(alone).values(), strict=True):
            assert close(found.grad, wanted.grad)
            with torch.no_grad():
                found.add_(found.grad, alpha=-0.01)
                wanted.add_(wanted.grad, alpha=-0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_that_come_and_go(variant: str, made: list[int]) -> None:
    """Two at once, one switched off, one deleted: each pass generates what its layers call."""
    own = model(variant)
    own.add_adapter("other", config(variant))
    assert passes(own) == 1
    both = 2 if variant == "shared" else 1  # equal maps of layers go together, of adapters too
    for active, count in ((["default", "other"], both), (["other"], 1)):
        own.base_model.set_adapter(active)
        made.clear()
        together = own(inputs())
        assert len(made) == count
        assert close(own.base_model.model.forward(inputs()), together)
    with own.disable_adapter():
        made.clear()
        assert torch.equal(own(inputs()), stack()(inputs()))
        assert made == []
    own.base_model.set_adapter(["default"])
    own.delete_adapter("other")
    assert close(own(inputs()), own.base_model.model.forward(inputs()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_and_unloaded_models_have_no_pass(variant: str, made: list[int]) -> None:
    own = model(variant).eval()
    with torch.no_grad():
        wanted = own(inputs())
        own.merge_adapter()
        made.clear()
        assert close(own(inputs()), wanted)
        assert made == []
        own.unmerge_adapter()
        base = own.merge_and_unload()
        assert passes(base) == 0
        assert close(base(inputs()), wanted)
    assert passes(model(variant).unload()) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_copy_has_a_pass_of_its_own(variant: str) -> None:
    own = model(variant)
    copied = copy.deepcopy(own)
    with torch.no_grad():
        for core in cores(own).values():
            core.zero_()
    copied(inputs()).square().sum().backward()
    assert all(core.grad is None for core in cores(own).values())
    assert any(core.grad.any() for core in cores(copied).values())
    assert passes(copied) == 1
    held = {id(layer) for layer in copied.modules() if isinstance(layer, TensorGuideLayer)}
    (hook,) = (h for m in copied.modules() for h in m._forward_pre_hooks.values())
    assert {id(layer) for layer in hook.__self__.layers} == held


def test_get_peft_model_twice_leaves_one_pass() -> None:
    base = stack()
    get_peft_model(base, config("shared")).unload()
    assert passes(get_peft_model(base, config("per layer"))) == 1
