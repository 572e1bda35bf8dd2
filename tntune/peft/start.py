"""The tensors that a fresh adapter starts from: drawn, or a trained LoRA's."""

import torch
from torch import Tensor
from torch.nn import functional

from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.convert.gauge import balance
from tntune.convert.lift import lift
from tntune.errors import SpecError
from tntune.maps.activation import activation
from tntune.maps.base import Factors, WeightMap
from tntune.maps.group import Group
from tntune.maps.paired import paired
from tntune.maps.site import Site
from tntune.peft.config import FROM_LORA, TensorGuideConfig

__all__ = ["start_of_group", "start_tensors"]

Start = tuple[dict[str, Tensor], dict[str, Tensor]]


def start_tensors(config: TensorGuideConfig, module: str, site: Site) -> Start:
    """``(params, fixed)`` of one target, as ``init_weights`` says.

    Raises:
        SpecError: Where the LoRA does not adapt the target, or is wider than ``r`` allows.
        CheckpointError: Where the folder is no LoRA.
    """
    folder = _lora(config)
    if folder is None:
        return _fresh(site.map, site.activation)
    down, up = _factors(folder, module, site.scale, site.activation, site.map)
    return _encoded(site.map, down[None], up[None])


def start_of_group(config: TensorGuideConfig, group: Group) -> Start:
    """``(params, fixed)`` of a train that targets share, as ``init_weights`` says; raises likewise."""
    folder = _lora(config)
    if folder is None:
        return _fresh(group.map, group.activation)
    pairs = [
        _factors(folder, module, scale, group.activation, group.map)
        for module, scale in zip(group.modules, group.scales, strict=True)
    ]
    downs, ups = zip(*pairs, strict=True)
    return _encoded(group.map, torch.stack(downs), torch.stack(ups))


def _fresh(map: WeightMap, sigma: str) -> Start:
    """A drawn start; for a nonlinear σ units come in opposite pairs, so that none of few is dead."""
    params, fixed = map.init()
    if activation(sigma).linear:
        return params, fixed
    return paired(map, params), paired(map, fixed)


def _lora(config: TensorGuideConfig) -> LoraFolder | None:
    """The LoRA to start from, if there is one."""
    if not isinstance(config.init_weights, str) or not config.init_weights.startswith(FROM_LORA):
        return None
    return open_lora(config.init_weights.removeprefix(FROM_LORA))


def _factors(folder: LoraFolder, module: str, scale: float, sigma: str, map: WeightMap) -> Factors:
    """Balanced factors of one module's ΔW / scale, of the map's width, for a nonlinear σ lifted."""
    found = {site.name: site for site in folder.sites}
    if module not in found:
        raise SpecError(f"{module} is a target, but the LoRA in {folder.path} does not adapt it")
    down, up, own_scale = folder.load(found[module])
    balanced = balance(down, up, own_scale / scale)
    factors = Factors(balanced.down, balanced.up)
    if not activation(sigma).linear:
        factors = lift(factors, sigma)
    missing = map.width - factors.down.shape[0]
    if missing < 0:
        raise SpecError(
            f"{module}: the LoRA has rank {len(balanced.values)}, which needs r >= {factors.down.shape[0]} "
            f"with activation {sigma!r}, not {map.width}; tntune convert makes smaller adapters"
        )
    return Factors(functional.pad(factors.down, (0, 0, 0, missing)), functional.pad(factors.up, (0, missing)))


def _encoded(map: WeightMap, down: Tensor, up: Tensor) -> Start:
    params, fixed = map.from_factors(down, up)
    return {name: tensor.float() for name, tensor in params.items()}, {
        name: tensor if name in map.latent_names else tensor.float() for name, tensor in fixed.items()
    }
