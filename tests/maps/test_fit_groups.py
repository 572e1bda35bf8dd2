"""fit_groups: what a map made is found again, errors are what they say, and more rank is never worse."""

import pytest
import torch
from torch import Tensor

from tests.support.tolerance import close
from tntune.errors import RankError, SpecError
from tntune.maps import METHODS, Factors, LoRA, Recipe, fit_groups
from tntune.maps.build_joint import HEAD_METHODS, STACK_METHODS

SIZES = {
    **{f"h.{i}.{role}": (8, 8) for i in range(3) for role in ("q", "o")},
    **{f"h.{i}.v": (8, 4) for i in range(3)},
}
EXACT = [method for method in METHODS if not method.endswith("_cp") and method != "lorta"]


def recipe(method: str, rank: int, width: int | None = None) -> Recipe:
    heads = {"head_dim": 2, "input_heads": ("o",)} if method in HEAD_METHODS else {}
    layout = {"layout": "layer proj side f w"} if method == "joint" else {}
    return Recipe(method=method, rank=None if method == "lora" else rank, width=width, **heads, **layout)


def loras(rank: int = 2) -> dict[str, Factors]:
    """Independent factors, of a width that differs from layer to layer."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        name: Factors(drawn(rank - i % 2, d), drawn(q, rank - i % 2))
        for i, (name, (d, q)) in enumerate(SIZES.items())
    }


def deltas(fitted: dict) -> dict[str, Tensor]:
    found = {}
    for group, tensors, _ in fitted.values():
        found |= dict(zip(group.modules, group.map.delta(tensors, tensors), strict=True))
    return found


@pytest.mark.parametrize("method", EXACT)
def test_full_ranks_are_exact(method: str) -> None:
    layers = loras()
    fitted = fit_groups(recipe(method, 64, 2 if method == "lora" else 64), layers)
    found = deltas(fitted)
    assert found.keys() == layers.keys()
    for name, (down, up) in layers.items():
        assert close(found[name], up @ down)
    assert all(each.error < 1e-10 for each in fitted.values())


@pytest.mark.parametrize("method", [method for method in METHODS if method != "lora"])
def test_the_error_is_of_delta_and_falls_with_rank(method: str) -> None:
    layers, errors = loras(), []
    for rank in (1, 2, 4):
        width = None if method in STACK_METHODS else 8
        fitted = fit_groups(recipe(method, rank, width), layers)
        found = deltas(fitted)
        for group, _, error in fitted.values():
            gaps = [float((found[m] - layers[m].up @ layers[m].down).norm()) for m in group.modules]
            norms = [float((layers[m].up @ layers[m].down).norm()) for m in group.modules]
            wanted = (sum(x * x for x in gaps) / sum(x * x for x in norms)) ** 0.5
            assert close(torch.tensor(1 + error), torch.tensor(1 + wanted))
        errors.append(max(error for _, _, error in fitted.values()))
    assert errors[0] > errors[-1]
    assert errors[0] < 1.2


def test_budgets_and_zero_layers() -> None:
    layers = {name: Factors(down, torch.zeros_like(up)) for name, (down, up) in loras().items()}
    fitted = fit_groups(Recipe(method="lotr", params=200), layers)
    assert sum(group.map.num_parameters for group, _, _ in fitted.values()) <= 200
    assert all(error == 0.0 for _, _, error in fitted.values())


def test_what_is_refused() -> None:
    with pytest.raises(SpecError, match="there are no layers to fit a map to"):
        fit_groups(Recipe(method="lotr"), {})
    with pytest.raises(RankError, match="factors of width 2 do not fit a map of width 1"):
        fit_groups(Recipe(method="lora", width=1), loras())


def test_a_lora_of_its_own_is_kept() -> None:
    layers = loras()
    fitted = fit_groups(Recipe(method="lora", width=2), layers)
    assert [group.map for group, _, _ in fitted.values()] == [LoRA(*sizes, 2) for sizes in SIZES.values()]
    assert len(fitted) == len(layers)
