"""Laws of the task norm: dense oracles, optimality, plain Frobenius as a special case."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.convert.sample import same
from tests.support.tolerance import close
from tntune.checkpoint import Calibration
from tntune.convert.form import Form, mean_eigenvalue
from tntune.convert.gauge import balance
from tntune.convert.norm import LayerNorm, Norm, weighted_balance
from tntune.errors import ModeError, NumericalError, SpecError, TargetError
from tntune.maps.base import Factors

IN, OUT, RANK = 7, 5, 3


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def calibration(seed: int, *, rows: int = 2 * IN) -> Calibration:
    """Moments of random vectors; with few rows the rows themselves."""
    inputs, outputs = randn(rows, IN, seed=seed), randn(2 * OUT, OUT, seed=seed + 1)
    moment = inputs if rows < IN else inputs.T @ inputs
    return Calibration({"fc": moment}, {"fc": outputs.T @ outputs}, {"fc": "fc"})


def factors(seed: int) -> Factors:
    return Factors(randn(RANK, IN, seed=seed + 2), randn(OUT, RANK, seed=seed + 3))


def roots(norm: LayerNorm) -> tuple[Tensor, Tensor]:
    """Dense C^½ and G^½."""
    found = []
    for form in norm:
        values, vectors = torch.linalg.eigh(form.apply(torch.eye(form.size, dtype=torch.float64)))
        found.append((vectors * values.sqrt()) @ vectors.T)
    return found[0], found[1]


@given(seed=st.integers(0, 999), rows=st.sampled_from((3, 2 * IN)), damping=st.sampled_from((0.01, 0.1, 2.0)))
def test_the_norm_is_that_of_the_dense_matrix(seed: int, rows: int, damping: float) -> None:
    norm = Norm(calibration(seed, rows=rows), damping).layer("fc", (OUT, IN))
    inputs, outputs = roots(norm)
    one, two = factors(seed), factors(seed + 10)
    assert same(norm.squared(one), (outputs @ one.up @ one.down @ inputs).square().sum())
    gap = one.up @ one.down - two.up @ two.down
    assert same(norm.squared_distance(one, two), (outputs @ gap @ inputs).square().sum())


@given(seed=st.integers(0, 999))
def test_small_distances_are_as_right_as_large_ones(seed: int) -> None:
    norm = Norm(calibration(seed)).layer("fc", (OUT, IN))
    one, gap = factors(seed), factors(seed + 10)
    tiny = Factors(torch.cat([one.down, gap.down]), torch.cat([one.up, 1e-7 * gap.up], dim=1))
    assert same(norm.squared_distance(one, tiny) / 1e-14, norm.squared(gap), factor=1e4)


@given(seed=st.integers(0, 999))
def test_damping_mixes_each_side_with_the_identity_and_keeps_the_weight(seed: int) -> None:
    made = calibration(seed)
    inputs, outputs = made.moments("fc")
    norm = Norm(made, 0.5).layer("fc", (OUT, IN))
    weight = mean_eigenvalue(inputs) * mean_eigenvalue(outputs)
    assert same(norm.inputs.mean * norm.outputs.mean, weight)
    mixed = (inputs / mean_eigenvalue(inputs) + 0.5 * torch.eye(IN)) / 1.5
    assert close(norm.inputs.apply(torch.eye(IN, dtype=torch.float64)) / norm.inputs.mean, mixed)


@given(seed=st.integers(0, 999))
def test_weighted_factors_are_the_same_matrix_balanced_in_the_norm(seed: int) -> None:
    norm = Norm(calibration(seed)).layer("fc", (OUT, IN))
    own = factors(seed)
    down, up, values = weighted_balance(own, norm)
    assert close(up @ down, own.up @ own.down)
    assert close(norm.inputs.gram(down.T), torch.diag(values))
    assert close(norm.outputs.gram(up), torch.diag(values))


@given(seed=st.integers(0, 999), rank=st.integers(1, RANK - 1))
def test_the_leading_ones_are_the_best_of_their_rank(seed: int, rank: int) -> None:
    norm = Norm(calibration(seed)).layer("fc", (OUT, IN))
    own = factors(seed)
    inputs, outputs = roots(norm)
    best = torch.linalg.svdvals(outputs @ own.up @ own.down @ inputs)[rank:].square().sum()
    down, up, _ = weighted_balance(own, norm)
    assert same(norm.squared_distance(own, Factors(down[:rank], up[:, :rank])), best, factor=10)


def test_without_a_calibration_it_is_frobenius_and_the_balanced_gauge() -> None:
    own = factors(0)
    norm = Norm().layer("fc", (OUT, IN))
    assert same(norm.squared(own), (own.up @ own.down).square().sum())
    assert close(weighted_balance(own, norm).values, balance(*own).values)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SpecError, match="damping must be a number above 0, not 0"):
        Norm(damping=0.0)
    with pytest.raises(TargetError, match="other: the calibration has no such layer"):
        Norm(calibration(0)).layer("other", (OUT, IN))
    with pytest.raises(ModeError, match=r"fc: is \(5, 8\), in the calibration \(5, 7\)"):
        Norm(calibration(0)).layer("fc", (OUT, 8))
    blind = LayerNorm(Form(IN, torch.zeros(IN, IN), 0.0), Form(OUT))
    with pytest.raises(NumericalError, match="the task norm does not see this layer"):
        weighted_balance(factors(0), blind)
