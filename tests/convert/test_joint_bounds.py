"""Laws of the bounds on joint trains: none is below, one is not above, and both are sharp somewhere."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.convert.sample import same
from tests.convert.shared import of_one_shape
from tests.support.tolerance import close
from tntune.convert.form import Form
from tntune.convert.gauge import balance
from tntune.convert.joint import JointProblem
from tntune.convert.joint_bounds import joint_bounds, joint_spectra
from tntune.convert.norm import LayerNorm
from tntune.maps.base import Factors
from tntune.maps.build import build_map
from tntune.maps.layout import Geometry
from tntune.maps.lora import LoRA


def plain(own: list[Factors]) -> list[LayerNorm]:
    """The Frobenius norm of each layer."""
    return [LayerNorm(Form(each.down.shape[1]), Form(each.up.shape[0])) for each in own]


def dense(own: list[Factors]) -> Tensor:
    """Every ΔW, (layers, out, in)."""
    return torch.stack([(each.up @ each.down).double() for each in own])


def leading(unfolding: Tensor, rank: int) -> Tensor:
    """The projection on the leading left singular vectors."""
    basis = torch.linalg.svd(unfolding, full_matrices=False)[0][:, :rank]
    projection: Tensor = basis @ basis.mT
    return projection


@pytest.mark.statement("C3")
@given(seed=st.integers(0, 99), rank=st.integers(1, 8), width=st.integers(1, 4))
def test_the_best_train_lies_between_the_bounds(seed: int, rank: int, width: int) -> None:
    own, width = of_one_shape(seed), min(rank, width)
    deltas = dense(own)
    bounds = joint_bounds(joint_spectra([balance(*each) for each in own]), rank, width)
    outputs = leading(deltas.movedim(0, 2).flatten(1), rank)
    inputs = leading(deltas.movedim(2, 0).flatten(1), rank)
    u, values, vh = torch.linalg.svd(outputs @ deltas @ inputs)
    projected = u[..., :width] * values[:, None, :width] @ vh[:, :width]
    reached = float(torch.linalg.vector_norm(deltas - projected) / torch.linalg.vector_norm(deltas))
    fitted = max(0.0, JointProblem(own, plain(own)).fit(rank, width, sweeps=3).history[-1]) ** 0.5
    slack = 1e-6  # the root of what rounding leaves of a square
    assert bounds.lower <= min(reached, fitted) + slack
    assert reached <= bounds.upper + slack


@pytest.mark.statement("C3")
def test_spectra_are_those_of_the_dense_unfoldings() -> None:
    own = of_one_shape(3)
    deltas = dense(own)
    spectra = joint_spectra([balance(*each) for each in own])
    stacked = torch.linalg.svdvals(deltas.flatten(0, 1)).square()
    beside = torch.linalg.svdvals(deltas.movedim(0, 2).flatten(1)).square()
    assert close(spectra.inputs, stacked[: len(spectra.inputs)])
    assert close(spectra.outputs, beside[: len(spectra.outputs)])
    assert same(float(spectra.inputs.sum()), float(deltas.square().sum()), factor=10)


@pytest.mark.statement("C3")
def test_both_bounds_are_the_error_where_layers_differ_by_a_number_only() -> None:
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 9, generator=draw), torch.randn(8, 4, generator=draw)
    own = [Factors(down.double(), (k + 1.0) * up.double()) for k in range(5)]
    spectra = joint_spectra([balance(*each) for each in own])
    bounds = joint_bounds(spectra, 4, 2)
    fit = JointProblem(own, plain(own)).fit(4, 2, sweeps=2)
    assert same(bounds.lower, bounds.upper, factor=1000)
    assert same(bounds.lower, fit.history[-1] ** 0.5, factor=1000)


@pytest.mark.statement("C1")
@pytest.mark.parametrize("pattern", ["io w", "f1 f2 (side w)", "side f1 f2 w", "io (side w)"])
def test_no_train_of_one_layer_is_below_its_svd(pattern: str) -> None:
    draw = torch.Generator().manual_seed(1)
    map = build_map("tensorguide", Geometry(12, 10, 6), rank=3, layout=pattern, start="random")
    params, fixed = map.init(draw, dtype=torch.float64)
    downs, ups = map.factors(params, fixed)
    kept = int(torch.linalg.matrix_rank(ups[0] @ downs[0]))
    target = torch.randn(10, 12, generator=draw, dtype=torch.float64)
    values = torch.linalg.svdvals(target)
    best = float(values[kept:].square().sum()) ** 0.5
    assert float(torch.linalg.vector_norm(target - ups[0] @ downs[0])) >= best


@pytest.mark.statement("C2")
def test_sharing_pays_by_the_ratio_of_spans() -> None:
    inside, outside, layers, rank, width = 40, 30, 12, 5, 2
    draw = torch.Generator().manual_seed(2)
    inputs, outputs = (torch.randn(n, rank, generator=draw, dtype=torch.float64) for n in (inside, outside))
    own = []
    for _ in range(layers):
        down, up = (torch.randn(rank, width, generator=draw, dtype=torch.float64) for _ in range(2))
        own.append(Factors((inputs @ down).mT, outputs @ up))
    spectra = joint_spectra([balance(*each) for each in own])
    assert joint_bounds(spectra, rank, width).upper < 1e-6 < joint_bounds(spectra, rank - 1, width).lower
    together = rank * (inside + outside + 2 * layers * width)
    apart = layers * LoRA(inside, outside, width).num_parameters
    assert together / apart < rank / (layers * width) + 2 * rank / (inside + outside) + 1e-12
