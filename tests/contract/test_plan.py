"""Plans: equal to numpy's einsum whatever the equation, with honest costs, and never searching again."""

import math
import pickle

import numpy as np
import opt_einsum
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.tolerance import close
from tntune.contract import Plan, candidates, plan, timed, train_routes
from tntune.errors import ModeError, SpecError

EQUATIONS = [
    # one operand: nothing, sums, permutations, scalars
    "a->a",
    "a->",
    "->",
    "ab->ba",
    "abc->cab",
    "abc->b",
    "abcd->ca",
    # two: products, batches, outer products, sums of legs that nobody shares
    "a,a->",
    "a,a->a",
    "a,b->ab",
    "a,b->ba",
    "ab,b->a",
    "ab,bc->ac",
    "ab,bc->ca",
    "ba,cb->ac",
    "abc,abd->acd",
    "bac,dab->acd",
    "abc,abc->",
    "abc,abc->b",
    "abc,cd->ab",
    "abc,cde->bd",
    "ab,cd->",
    "ab,cd->dbca",
    ",ab->ba",
    ",->",
    "ab,ab->ba",
    # three and more
    "ab,bc,cd->ad",
    "ab,bc,cd->",
    "a,b,c->cab",
    "a,a,a->a",
    "a,a,a->",
    "ab,ac,ad->bcd",
    "ab,ac,ad->abcd",
    "abc,bd,ce->ade",
    "abx,bcx,cdx->xad",
    "ab,bc,ca->",
    "ab,,bc->ca",
    "abc,cde,efg,gha->bdfh",
    # trains with a latent, a site leg, and open bonds
    "amb,bnc,cpd->mnp",
    "axmb,bync,xy->mn",
    "axmb,bync,czpd,xyz->mnp",
    "axmb,bync,czpd->xyzmnp",
    "axmb,bync,czpd,dwqe,xyzw->qmpn",
    "asmb,bsnc,cspd,s->smnp",
    "ab,bc,cd,de,ef,fg->ag",
    "a,b,c,d,e,f,g->gfedcba",
    "ab,bc,cd,de,ef,fa,ad->be",
]

SIZES = dict(zip("abcdefghmnpqswxyz", [2, 3, 4, 2, 3, 2, 3, 2, 3, 4, 2, 3, 2, 2, 3, 2, 4], strict=True))


def shapes_of(equation: str, sizes: dict[str, int]) -> list[tuple[int, ...]]:
    return [tuple(sizes[leg] for leg in term) for term in equation.split("->")[0].split(",")]


