"""adapt: put adapters into a plain torch model, and take them out again."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tntune.adapters.forward_pass import ForwardPass, drop_passes
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear, check_fit
from tntune.adapters.spec import AdapterSpec, check_target
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.maps.group import Group
from tntune.maps.member import Member
from tntune.maps.site import Site

__all__ = ["adapt", "adapted_layers", "install", "merge", "set_enabled", "unload", "unmerge"]


def adapt(
    model: nn.Module,
    spec: AdapterSpec | Mapping[str, Site | Group],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Adapt ``model`` in place: with ``start="zero"`` its function is unchanged, bit for bit.

    All parameters of the model are frozen, every target is wrapped in an :class:`AdaptedLinear`, and only
    the new params train. Nothing is changed where any target cannot be adapted.

    Args:
        model: Any torch module.
        spec: A specification; or a Site for each module path, or Groups of modules by any name.
        generator: Source of the fresh params, on the CPU; by default torch's own.
        dtype: Dtype of the params; float32 whatever the base is.

    Returns:
        ``model`` itself.

    Raises:
        TargetError: Where a target is missing or cannot be adapted, or none is named.
        ModeError, SpecError: Where a site does not fit its module.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> x = torch.ones(1, 12)
        >>> before = model(x)
        >>> bool((adapt(model, AdapterSpec(width=4))(x) == before).all())
        True
        >>> sorted({name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad})
        ['generator']

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> shared = adapt(model, AdapterSpec(method="lotr", rank=2))
        >>> sum(p.numel() for p in shared.parameters() if p.requires_grad)  # 2 D r + L r²
        40
    """
    sites = spec.plan_for(model) if isinstance(spec, AdapterSpec) else dict(spec)
    fresh = {name: site.map.init(generator, dtype=dtype) for name, site in sites.items()}
    tensors = {name: {**params, **fixed} for name, (params, fixed) in fresh.items()}
    install(model, sites, tensors)
    return model


def install(
    model: nn.Module, sites: Mapping[str, Site | Group], tensors: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Wrap the named modules with these sites and tensors; all of them or, on an error, none.

    A Site is of the module that its key names; a Group names its modules itself, and they share its tensors.
    A module that the model holds at several places is wrapped once, and adapted at all of them.

    Raises:
        TargetError: Where no path is given, one does not exist or cannot be adapted, or a parameter of the
            model has no shape yet.
        ModeError, DtypeError, SpecError: Where a map does not fit its module, or tensors not their map.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> install(model, {"0": Site(LoRA(4, 3, 1))}, {"0": {
        ...     "lora_down": torch.ones(1, 4), "lora_up": torch.ones(3, 1)}})
        >>> model[0].delta_weight().sum().item()
        12.0
    """
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise TargetError(f"{lazy[:3]} have no shape yet; call the model once before it is adapted")
    groups = {name: _as_group(name, entry) for name, entry in sites.items()}
    modules = dict(model.named_modules())
    paths = [path for group in groups.values() for path in group.modules]
    missing = sorted(set(paths) - set(modules))
    if missing or not sites:
        raise TargetError(f"{type(model).__name__} has no modules {missing}, or none was named")
    if len(set(paths)) < len(paths):
        raise SpecError(f"modules {sorted({p for p in paths if paths.count(p) > 1})} are named twice")
    if set(tensors) != set(sites):
        raise SpecError(f"there are tensors for {sorted(tensors)}, but sites for {sorted(sites)}")
    generators = {name: _generator(group, modules, tensors[name]) for name, group in groups.items()}
    model.requires_grad_(False)
    for name, group in groups.items():
        _wrap(model, [modules[path] for path in group.modules], group, generators[name])
    layers = [layer for _, layer in adapted_layers(model)]
    drop_passes(model)
    ForwardPass(model, layers)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    """``(path, layer)`` of every adapted layer, in the model's order.

    Raises:
        TargetError: Where there is none, so that nothing built on this is silently empty.

    Example:
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)), AdapterSpec())
        >>> [name for name, _ in adapted_layers(model)]
        ['0', '2']
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]
    if not found:
        raise TargetError(f"{type(model).__name__} has no adapted layers")
    return iter(found)


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters on or off; off, the model is its base, bit for bit.

    Raises:
        UnsupportedError: Where an adapter is merged; nothing is changed.

    Example:
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(start="random"))
        >>> x = torch.ones(1, 12)
        >>> set_enabled(model, False)
        >>> bool((model(x) == model[0].base(x)).all())
        True
    """
    layers = list(adapted_layers(model))
    merged = [name for name, layer in layers if layer.merged]
    if merged:
        raise UnsupportedError(f"adapters are merged into {merged}; unmerge the model first")
    for _, layer in layers:
        layer.enabled = enabled


def merge(model: nn.Module) -> None:
    """Merge every adapter into its base; where one cannot be, none is.

    Raises:
        UnsupportedError: Where an activation is not linear, or an adapter is switched off.
        NumericalError: Where a merged weight would not be finite.

    Example:
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(start="random"))
        >>> x = torch.ones(1, 12)
        >>> before = model(x)
        >>> merge(model)
        >>> torch.allclose(model[0].base(x), before, atol=1e-6)
        True
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
    """Undo :func:`merge`: every base has its own weight again, bit for bit.

    Example:
        >>> model = adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec(start="random"))
        >>> weight = model[0].base.weight
        >>> merge(model)
        >>> unmerge(model)
        >>> model[0].base.weight is weight
        True
    """
    for _, layer in adapted_layers(model):
        layer.unmerge()


def unload(model: nn.Module) -> nn.Module:
    """Take the wrappers out: merged adapters stay in the weights, others are dropped.

    The weights stay frozen, as :func:`adapt` left them.

    Returns:
        ``model`` itself.

    Example:
        >>> unload(adapt(nn.Sequential(nn.Linear(12, 8)), AdapterSpec()))
        Sequential(
          (0): Linear(in_features=12, out_features=8, bias=True)
        )
    """
    for _, layer in adapted_layers(model):
        _replace(model, layer, layer.base)
    drop_passes(model)
    return model


def _as_group(name: str, entry: Site | Group) -> Group:
    """A site as the group of its one module."""
    if isinstance(entry, Group):
        return entry
    if entry.map.sites != 1:
        raise SpecError(
            f"{name}: its map serves {entry.map.sites} layers; a Group names them, "
            "or each layer needs a map of its own"
        )
    return Group(entry.map, (name,), (entry.scale,), entry.activation)


def _generator(
    group: Group, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> FactorGenerator:
    """The generator of a group on its first base's device, once it is known to fit them all."""
    for site, path in enumerate(group.modules):
        check_target(path, modules)
        check_fit(modules[path], Member(group.map, site))
    params = {key: tensors[key] for key in group.map.param_shapes if key in tensors}
    fixed = {key: tensor for key, tensor in tensors.items() if key not in params}
    weight = modules[group.modules[0]].weight
    assert isinstance(weight, Tensor)  # check_fit saw it
    return FactorGenerator(group.map, params, fixed).to(weight.device)


def _wrap(model: nn.Module, bases: Sequence[nn.Module], group: Group, generator: FactorGenerator) -> None:
    """Put a layer in the place of each base; the first has the generator, so that it is in the model once."""
    generator.requires_grad_(True)
    for site, (base, scale) in enumerate(zip(bases, group.scales, strict=True)):
        layer = AdaptedLinear(
            base, generator, scale=scale, activation=group.activation, site=site, owner=site == 0
        )
        _replace(model, base, layer)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` is a child, also twice in one owner."""
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if child is old and owner is not new:
                new.train(old.training)
                setattr(owner, name, new)
