"""Training as it is done: activation checkpointing of both kinds, and several processes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tests.support import processes
from tests.support.models import Block
from tests.support.tolerance import close
from tntune.adapters import AdapterSpec, FactorGenerator, adapt
from tntune.errors import UnsupportedError

SPECS = {
    "tensorguide": AdapterSpec(width=3),
    "latent": AdapterSpec(width=3, latent="fixed"),
    "resample": AdapterSpec(width=3, latent="resample"),
    "nonlinear": AdapterSpec(width=3, activation="silu"),
    "concat": AdapterSpec(width=4, layout="concat"),
    "mean": AdapterSpec(width=2, latent="mean"),
    "tt_lora": AdapterSpec(width=3, method="tt_lora"),
    "lora": AdapterSpec(width=3, method="lora"),
    "joint": AdapterSpec(width=3, method="joint"),
    "lotr": AdapterSpec(rank=2, method="lotr"),
    "lorta": AdapterSpec(rank=2, method="lorta", head_dim=2),
}
CHECKPOINTS: dict[str, Callable[..., Tensor]] = {
    "reentrant": partial(checkpoint, use_reentrant=True),
    "non-reentrant": partial(checkpoint, use_reentrant=False),
}
EVERY = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def tower(spec: AdapterSpec) -> nn.Sequential:
    """Two adapted blocks, the same at every call."""
    torch.manual_seed(0)
    return adapt(nn.Sequential(Block(6, 8), Block(6, 8)), spec)


def batch(rows: int = 4) -> Tensor:
    return torch.randn(rows, 6, generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def steps(model: nn.Sequential, run: Callable[..., Tensor] | None, count: int) -> dict[str, Tensor]:
    """Gradients of the last of some Adam steps, with each block run through ``run``."""
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.01)
    torch.manual_seed(7)
    for step in range(count):
        optimizer.zero_grad()
        x = batch().requires_grad_()
        for block in model:
            x = block(x) if run is None else run(block, x)
        (x - 1).square().mean().backward()
        if step < count - 1:
            optimizer.step()
    return {name: parameter.grad for name, parameter in trained(model).items()}


@EVERY
@pytest.mark.parametrize("run", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpointing_changes_no_gradient(spec: AdapterSpec, run: Callable[..., Tensor]) -> None:
    """A resampled latent too: recomputation restores torch's generator, as for dropout."""
    plain, recomputed = steps(tower(spec), None, 4), steps(tower(spec), run, 4)
    for name, gradient in plain.items():
        assert gradient.isfinite().all()
        assert gradient.any()
        assert close(recomputed[name], gradient)


@EVERY
def test_training_lowers_the_loss(spec: AdapterSpec, device: torch.device) -> None:
    model = tower(spec).to(device)
    x = batch(16).to(device)
    optimizer = torch.optim.Adam(trained(model).values(), lr=0.03)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 0.95 * losses[0]  # on the mean: a resampled latent makes it noisy


# Two processes.


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """DistributedDataParallel over gloo: each half of the batch on its own process, averaged."""
    names = ("latent", "concat", "nonlinear", "lotr", "joint")
    outcomes = processes.run(_gradients_of_a_half, names, folder=tmp_path)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    for name in names:
        model = tower(SPECS[name])
        _start(model)
        (model(batch(8)) - 1).square().mean().backward()
        for outcome in outcomes:
            assert set(outcome.value[name]) == set(trained(model))
            for key, parameter in trained(model).items():
                assert parameter.grad.any()
                assert close(outcome.value[name][key], parameter.grad)


@pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch has no FSDP2 on the CPU"
)
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor:UserWarning")
@pytest.mark.parametrize("method", ["lotr", "joint"])
def test_a_shared_map_in_the_unit_of_a_block_is_refused(method: str) -> None:
    """FSDP2 gathers that unit when the block runs, which is later than all sites are generated."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        plain, refused, right = (tower(SPECS[method]) for _ in range(3))
        for block in refused:
            fully_shard(block)
        with pytest.raises(UnsupportedError, match=r"fully_shard\(generator, reshard_after_forward=False\)"):
            fully_shard(refused)(batch())
        for module in list(right.modules()):
            if isinstance(module, FactorGenerator):
                fully_shard(module, reshard_after_forward=False)
        for block in right:
            fully_shard(block)
        assert close(fully_shard(right)(batch()), plain(batch()))
    finally:
        distributed.destroy_process_group()


def _start(model: nn.Module) -> None:
    """Away from the zero start, where most gradients vanish."""
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.1)


def _gradients_of_a_half(names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    """By name of a specification, what this process has after one backward on its half of the batch."""
    found = {}
    for name in names:
        model = tower(SPECS[name])
        _start(model)
        half = batch(8).chunk(2)[distributed.get_rank()]
        wrapped = DistributedDataParallel(model)  # alive during backward: its hooks average
        (wrapped(half) - 1).square().mean().backward()
        found[name] = {key: parameter.grad for key, parameter in trained(model).items()}
    return found
