"""Canonical forms keep the tensor and are orthogonal; bond spectra are those of the dense unfoldings."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.oracles import spectra_of
from tests.support.strategies import HALF, WIDE, random_train, regauged, trains
from tests.support.tolerance import close
from tntune.errors import ModeError, NumericalError
from tntune.tt.orthogonal import orthogonalize
from tntune.tt.rounding import bond_spectra
from tntune.tt.train import Train, cores, dense, flatten, modes, ranks, tt_tensor, working_cores

DOUBLE = (torch.float64, torch.complex128)


@given(trains(dtypes=(*WIDE, *HALF)), st.data())
def test_any_centre_keeps_the_tensor(x: Train, data: st.DataObject) -> None:
    centre = data.draw(st.integers(-len(cores(x)), len(cores(x)) - 1))
    canonical = orthogonalize(x, centre)
    assert close(dense(canonical), dense(x))
    assert modes(canonical) == modes(x)
    assert cores(canonical)[0].dtype == cores(x)[0].dtype


@given(trains(), st.data())
def test_cores_before_and_after_the_centre_are_orthogonal(x: Train, data: st.DataObject) -> None:
    centre = data.draw(st.integers(0, len(cores(x)) - 1))
    canonical = working_cores(orthogonalize(x, centre))
    for core in canonical[:centre]:
        left = core.flatten(0, 1)
        assert close(left.mH @ left, torch.eye(left.shape[1], dtype=left.dtype))
    for core in canonical[centre + 1 :]:
        right = core.flatten(1)
        assert close(right @ right.mH, torch.eye(right.shape[0], dtype=right.dtype))
    assert close(canonical[centre].norm(), dense(x).norm())


@given(trains())
def test_ranks_do_not_rise(x: Train) -> None:
    assert all(new <= old for new, old in zip(ranks(orthogonalize(x, 0)), ranks(x), strict=True))


def test_negative_centres_count_from_the_end() -> None:
    x = random_train((2, 3, 4), (1, 2, 3, 1), dtype=torch.float64, seed=0)
    for centre in range(3):
        pairs = zip(cores(orthogonalize(x, centre)), cores(orthogonalize(x, centre - 3)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("centre", [-3, 2])
def test_there_is_no_such_core(centre: int) -> None:
    x = random_train((2, 3), (1, 2, 1), dtype=torch.float64, seed=0)
    with pytest.raises(ModeError, match=f"centre {centre} is not among the 2 cores"):
        orthogonalize(x, centre)


@given(trains(dtypes=DOUBLE))
def test_spectra_are_those_of_the_unfoldings(x: Train) -> None:
    found, expected = bond_spectra(x), spectra_of(dense(flatten(x)).numpy())
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert close(ours, torch.from_numpy(theirs)[: len(ours)])
        assert theirs[len(ours) :].sum() <= theirs.sum() * torch.finfo(torch.float32).eps


@given(trains(dtypes=DOUBLE))
def test_spectra_do_not_depend_on_the_gauge(x: Train) -> None:
    for own, other in zip(bond_spectra(x), bond_spectra(regauged(x, seed=3)), strict=True):
        assert close(own, other)


def test_spectra_of_half_precision_are_float32() -> None:
    x = random_train((2, 3), (1, 2, 1), dtype=torch.bfloat16, seed=0)
    assert bond_spectra(x)[0].dtype == torch.float32


def test_the_canonical_form_is_differentiable() -> None:
    x = random_train((3, 4, 3), (1, 2, 2, 1), dtype=torch.float64, seed=0)

    def first_singular_subspace(*own: Tensor) -> Tensor:
        left = cores(orthogonalize(tt_tensor(own)))[0].flatten(0, 1)
        return left @ left.mT

    assert torch.autograd.gradcheck(first_singular_subspace, [core.requires_grad_() for core in cores(x)])


def test_entries_that_are_not_finite_have_no_spectra() -> None:
    x = random_train((2, 3), (1, 2, 1), dtype=torch.float64, seed=0)
    cores(x)[1][0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        bond_spectra(x)
