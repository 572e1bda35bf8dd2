"""Models with adapters, as training leaves them."""

from typing import Any

import torch

from tests.convert.sample import Model
from tntune.adapters import AdapterSpec, adapt


def toy(seed: int, **options: Any) -> Model:
    """A model with adapters that have been trained a little."""
    spec = AdapterSpec(width=4, rank=4, **options)
    model = adapt(Model(), spec, generator=torch.Generator().manual_seed(seed))
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in (p for p in model.parameters() if p.requires_grad):
            value += torch.randn(value.shape, generator=draw) * value.abs().mean()
    assert isinstance(model, Model)
    return model