def random(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def dense(equation: str, tensors: list[Tensor]) -> Tensor:
    return torch.from_numpy(np.asarray(np.einsum(equation, *(tensor.numpy() for tensor in tensors))))


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """Up to five operands over up to six legs, with any output, legs of size one included."""
    legs = "abcdef"
    sizes = {leg: draw(st.integers(1, 3)) for leg in legs}
    term = st.lists(st.sampled_from(legs), unique=True, max_size=4).map("".join)
    terms = draw(st.lists(term, min_size=1, max_size=5))
    present = sorted(set("".join(terms)))
    output = draw(st.permutations(present))[: draw(st.integers(0, len(present)))]
    return f"{','.join(terms)}->{''.join(output)}", sizes


@pytest.mark.parametrize("equation", EQUATIONS)
def test_equals_einsum(equation: str, device: torch.device) -> None:
    tensors = random(shapes_of(equation, SIZES))
    run = plan(equation, *(tensor.shape for tensor in tensors))
    assert close(run(*(tensor.to(device) for tensor in tensors)), dense(equation, tensors))


@given(equations(), st.sampled_from(["auto", "greedy", "optimal"]), st.integers(0, 99))
def test_equals_einsum_for_drawn_equations(drawn: tuple[str, dict[str, int]], finder: str, seed: int) -> None:
    equation, sizes = drawn
    shapes = shapes_of(equation, sizes)
    tensors = random(shapes, seed)
    assert close(plan(equation, *shapes, optimize=finder)(*tensors), dense(equation, tensors))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_steps_are_einsums_of_at_most_two(equation: str) -> None:
    """Each step alone is numpy's einsum of its own equation; chained, they make the whole."""
    work = random(shapes_of(equation, SIZES))
    run = plan(equation, *(tensor.shape for tensor in work))
    for step in run.steps:
        operands = [work[position] for position in step.positions]
        assert len(operands) <= 2
        work = [tensor for i, tensor in enumerate(work) if i not in step.positions]
        work.append(step(operands))
        assert close(work[-1], dense(step.equation, operands))
    assert len(work) == 1
    assert run.steps[-1].equation.split("->")[1] == equation.split("->")[1]


@pytest.mark.parametrize("equation", EQUATIONS)
def test_flops_and_peak_recomputed(equation: str) -> None:
    run = plan(equation, *shapes_of(equation, SIZES))
    steps = [step.equation.split("->") for step in run.steps]
    assert run.flops == sum(flops_of(inputs.split(","), output) for inputs, output in steps)
    assert run.peak == max(volume(output) for _, output in steps)


def flops_of(terms: list[str], output: str) -> int:
    """One addition per entry of a leg that is summed alone, then two for each product of entries."""
    total, kept = 0, []
    for i, term in enumerate(terms):
        others = set(output).union(*(other for j, other in enumerate(terms) if j != i))
        kept.append([leg for leg in term if leg in others])
        total += volume(term) if len(kept[-1]) < len(term) else 0
    return total + (2 * volume(set().union(*kept)) if len(terms) == 2 else 0)


def volume(legs: object) -> int:
    return math.prod(SIZES[leg] for leg in legs)


def test_the_path_is_the_cheap_one() -> None:
    """A vector at the end of a chain of matrices is carried through: no matrix is ever formed."""
    run = plan("ab,bc,cd,d->a", (50, 50), (50, 50), (50, 50), (50,))
    assert run.flops == 3 * 2 * 50 * 50
    assert run.peak == 50


def test_no_search_at_call_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random(shapes_of("abc,cde,efg,gha->bdfh", SIZES))
    run = plan("abc,cde,efg,gha->bdfh", *(tensor.shape for tensor in tensors))
    monkeypatch.setattr(opt_einsum, "contract_path", _never)
    assert close(run(*tensors), dense(run.equation, tensors))
    with pytest.raises(AssertionError, match="searched"):
        plan("ab,bc,cd->ad", (29, 3), (3, 4), (4, 2))


def _never(*arguments: object, **options: object) -> None:
    raise AssertionError("searched")


def test_a_plan_is_a_value() -> None:
    first, second = (plan("ab,bc,cd->ad", (2, 3), (3, 4), (4, 5)) for _ in range(2))
    other = plan("ab,bc,cd->ad", (2, 3), (3, 4), (4, 6))
    again = pickle.loads(pickle.dumps(first))
    assert first == second == again
    assert hash(first) == hash(again)
    assert first != other
    tensors = random(list(first.shapes))
    assert torch.equal(again(*tensors), first(*tensors))


def test_prints_its_costs() -> None:
    lines = str(plan("ab,bc,cd->ad", (2, 300), (300, 3), (3, 4))).splitlines()
    assert lines[0] == "ab,bc,cd->ad: 3,648 flops, largest intermediate 8 entries"
    assert [line.split()[0] for line in lines[1:]] == ["1.", "2."]
    assert "steps" not in repr(plan("a->a", (2,)))


TRANSFORMED = ["ab,bc,cd->ad", "axmb,bync,xy->mn", "asmb,bsnc,cspd,s->smnp", "abc->b", "ab,cd->dbca"]


@pytest.mark.parametrize("equation", TRANSFORMED)
def test_compiles_into_one_graph(equation: str) -> None:
    torch.compiler.reset()
    tensors = random(shapes_of(equation, SIZES))
    run = plan(equation, *(tensor.shape for tensor in tensors))
    compiled = torch.compile(lambda *own: run(*own), fullgraph=True, backend="aot_eager")
    assert close(compiled(*tensors), run(*tensors))


@pytest.mark.parametrize("equation", TRANSFORMED)
def test_vmap_and_jacrev(equation: str) -> None:
    shapes = shapes_of(equation, SIZES)
    run, batch = plan(equation, *shapes), [random(shapes, seed) for seed in range(3)]
    stacked = [torch.stack(tensors) for tensors in zip(*batch, strict=True)]
    together = torch.func.vmap(run)(*stacked)
    assert all(close(together[i], run(*tensors)) for i, tensors in enumerate(batch))
    jacobian = torch.func.jacrev(run)(*batch[0])
    assert close(torch.tensordot(jacobian, batch[0][0], dims=len(shapes[0])), run(*batch[0]))  # it is linear


@pytest.mark.parametrize("equation", TRANSFORMED)
def test_gradcheck(equation: str) -> None:
    tensors = [tensor.requires_grad_() for tensor in random(shapes_of(equation, SIZES))]
    assert torch.autograd.gradcheck(plan(equation, *(tensor.shape for tensor in tensors)), tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    tensors = [tensor.to(dtype) for tensor in random(shapes_of("axmb,bync,xy->mn", SIZES))]
    found = plan("axmb,bync,xy->mn", *(tensor.shape for tensor in tensors))(*tensors)
    assert found.dtype == dtype
    wide = [tensor.to(torch.complex128 if dtype.is_complex else torch.float64) for tensor in tensors]
    assert close(found, dense("axmb,bync,xy->mn", wide))


def test_calls_with_other_shapes() -> None:
    run = plan("ab,bc->ac", (2, 3), (3, 4))
    with pytest.raises(
        ModeError, match=r"made for shapes \(\(2, 3\), \(3, 4\)\), not for \(\(2, 3\), \(3, 5\)\)"
    ):
        run(torch.ones(2, 3), torch.ones(3, 5))
    with pytest.raises(ModeError, match="was made for shapes"):
        run(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ab,bc", [(2, 3), (3, 4)], "needs exactly one '->'"),
        ("a->b->c", [(2,)], "needs exactly one '->'"),
        ("ab,bc->ac", [(2, 3)], "has 2 operands, but 1 shapes were given"),
        ("ab->a", [(2, 3, 4)], r"operand 'ab' of 'ab->a' does not fit the shape \(2, 3, 4\)"),
        ("aa->a", [(2, 2)], "operand 'aa' of 'aa->a' does not fit"),
        ("ab->a", [(2, 0)], r"operand 'ab' of 'ab->a' does not fit the shape \(2, 0\)"),
        ("ab,bc->ac", [(2, 3), (4, 5)], "leg 'b' of 'ab,bc->ac' has size 3 and size 4"),
        ("ab->aa", [(2, 3)], "output 'aa' of 'ab->aa' repeats a leg"),
        ("ab->ac", [(2, 3)], "output 'ac' of 'ab->ac' repeats a leg or has one that no operand has"),
        ("ab, bc->ac", [(2, 3), (3, 4)], "operand ' bc' of"),
    ],
)
def test_equations_that_are_refused(equation: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModeError, match=message):
        plan(equation, *shapes)


def test_unknown_path_finders_are_refused() -> None:
    with pytest.raises(SpecError, match="opt_einsum has no path finder 'fastest'"):
        plan("ab,bc->ac", (2, 3), (3, 4), optimize="fastest")


def test_a_plan_holds_no_tensors() -> None:
    run = plan("ab,bc->ac", (2, 3), (3, 4))
    assert isinstance(run, Plan)
    assert not any(isinstance(value, Tensor) for step in run.steps for value in vars(step).values())


PATHS = {
    "left to right": ((0, 1), (3, 0), (2, 0), (1, 0)),
    "halves": ((0, 1), (0, 1), (0, 2), (0, 1)),
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_any_path_gives_the_same(path: tuple) -> None:
    equation = "amb,bnc,cpd,dqe,x->mnpqx"
    shapes = [(1, 4, 2), (2, 3, 3), (3, 2, 2), (2, 5, 1), (2,)]
    tensors = random(shapes)
    free = plan(equation, *shapes)
    assert plan(equation, *shapes, paths={"given": path}).cost <= free.cost
    assert close(plan(equation, *shapes, paths={"given": path})(*tensors), torch.einsum(equation, *tensors))


def test_the_cheapest_of_the_given_paths_is_taken() -> None:
    equation, shapes = "ab,bc,cd->ad", [(2, 300), (300, 3), (3, 4)]
    found = plan(equation, *shapes)
    assert (
        plan(equation, *shapes, paths={"right to left": ((1, 2), (0, 1))}) == found
    )  # right to left is dearer
    dear = plan(equation, *shapes, optimize="auto").cost
    assert dear == found.cost


def test_a_result_in_the_wanted_order_is_not_copied() -> None:
    assert plan("ab,bc->ac", (2, 3), (3, 4)).steps[0].copies == 0
    assert plan("ab,bc->ca", (2, 3), (3, 4)).steps[0].copies == 0  # the operands are exchanged
    assert plan("abx,bcx->acx", (2, 3, 2), (3, 4, 2)).steps[0].copies == 16


CHAIN = ("ab,bc,cd->ad", [(2, 300), (300, 3), (3, 4)])
FROM_THE_RIGHT = {"from the right": ((1, 2), (0, 1)), "again": ((1, 2), (0, 1))}


def test_candidates_are_the_plan_and_what_it_was_chosen_from() -> None:
    equation, shapes = CHAIN
    chosen = plan(equation, *shapes, paths=FROM_THE_RIGHT)
    found = candidates(chosen)
    assert found[0] == chosen
    assert [one.route for one in found] == ["opt_einsum", "from the right"]  # equal steps count once
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    tensors = random(shapes)
    assert all(close(one(*tensors), dense(equation, tensors)) for one in found)
    assert candidates(found[1])[0] == chosen


def test_a_dear_path_is_taken_only_where_no_other_is_known() -> None:
    equation, shapes = "abc,cde,efg->abdfg", [(1, 20, 2), (2, 20, 2), (2, 20, 1)]
    chosen = plan(equation, *shapes, paths=train_routes(3, has_z=False))
    assert chosen.route in ("opt_einsum", *train_routes(3, has_z=False))
    assert chosen.cost == min(one.cost for one in candidates(chosen))


def test_timed() -> None:
    """One number for each plan, in their order; what is larger by orders of magnitude takes longer."""
    small, large = plan("ab,bc->ac", (2, 3), (3, 4)), plan("ab,bc->ac", (900, 900), (900, 900))
    assert len(timed(candidates(plan(*CHAIN[:1], *CHAIN[1], paths=FROM_THE_RIGHT)), rounds=3)) == 2
    assert timed([small], rounds=3)[0] < timed([large], rounds=3)[0]
