"""Law: alignment of groups is in [0, 1], 0 for uncorrelated and 1 for equal ones, and blind to rotations."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.plugins.models import batch, tower
from tests.support.maps import MAPS
from tests.support.tolerance import close
from tntune.errors import SpecError, UnsupportedError
from tntune.maps import LoRA
from tntune.plugins import ProjectedFeatures, decorrelation


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(0, 99), st.sampled_from([(2, 4), (2, 6), (3, 6), (4, 4)]))
def test_it_is_the_mean_of_pairs(seed: int, sizes: tuple[int, int]) -> None:
    """Against the definition, pair by pair."""
    groups, width = sizes
    x = draw(7, width, seed=seed)
    parts = (x - x.mean(0)).chunk(groups, dim=1)
    norm = torch.linalg.matrix_norm
    pairs = [norm(a.T @ b) ** 2 / (norm(a.T @ a) * norm(b.T @ b)) for a in parts for b in parts if a is not b]
    found = decorrelation(x, groups)
    assert close(found, torch.stack(pairs).mean())
    assert 0 <= float(found) <= 1


def test_uncorrelated_and_equal_groups() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(9, 1).double(), draw(9, 6)], 1))[0][:, 1:]
    assert close(decorrelation(basis + 3, 3) + 1, torch.tensor(1.0).double())
    turn = torch.linalg.qr(draw(3, 3))[0]
    part = draw(9, 3, seed=1)
    assert close(decorrelation(torch.cat([part, 5 * part @ turn + 1], 1), 2), torch.tensor(1.0).double())
    assert float(decorrelation(torch.zeros(4, 4), 2)) == 0


def test_rotations_and_scales_within_groups_change_nothing() -> None:
    x = draw(9, 6)
    turn = torch.block_diag(2 * torch.linalg.qr(draw(3, 3))[0], 0.1 * torch.linalg.qr(draw(3, 3, seed=1))[0])
    assert close(decorrelation(x @ turn, 2), decorrelation(x, 2))


@pytest.mark.parametrize("name", ["lora", "tt_lora fixed", "joined io digits"])
def test_the_penalty_of_a_model_is_that_of_its_projections(name: str) -> None:
    map = MAPS[name]
    model, x = tower(map), batch(map.in_features, rows=8)
    with ProjectedFeatures(model) as seen:
        model(x.reshape(2, 4, -1))
        penalty = seen.penalty(2)
    assert close(penalty, decorrelation(x @ model[0].factors().down.T, 2))
    penalty.backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_training_with_it_takes_groups_apart() -> None:
    model, x = tower(LoRA(6, 5, 4)), batch(6, rows=32) @ draw(6, 6)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    found = []
    for _ in range(60):
        optimizer.zero_grad()
        with ProjectedFeatures(model) as seen:
            model(x)
            penalty = seen.penalty(2)
        penalty.backward()
        optimizer.step()
        found.append(float(penalty.detach()))
    assert found[-1] < 0.1 * found[0]


def test_hooks_are_gone_after_the_block() -> None:
    model = tower(LoRA(5, 4, 2))
    count = len(model[0]._forward_pre_hooks)
    with ProjectedFeatures(model):
        assert len(model[0]._forward_pre_hooks) == count + 1
    assert len(model[0]._forward_pre_hooks) == count


def test_what_it_refuses() -> None:
    with pytest.raises(SpecError, match=r"3 groups of features \(5, 4\)"):
        decorrelation(draw(5, 4), 3)
    with pytest.raises(SpecError, match="1 groups"):
        decorrelation(draw(5, 4), 1)
    with pytest.raises(SpecError, match="at least 2 rows"):
        decorrelation(draw(1, 4), 2)
    with pytest.raises(UnsupportedError, match="drawn at every call"):
        ProjectedFeatures(tower(MAPS["tt_lora resample"]))
    with (
        pytest.raises(SpecError, match="no adapted layer was called"),
        ProjectedFeatures(nn.Sequential(tower(LoRA(5, 4, 2)))) as seen,
    ):
        seen.penalty(2)
