"""Products read in two parts: the same numbers and derivatives as a cut of the whole, however it is cut."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.support.tolerance import close
from tntune.contract import plan
from tntune.contract.cut import cut_product

ROWS, INNER, COLUMNS = 5, 3, 4
INNERS = pytest.mark.parametrize("inner", [INNER, 1])
CUTS = pytest.mark.parametrize("at", [0, 1, 4, 7, 8, 16, 17, 19, 20])
"""Before, within, between and after rows."""


def operands(inner: int = INNER) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (ROWS, inner), (inner, COLUMNS)
    left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return left.requires_grad_(), right.requires_grad_()


def plain(left: Tensor, right: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """A cut of the whole product."""
    first, rest = (left @ right).flatten().tensor_split((at,))
    return first, rest


def weighted(cut: partial, left: Tensor, right: Tensor) -> Tensor:
    """A number in which every entry of both parts has a weight of its own."""
    first, rest = cut(left, right)
    weights = torch.arange(1.0, 1 + ROWS * COLUMNS, dtype=torch.float64)
    return (torch.cat([first.square(), rest]) * weights).sum()


@CUTS
@INNERS
def test_parts_and_gradients_are_those_of_the_whole(at: int, inner: int) -> None:
    pair = operands(inner)
    assert all(map(torch.equal, cut_product(*pair, at), plain(*pair, at)))
    own, other = (torch.autograd.grad(weighted(partial(c, at=at), *pair), pair) for c in (cut_product, plain))
    assert all(map(close, own, other))
    assert torch.autograd.gradcheck(partial(cut_product, at=at), pair)
    assert torch.autograd.gradgradcheck(partial(cut_product, at=at), pair)


@CUTS
@pytest.mark.parametrize("part", [0, 1])
def test_one_part_alone_has_its_gradient(at: int, part: int) -> None:
    pair = operands()
    own, other = (torch.autograd.grad(c(*pair, at)[part].sum(), pair) for c in (cut_product, plain))
    assert all(map(close, own, other))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_functional_transforms_see_torchs_own_operations() -> None:
    left, right = (tensor.detach() for tensor in operands())
    for cut in (torch.func.jacrev, torch.func.jacfwd):
        own, other = (cut(partial(c, at=7), argnums=(0, 1))(left, right) for c in (cut_product, plain))
        for mine, wanted in zip(own, other, strict=True):  # a row for each part, an entry for each operand
            assert all(map(close, mine, wanted))
    many = torch.stack([left.detach(), 2 * left.detach()])
    made = torch.vmap(partial(cut_product, right=right, at=7))(many)
    assert close(made[0][1], 2 * made[0][0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(left, torch.ones_like(left))
        tangent = forward_ad.unpack_dual(cut_product(dual, right, 7)[0]).tangent
    assert close(tangent, (torch.ones_like(left) @ right).flatten()[:7])


def test_compiles_into_one_graph() -> None:
    torch.compiler.reset()
    pair = operands()
    compiled = torch.compile(partial(cut_product, at=7), fullgraph=True, backend="aot_eager")
    own, other = (torch.autograd.grad(weighted(c, *pair), pair) for c in (compiled, partial(plain, at=7)))
    assert all(map(close, own, other))


def test_a_backward_makes_nothing_as_large_as_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both gradients are read where they are: only the row that the cut goes through is copied."""
    made: list[int] = []
    joined = torch.cat

    def noted(tensors: list[Tensor]) -> Tensor:
        made.append(sum(tensor.numel() for tensor in tensors))
        return joined(tensors)

    first, rest = cut_product(*operands(), 7)
    monkeypatch.setattr(torch, "cat", noted)
    (first.sum() + rest.sum()).backward()
    assert made == [COLUMNS, ROWS * INNER]


@pytest.mark.parametrize(
    "equation", ["ab,bc->ac", "ab,bc->ca", "ab,bc,cd->ad", "xab,xbc->xac", "ab->ba", "ab,cb,b->ac"]
)
@pytest.mark.parametrize("at", [0, 3, 5, 6])
def test_plans_are_cut_as_their_results(equation: str, at: int) -> None:
    sizes = {"a": 3, "b": 2, "c": 4, "d": 5, "x": 2}
    shapes = [[sizes[leg] for leg in term] for term in equation.split("->")[0].split(",")]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    run = plan(equation, *shapes)
    first, rest = run.cut(at, *tensors)
    assert first.shape == (at,)
    assert close(torch.cat([first, rest]), run(*tensors).flatten())
    own = torch.autograd.grad((first.sum() + 2 * rest.square().sum()), tensors)
    flat = run(*tensors).flatten()
    other = torch.autograd.grad((flat[:at].sum() + 2 * flat[at:].square().sum()), tensors)
    assert all(map(close, own, other))
