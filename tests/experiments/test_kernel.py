"""The kernel at the start: the Gram of plain gradients, taken without touching the model."""

import pytest
import torch
from torch import Tensor, nn

from tests.experiments.sample import method
from tests.support.tolerance import close
from tntune.experiments.attach import attach
from tntune.experiments.kernel import start_kernel
from tntune.experiments.planes import Planes


def made(kind: str) -> tuple[Planes, nn.Module]:
    task = Planes()
    model = task.model(0)
    attach(task, model, method(kind), budget=400, generator=torch.Generator().manual_seed(0))
    return task, model


def eigenvalues(task: Planes, model: nn.Module, samples: int) -> Tensor:
    """By plain autograd, one example after the other."""
    params = [p for name, p in model.eval().named_parameters() if p.requires_grad and "generator" in name]
    rows = []
    for i in range(samples):
        loss = task.loss(model, {name: x[i : i + 1] for name, x in task.data.validation.items()})
        rows.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, params)]))
    return torch.linalg.svdvals(torch.stack(rows).double()).square()


@pytest.mark.parametrize("kind", ["lora", "tensorguide", "joint", "lotr"])
def test_the_kernel_is_the_gram_of_the_gradients_of_each_loss(kind: str) -> None:
    task, model = made(kind)
    found = start_kernel(task, model, samples=8)
    values = eigenvalues(task, model, 8)
    assert found is not None
    named = [found[name] for name in ("lambda_max", "trace")]
    assert close(torch.tensor(named), torch.stack([values[0], values.sum()]).float())
    assert found["cond_plus"] == found["lambda_max"] / found["lambda_min_plus"]


@pytest.mark.parametrize("kind", ["lora", "joint"])
def test_the_model_is_untouched(kind: str) -> None:
    task, model = made(kind)
    model.train()
    before = [(name, id(p), p.clone()) for name, p in model.named_parameters(remove_duplicate=False)]
    start_kernel(task, model, samples=4)
    after = list(model.named_parameters(remove_duplicate=False))
    assert [(name, id(p)) for name, p in after] == [(name, place) for name, place, _ in before]
    assert all(torch.equal(p, old) for (_, p), (_, _, old) in zip(after, before, strict=True))
    assert all(module.training for module in model.modules())


class Blind(Planes):
    """A loss that no parameter changes."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return super().loss(model, batch) * 0.0


def test_there_is_no_kernel_of_zero() -> None:
    _, model = made("lora")
    assert start_kernel(Blind(), model) is None
