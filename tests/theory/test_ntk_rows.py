"""The Gram of sums of outer products, beside the rows written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.tolerance import close
from tntune.errors import ModeError, SpecError
from tntune.theory.ntk_rows import OUTPUTS, Outer, Rows, factor, gram, outputs_of


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """One to three parameters of one to three terms; axes of samples and outputs of full size or 1."""
    samples, outputs = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def part(size: int) -> Tensor:
        axes = [draw(st.sampled_from((1, full))) for full in (samples, outputs)]
        return torch.randn(*axes, size, dtype=torch.float64, generator=generator)

    whole = torch.randn(samples, outputs, 2, dtype=torch.float64, generator=generator)
    found: dict[str, list[Outer]] = {"plain": [Outer(whole)]}
    for k in range(draw(st.integers(1, 2))):
        p, q = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        plain = draw(st.booleans())
        count = draw(st.integers(1, 3))
        found[f"p{k}"] = [Outer(part(p), None if plain else part(q)) for _ in range(count)]
    return found


@pytest.mark.statement("N1")
@given(rows())
def test_gram_is_the_gram_of_the_factor(drawn: Rows) -> None:
    samples, outputs = outputs_of(drawn)
    a = factor(drawn)
    whole = (a @ a.T).reshape(samples, outputs, samples, outputs)
    wanted = {
        "full": a @ a.T,
        "trace": torch.einsum("icjc->ij", whole),
        "per_class": torch.einsum("icjc->cij", whole),
    }
    for output in OUTPUTS:
        assert close(gram(drawn, output), wanted[output])


def test_gram_of_many_blocks_is_symmetric_and_right() -> None:
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(400, c, 3, dtype=torch.float64, generator=generator) for c in (1, 5))
    drawn = {"down": (Outer(x, v),), "bias": (Outer(v),)}
    a, kernel = factor(drawn), gram(drawn)
    assert torch.equal(kernel, kernel.T)
    assert close(kernel, a @ a.T)


def test_columns_are_those_of_the_factor() -> None:
    terms = [Outer(torch.ones(2, 1, 3), torch.ones(2, 2, 4)), Outer(torch.ones(2, 2, 5))]
    assert [term.columns for term in terms] == [factor({"p": [term]}).shape[1] for term in terms]


def test_errors() -> None:
    term = Outer(torch.ones(2, 3, 4))
    with pytest.raises(SpecError, match="output must be one of full, trace, per_class, not 'all'"):
        gram({"p": [term]}, "all")
    with pytest.raises(ModeError, match="no gradients"):
        gram({})
    with pytest.raises(ModeError, match=r"rows of 5 samples and 3 outputs do not fit rows of \(2, 3\)"):
        gram({"p": [term], "q": [Outer(torch.ones(5, 3, 1))]})
    with pytest.raises(ModeError, match=r"not shape \(2, 3\)"):
        Outer(torch.ones(2, 3))
    mixed = {"p": [term, Outer(torch.ones(2, 3, 2), torch.ones(2, 3, 2))]}
    for output in OUTPUTS:
        with pytest.raises(ModeError, match="terms of p must be all outer products or all plain rows"):
            gram(mixed, output)
