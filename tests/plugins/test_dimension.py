"""Law: points that fill d directions have dimension d, wherever they lie and however they are scaled."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.errors import NumericalError, SpecError
from tntune.plugins import growth_sizes, intrinsic_dimension


def cube(d: int, *, points: int = 1500, features: int = 12) -> torch.Tensor:
    """Uniform points of a cube of d directions in more features."""
    generator = torch.Generator().manual_seed(d)
    inside = torch.rand(points, d, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(torch.randn(features, d, dtype=torch.float64, generator=generator))[0]
    return inside @ basis.mT


@pytest.mark.parametrize("d", [1, 2, 4])
def test_a_cube_has_its_dimension(d: int) -> None:
    assert abs(intrinsic_dimension(cube(d)) - d) < 0.15 * d


def test_a_curve_in_space_has_dimension_one() -> None:
    t = torch.rand(1500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spiral = torch.stack([torch.cos(9 * t), torch.sin(9 * t), t], dim=1)
    assert abs(intrinsic_dimension(spiral) - 1) < 0.1


def test_motions_scales_and_repetition_change_nothing() -> None:
    points = cube(3, points=400)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    moved = 7 * (points @ turn) + 1
    wanted = torch.tensor(intrinsic_dimension(points))
    assert close(torch.tensor(intrinsic_dimension(moved)), wanted)
    assert close(torch.tensor(intrinsic_dimension(torch.cat([points, points[:50]]))), wanted)


def test_ratios_of_the_law_itself_are_fitted_exactly() -> None:
    """Five points on a line: distances by hand, slope of the fit by hand."""
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]]).double()
    ratios = torch.tensor([3.0, 2.0, 1.5, 6 / 4, 17 / 13]).double().log().sort().values
    heights = -torch.log(1 - torch.arange(1, 5) / 5).double()
    wanted = (ratios[:4] @ heights) / (ratios[:4] @ ratios[:4])
    assert close(torch.tensor(intrinsic_dimension(points, discard=0.0)), wanted.float())


def test_growth() -> None:
    assert growth_sizes([3.0, 3.4, 3.6, 9.0]) == (1, 1, 6)


def test_what_they_refuse() -> None:
    with pytest.raises(SpecError, match=r"points are \(n, features\)"):
        intrinsic_dimension(torch.ones(3))
    with pytest.raises(SpecError, match=r"discard=1\.0"):
        intrinsic_dimension(torch.ones(3, 2), discard=1.0)
    with pytest.raises(NumericalError, match="1 different points"):
        intrinsic_dimension(torch.ones(9, 2))
    with pytest.raises(NumericalError, match="lattice"):
        intrinsic_dimension(torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)))
    with pytest.raises(SpecError, match="two finite dimensions"):
        growth_sizes([3.0])
