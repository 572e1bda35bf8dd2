"""Laws: a compact train has the spectrum of the train itself; whitened rows are G in a basis of ran J."""

import pytest
import torch
from torch import Tensor

from tests.report.sample import MAPS, expanded, layer_of
from tests.support.tolerance import close
from tntune.errors import ModeError
from tntune.report import CountedSpectrum, compact
from tntune.report.conditioning import layer_blocks
from tntune.theory import TrainJacobian, jacobian, map_jacobian


def eigenvalues(j: Tensor) -> Tensor:
    """Non-zero eigenvalues of ``J Jᵀ``, descending."""
    values = torch.linalg.svdvals(j)
    return values[values > 1e-11 * values[0]].square()


@pytest.mark.parametrize("name", [name for name in MAPS if name != "lora"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (2.0, 0.5)])
def test_spectrum_is_that_of_the_dense_jacobian(name: str, scales: tuple[float, float]) -> None:
    layer = layer_of(MAPS[name])
    map, tensors = layer.site.map, layer.tensors
    found = map_jacobian(map, tensors, tensors, down_scale=scales[0], up_scale=scales[1])
    (spectrum, *others) = [compact(block).spectrum() for block in found.blocks]
    for other in others:
        spectrum = spectrum.joined(other)
    dense = jacobian(map, tensors, tensors)
    if map.factor_width == map.width:  # the mean's factors are scaled copies of more entries than rows here
        rows = map.width * map.in_features
        dense = torch.cat([scales[0] * dense[:rows], scales[1] * dense[rows:]])
        assert close(expanded(spectrum.values, spectrum.counts), eigenvalues(dense))
    assert spectrum.size == map.num_parameters
    assert spectrum.rank + spectrum.nullity == spectrum.size
    assert close(torch.tensor(spectrum.trace), found.gram().trace())


def test_a_lora_delta_has_the_closed_form() -> None:
    """``J Jᵀ = down^T down ⊗ 1 + 1 ⊗ up up^T``: sums of squared singular values, with and without zeros."""
    layer = layer_of(MAPS["lora"])
    (block,) = layer_blocks(layer)
    spectrum = compact(block).spectrum()
    down, up = (torch.linalg.svdvals(factor).square() for factor in layer.factors)
    sums = (down[:, None] + up[None, :]).flatten()
    expected = torch.cat([sums, down.repeat(20 - 3), up.repeat(12 - 3)]).sort(descending=True).values
    assert close(expanded(spectrum.values, spectrum.counts), expected)
    assert spectrum.nullity == 9


@pytest.mark.parametrize("name", MAPS)
def test_a_spare_slice_carries_every_distinct_value(name: str) -> None:
    for block in layer_blocks(layer_of(MAPS[name])):
        whole = compact(block).spectrum()
        small = compact(block, spare=1).small
        found = CountedSpectrum.of(
            [(v, 1) for v in small.singular_values().square().tolist()], size=block.num_parameters
        )
        assert close(torch.tensor(found.values), torch.tensor(whole.values))


@pytest.mark.parametrize("name", MAPS)
def test_whitened_rows_have_the_gram_of_the_projected_gradient(name: str) -> None:
    for block in layer_blocks(layer_of(MAPS[name])):
        gram = block.gram()
        draw = torch.Generator().manual_seed(0)
        rows = torch.randn(5, block.num_parameters, dtype=torch.float64, generator=draw) @ gram
        expected = rows @ torch.linalg.pinv(gram, rtol=1e-11, hermitian=True) @ rows.mT
        made = compact(block).whitened(rows)
        assert close(made @ made.mT, expected)


def test_modes_shrink_to_what_the_cores_admit() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = ((1, 400, 3), (3, 50, 2), (2, 70, 1))
    block = TrainJacobian.plain([torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes])
    assert compact(block).small.modes == (3, 6, 2)
    assert compact(block).spectrum().nullity == 9 + 4


def test_rows_of_another_train_are_refused() -> None:
    with pytest.raises(ModeError, match="rows have 3 columns, not shape"):
        compact(TrainJacobian.plain([torch.ones(1, 3, 1)])).whitened(torch.ones(2, 4))


def test_counted_spectra_know_their_effective_ranks() -> None:
    found = CountedSpectrum.of([(2.0, 3), (1.0, 1), (0.0, 2)], size=6)
    values = torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    shares = values / values.sum()
    ranks = found.effective_ranks
    assert close(torch.tensor(ranks["stable"]), values.sum() / 2)
    assert close(torch.tensor(ranks["participation"]), values.sum() ** 2 / values.square().sum())
    assert close(torch.tensor(ranks["entropy"]), torch.exp(-(shares * shares.log()).sum()))
    zero = CountedSpectrum.of([(0.0, 4)], size=4)
    assert (zero.rank, zero.condition, zero.effective_ranks["entropy"]) == (0, None, 0.0)
