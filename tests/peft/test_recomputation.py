"""Law: reentrant checkpointing is refused where processes train shared trains together, and only there."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model

from tests.support.tolerance import close
from tntune.adapters.recomputation import check_recomputation
from tntune.errors import UnsupportedError
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig

pytestmark = pytest.mark.peft

CONFIGS = [TensorGuideConfig, SharedTensorGuideConfig]


@pytest.fixture
def together() -> Iterator[None]:
    """As if this were one process of two; what it sends is not received."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def alone() -> Iterator[None]:
    """One process that is a group."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


class Tower(nn.Module):
    """Linear layers of one shape, each a block that may be checkpointed."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else self.recomputed(block, x)
            x = torch.tanh(x)
        return x

    def recomputed(self, block: nn.Module, x: Tensor) -> Tensor:
        """The block's output, without what its backward needs."""
        return checkpoint(block, x, use_reentrant=self.reentrant)


def adapted(config: type[TensorGuideConfig], reentrant: bool | None = None) -> PeftModel:
    """A tower with random adapters in float64, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = config(r=2, ranks=2, target_modules=r"blocks\.\d", init_weights=False)
        return get_peft_model(Tower(reentrant).double(), given).train()


def inputs() -> Tensor:
    """A batch that requires gradients: without, reentrant checkpoints have none."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.requires_grad_()


def gradients(model: PeftModel) -> list[Tensor]:
    """Of all cores, after one backward."""
    model(inputs()).square().sum().backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.usefixtures("together")
def test_refused_where_processes_train_together() -> None:
    model = adapted(SharedTensorGuideConfig, reentrant=True)
    with pytest.raises(UnsupportedError, match=r'2 processes .* set .*\{"use_reentrant": False\}'):
        model(inputs()).sum().backward()


@pytest.mark.usefixtures("together")
@pytest.mark.parametrize(
    ("config", "reentrant"),
    [(TensorGuideConfig, True), (TensorGuideConfig, False), (SharedTensorGuideConfig, False)],
)
def test_every_other_kind_is_allowed(config: type[TensorGuideConfig], reentrant: bool) -> None:
    for found, wanted in zip(gradients(adapted(config, reentrant)), gradients(adapted(config)), strict=True):
        assert close(found, wanted)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_one_process_checkpoints_as_it_likes(config: type[TensorGuideConfig], reentrant: bool) -> None:
    for found, wanted in zip(gradients(adapted(config, reentrant)), gradients(adapted(config)), strict=True):
        assert close(found, wanted)


@pytest.mark.usefixtures("alone")
def test_a_group_of_one_process_is_one_process() -> None:
    shared = SharedTensorGuideConfig
    for found, wanted in zip(gradients(adapted(shared, True)), gradients(adapted(shared)), strict=True):
        assert close(found, wanted)


@pytest.mark.usefixtures("together")
def test_forwards_without_gradients_do_not_mislead() -> None:
    """Neither before, nor between a forward and the backward that recomputes it."""
    model = adapted(SharedTensorGuideConfig, reentrant=False)
    with torch.no_grad():
        model(inputs())
    y = model(inputs())
    with torch.no_grad():
        model(inputs())
    y.square().sum().backward()
    wanted = gradients(adapted(SharedTensorGuideConfig))
    for found, other in zip([p.grad for p in model.parameters() if p.requires_grad], wanted, strict=True):
        assert close(found, other)


@pytest.mark.usefixtures("together")
def test_a_custom_operation_is_no_checkpoint() -> None:
    """Its saved tensor makes the block around it be computed again, inside its own node."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * gradient

    model = adapted(SharedTensorGuideConfig)
    seen: list[str] = []

    def block(x: Tensor) -> Tensor:
        seen.append(type(torch._C._current_autograd_node()).__name__)
        return Square.apply(model(x))

    checkpoint(block, inputs(), use_reentrant=False).sum().backward()
    assert seen == ["NoneType", "SquareBackward"]


@pytest.mark.usefixtures("together")
def test_functional_transforms_pass() -> None:
    layer = adapted(SharedTensorGuideConfig).base_model.model.blocks[0]
    x = inputs().detach()
    assert close(torch.func.vmap(layer)(x), layer(x))
    assert torch.func.jacrev(layer)(x[0]).shape == (6, 6)


@pytest.mark.slow
@pytest.mark.usefixtures("together")
def test_compiles_in_one_graph() -> None:
    layer = adapted(SharedTensorGuideConfig).base_model.model.blocks[0]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert close(compiled(inputs()), layer(inputs()))


@pytest.mark.usefixtures("together")
def test_outside_of_a_backward_nothing_is_refused() -> None:
    check_recomputation()
