"""adapt: put adapters into a plain torch model, and take them out again."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.adapters.spec import AdapterSpec, check_target
from tntune.errors import TargetError
from tntune.maps.site import Site

__all__ = ["adapt", "adapted_layers", "install", "merge", "set_enabled", "unload", "unmerge"]


def adapt(
    model: nn.Module,
    spec: AdapterSpec | Mapping[str, Site],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Adapt ``model`` in place: with ``start="zero"`` its function is unchanged, bit for bit.

    All parameters of the model are frozen, every target is wrapped in an :class:`AdaptedLinear`, and only
    the new params train. Nothing is changed where any target cannot be adapted.

    Args:
        model: Any torch module.
        spec: A specification, or a Site for each module path.
        generator: Source of the fresh params, on the CPU; by default torch's own.
        dtype: Dtype of the params; float32 whatever the base is.

    Returns:
        ``model`` itself.

    Raises:
        TargetError: Where a target is missing or cannot be adapted.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> x = torch.ones(1, 12)
        >>> before = model(x)
        >>> bool((adapt(model, AdapterSpec(width=4))(x) == before).all())
        True
        >>> sorted({name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad})
        ['generator']
    """
    sites = spec.sites_for(model) if isinstance(spec, AdapterSpec) else dict(spec)
    fresh = {name: site.map.init(generator, dtype=dtype) for name, site in sites.items()}
    tensors = {name: {**params, **fixed} for name, (params, fixed) in fresh.items()}
    install(model, sites, tensors)
    return model


def install(model: nn.Module, sites: Mapping[str, Site], tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Wrap the named modules with these sites and tensors; all of them or, on an error, none.

    Raises:
        TargetError: Where a path does not exist or cannot be adapted.
        ModeError, SpecError: Where a map does not fit its module, or tensors do not fit their map.
    """
    modules = dict(model.named_modules())
    missing = sorted(set(sites) - set(modules))
    if missing:
        raise TargetError(f"{type(model).__name__} has no modules {missing}")
    for name in sites:
        check_target(name, modules)
    layers = {name: _layer(modules[name], site, tensors[name]) for name, site in sites.items()}
    model.requires_grad_(False)
    for name, layer in layers.items():
        _replace(model, modules[name], layer)
        layer.generator.requires_grad_(True)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """``(path, layer)`` of every adapted layer, in the model's order.

    Raises:
        TargetError: Where there is none, so that nothing built on this is silently empty.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]
    if not found:
        raise TargetError(f"{type(model).__name__} has no adapted layers")
    return iter(found)


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters on or off; off, the model is its base, bit for bit, unless merged."""
    for _, layer in adapted_layers(model):
        layer.enabled = enabled


def merge(model: nn.Module) -> None:
    """Merge every adapter into its base; where one cannot be, none is.

    Raises:
        UnsupportedError: Where an activation is not linear.
        NumericalError: Where a merged weight would not be finite.
    """
    done: list[AdaptedLinear] = []
    try:
        for _, layer in adapted_layers(model):
            if not layer.merged:
                layer.merge()
                done.append(layer)
    except Exception:
        for layer in done:
            layer.unmerge()
        raise


def unmerge(model: nn.Module) -> None:
    """Undo :func:`merge`: every base has its own weight again, bit for bit."""
    for _, layer in adapted_layers(model):
        layer.unmerge()


def unload(model: nn.Module) -> nn.Module:
    """Take the wrappers out: merged adapters stay in the weights, others are dropped. Returns ``model``."""
    for _, layer in adapted_layers(model):
        _replace(model, layer, layer.base)
    return model


def _layer(base: nn.Module, site: Site, tensors: Mapping[str, Tensor]) -> AdaptedLinear:
    weight = base.weight
    assert isinstance(weight, Tensor)
    params = {name: tensors[name] for name in site.map.param_shapes if name in tensors}
    fixed = {name: tensor for name, tensor in tensors.items() if name not in params}
    generator = FactorGenerator(site.map, params, fixed).to(weight.device)
    return AdaptedLinear(base, generator, scale=site.scale, activation=site.activation)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is a child: a module that is used at several places is adapted at all."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if child is old and owner is not new:
                new.train(owner.training)
                setattr(owner, name, new)
