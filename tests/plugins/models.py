"""Small adapted models whose adapters are not zero."""

import torch
from torch import Tensor, nn

from tests.support.maps import tensors_of
from tntune.adapters import AdaptedLinear, adapt, adapted_layers
from tntune.maps import LoRA, Site, WeightMap


def tower(*maps: WeightMap, scale: float = 0.5, activation: str = "identity") -> nn.Sequential:
    """Linear layers with a nonlinearity between them, one for each map, in float64 and with random params."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for map in maps:
        layers += [nn.Linear(map.in_features, map.out_features), nn.Tanh()]
    model = nn.Sequential(*layers).double()
    sites = {str(2 * k): Site(map, scale, activation) for k, map in enumerate(maps)}
    adapt(model, sites, dtype=torch.float64)
    for k, (_, layer) in enumerate(adapted_layers(model)):
        fill(layer, seed=k)
    return model


def loras(*widths: int) -> nn.Sequential:
    """Layers of 6 features with LoRAs of these widths."""
    return tower(*(LoRA(6, 6, width) for width in widths))


@torch.no_grad()
def fill(layer: AdaptedLinear, *, seed: int = 0) -> None:
    """Standard normal params."""
    params, _ = tensors_of(layer.generator.map, seed=seed)
    for name, tensor in params.items():
        getattr(layer.generator, name).copy_(tensor)


def number(value: float) -> Tensor:
    """For :func:`tests.support.tolerance.close`."""
    return torch.tensor(value, dtype=torch.float64)


def batch(features: int, rows: int = 5) -> Tensor:
    return torch.randn(rows, features, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
