"""Law: new cores are the same tensor in directions of the old bonds, and gradients go with them."""

import pytest
import torch
from torch import Tensor

from tests.support.tolerance import close
from tntune.errors import SpecError, UnsupportedError
from tntune.plugins import Basis, basis_change, transported
from tntune.plugins.basis import check_optimizer, swap_parameter
from tntune.tt import RankRule, add, cores, dense, gaussian, round_tt, scale, tt_tensor


def train(modes: tuple[int, ...], rank: int, seed: int) -> object:
    return gaussian(modes, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def redundant() -> object:
    """A train of ranks 2 in cores of ranks 4."""
    x = train((3, 4, 5, 3), 2, 0)
    return add(scale(x, 0.3), scale(x, 0.7))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_tensor_stays_and_bonds_are_old_directions(rank: int) -> None:
    old = train((3, 4, 5, 3), 3, 0)
    rounded = round_tt(old, RankRule(max_rank=rank)).value
    made, bases = basis_change(cores(old), cores(rounded))
    assert close(dense(tt_tensor(made)), dense(rounded))
    assert [core.shape[0] for core in made] == [1, rank, rank, rank]
    for basis in bases:
        eye = torch.eye(basis.onto.shape[1], dtype=torch.float64)
        assert close(basis.onto.mT @ basis.onto, eye)
        assert close(basis.back @ basis.onto, eye)


def test_without_loss_new_cores_are_old_ones_in_the_new_basis() -> None:
    old = redundant()
    made, bases = basis_change(cores(old), cores(round_tt(old).value))
    for k, (core, new) in enumerate(zip(cores(old), made, strict=True)):
        turned = torch.einsum("ia,anb,bj->inj", bases[k].back, core, bases[k + 1].onto)
        assert close(turned, new)


def test_without_loss_gradients_are_transported() -> None:
    """Of any function of the tensor: the gradient of the new cores is the old one's, transported."""
    weight = torch.randn(3, 4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def gradients(own: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [core.detach().requires_grad_() for core in own]
        value = (weight * dense(tt_tensor(leaves)).sin()).sum()
        return torch.autograd.grad(value, leaves)

    old = redundant()
    made, bases = basis_change(cores(old), cores(round_tt(old).value))
    assert [core.shape[0] for core in made] == [1, 2, 2, 2]
    before, after = gradients(cores(old)), gradients(made)
    for k, (g, new) in enumerate(zip(before, after, strict=True)):
        assert close(transported(g, bases[k], bases[k + 1]), new)


def test_second_moments_are_variances_of_independent_entries() -> None:
    """Against the full covariance K diag(v) Kᵀ of the transported entries."""
    generator = torch.Generator().manual_seed(0)
    left = Basis(
        torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64, generator=generator))[0], torch.ones(0)
    )
    right = Basis(torch.ones(0), torch.randn(2, 4, dtype=torch.float64, generator=generator))
    variance = torch.rand(3, 5, 4, dtype=torch.float64, generator=generator)
    found = transported(variance, left, right, squared=True)
    kernel = torch.kron(left.onto.mT.contiguous(), right.back.contiguous())  # (i j, a b)
    for n in range(5):
        covariance = kernel @ variance[:, n].flatten().diag() @ kernel.mT
        assert close(found[:, n].flatten(), covariance.diagonal())
    assert bool((found >= 0).all())


def test_permutations_and_signs_are_exact_for_both_moments() -> None:
    """Of a history of gradients, not only of its mean."""
    history = torch.randn(9, 3, 2, 4, dtype=torch.float64)
    turn = torch.eye(3, dtype=torch.float64)[[2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    left = Basis(turn, turn.mT)
    right = Basis(torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64))
    moved = torch.stack([transported(g, left, right) for g in history])
    assert close(transported(history.mean(0), left, right), moved.mean(0))
    assert close(transported(history.square().mean(0), left, right, squared=True), moved.square().mean(0))


def test_a_zero_train_keeps_its_leading_directions() -> None:
    own = cores(train((3, 4, 5), 3, 0))
    own[1] = torch.zeros_like(own[1])
    made, bases = basis_change(own, cores(round_tt(tt_tensor(own)).value))
    assert close(made[0], own[0][:, :, :1])
    assert not dense(tt_tensor(made)).any()
    assert close(bases[1].onto, torch.eye(3, 1, dtype=torch.float64))


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimiser_takes_the_new_parameter(optimizer: type[torch.optim.Optimizer]) -> None:
    old, other = (torch.ones(2, 3, requires_grad=True) for _ in range(2))
    kwargs = {"momentum": 0.9} if optimizer is torch.optim.SGD else {"amsgrad": True}
    held = optimizer([{"params": [old], "lr": 0.1}, {"params": [other], "lr": 0.2}], **kwargs)
    (old * torch.arange(6.0).reshape(2, 3)).sum().backward()
    held.step()
    state = dict(held.state[old])
    check_optimizer(held, [old])
    new = torch.zeros(1, 3, requires_grad=True)
    left = Basis(torch.eye(2)[:, 1:], torch.eye(2)[1:])  # keeps the second row
    swap_parameter(held, old, new, left, Basis(torch.eye(1), torch.eye(1)), core=(2, 3, 1))
    assert held.param_groups[0]["params"][0] is new
    assert held.param_groups[1]["params"][0] is other
    assert old not in held.state
    for name, value in state.items():
        wanted = value[1:] if isinstance(value, Tensor) and value.ndim else value
        assert torch.equal(torch.as_tensor(held.state[new][name]), torch.as_tensor(wanted))
    new.sum().backward()
    held.step()


def test_what_it_refuses() -> None:
    param = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(SpecError, match="lacks 1 of the 1 params"):
        check_optimizer(torch.optim.SGD([torch.ones(1, requires_grad=True)]), [param])
    held = torch.optim.Adagrad([param])
    with pytest.raises(UnsupportedError, match="Adagrad keeps 'sum'"):
        check_optimizer(held, [param])
