"""Adapters of a plain torch model to a folder and back, in the format that tntune converts to."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tntune.adapters.adapt import adapted_layers, install
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import (
    CheckpointError,
    NumericalError,
    OutputError,
    TargetError,
    TntuneError,
    UnsupportedError,
)
from tntune.files import CONFIG_NAME, Json, new_folder, read_json, write_json
from tntune.maps.base import Shape
from tntune.maps.group import SHARED_PEFT_TYPE, Group, group_config, group_key, groups_from_config
from tntune.maps.recipe import group_name
from tntune.maps.site import KEY_PREFIX, Site, site_config, site_key, sites_from_config

__all__ = ["check_whole", "load_adapters", "save_adapters"]

_WEIGHTS_NAME = "adapter_model.safetensors"


def save_adapters(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    modules_to_save: Sequence[str] = (),
    overwrite: bool = False,
) -> None:
    """Write the adapters, and of the base only what is named; :func:`load_adapters` restores it bit for bit.

    The folder holds ``adapter_config.json`` and ``adapter_model.safetensors``; what layers share is in it
    once. It is written whole or not at all, and ``tntune export --to lora`` reads it.

    Args:
        model: A model with adapters, merged or not.
        folder: The folder to make; its parent must exist.
        modules_to_save: Paths of other modules, such as a trained head, to save whole.
        overwrite: Replace an adapter folder that is there.

    Raises:
        OutputError: Where the folder exists and ``overwrite`` is False, or cannot be written.
        NumericalError: Where a tensor is not finite; nothing is written.
        UnsupportedError: Where two layers are the same site of a generator, or a site has no layer, or a
            module to save whole has to do with an adapted layer; a folder cannot say that. Where this process
            has a part of a tensor only, or none of it (ZeRO, FSDP, the meta device).
        TargetError: Where the model has no adapters, or no module of a path to save.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> spec = AdapterSpec(start="random")
        >>> model, other = (nn.Sequential(nn.Linear(12, 8, bias=False)) for _ in range(2))
        >>> with TemporaryDirectory() as parent:
        ...     save_adapters(adapt(model, spec), Path(parent) / "adapter")
        ...     loaded = load_adapters(other, Path(parent) / "adapter")
        >>> torch.equal(loaded[0].delta_weight(), model[0].delta_weight())
        True
    """
    groups = _groups(model)
    if any(group.map.sites > 1 for group, _ in groups.values()):
        config = group_config({name: group for name, (group, _) in groups.items()})
        keys = {name: partial(group_key, name) for name in groups}
    else:
        sites = {g.modules[0]: Site(g.map, g.scales[0], g.activation) for g, _ in groups.values()}
        config = site_config(sites)
        keys = {name: partial(site_key, group.modules[0]) for name, (group, _) in groups.items()}
    tensors = {}
    for name, (_, generator) in groups.items():
        for flat, tensor in generator.tensors().items():
            key = keys[name](flat)
            check_whole(key, tensor, generator.map.tensor_shapes[flat])
            tensors[key] = _checked(key, tensor).cpu().contiguous()
    adapted = [module for group, _ in groups.values() for module in group.modules]
    for name in modules_to_save:
        _check_apart(name, adapted)
        for key, tensor in _module_state(model, name).items():
            check_whole(key, tensor)
            tensors[key] = _checked(key, tensor).detach().to("cpu", copy=True).contiguous()
    with new_folder(folder, overwrite=overwrite) as path:
        write_json(path / CONFIG_NAME, config | {"modules_to_save": list(modules_to_save)})
        try:
            save_file(tensors, path / _WEIGHTS_NAME, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError(f"{path / _WEIGHTS_NAME}: cannot be written: {error}") from error


def load_adapters(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Wrap the layers that the folder names with its adapters; the model is unchanged on any error.

    Modules that the folder holds whole (``modules_to_save``) replace the model's own values; what is tied
    with a tensor of another value is untied, as in PEFT.

    Args:
        model: A model whose modules have the names in the folder.
        folder: Written by :func:`save_adapters` or ``tntune convert``.

    Returns:
        ``model`` itself.

    Raises:
        CheckpointError: Where the folder cannot be read, or tensors are missing, unknown, of a wrong shape
            or kind of dtype.
        NumericalError: Where a tensor is not finite.
        TargetError: Where the model lacks a module, or has an adapter there already.
        ModeError: Where a module has other sizes than its map.

    Example:
        >>> load_adapters(nn.Sequential(nn.Linear(12, 8)), "nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    config_file, weights_file = Path(folder) / CONFIG_NAME, Path(folder) / _WEIGHTS_NAME
    config = read_json(config_file)
    sites, keys = _described(config, config_file)
    weights, saved = _read(weights_file), _saved_modules(model, config, config_file)
    known = {
        keys[name](flat): _like(weights_file, shape)
        for name, site in sites.items()
        for flat, shape in site.tensor_shapes().items()
    } | saved
    missing, unknown = sorted(set(known) - set(weights)), sorted(set(weights) - set(known))
    if missing or unknown:
        raise CheckpointError(f"{weights_file}: missing keys {missing}, unknown keys {unknown}")
    for key, like in known.items():
        _check_tensor(weights_file, key, weights[key], like)
    tensors = {
        name: {flat: weights[keys[name](flat)] for flat in site.tensor_shapes()}
        for name, site in sites.items()
    }
    install(model, sites, tensors)
    with torch.no_grad():
        for key, tensor in saved.items():
            tied = [weights[other] for other, own in saved.items() if own is tensor]
            alike = all(torch.equal(weights[key], each) for each in tied)
            if isinstance(tensor, nn.Parameter) and (_places(model, tensor) > len(tied) or not alike):
                _untie(model, key.removeprefix(KEY_PREFIX), weights[key])
            else:
                tensor.copy_(weights[key])
    return model


def _places(model: nn.Module, tensor: Tensor) -> int:
    """At how many places the model has a parameter."""
    return sum(other is tensor for _, other in model.named_parameters(remove_duplicate=False))


def _untie(model: nn.Module, path: str, value: Tensor) -> None:
    """Give a module a parameter of its own, with this value."""
    owner, _, name = path.rpartition(".")
    old = model.get_parameter(path)
    own = nn.Parameter(value.to(old), requires_grad=old.requires_grad)
    setattr(model.get_submodule(owner), name, own)


def check_whole(name: str, tensor: Tensor, shape: Shape | None = None) -> None:
    """Raise unless this process has all entries of a tensor, which is then of that shape.

    Between steps ZeRO leaves tensors without entries, and FSDP a part in every process: saved like that, an
    adapter would be lost.

    Raises:
        UnsupportedError: Naming the tensor and the remedy.

    Example:
        >>> check_whole("tt_core_0", torch.ones(1, 3, 2), (1, 3, 2))
        >>> check_whole("tt_core_0", torch.empty(0))
        Traceback (most recent call last):
        tntune.errors.UnsupportedError: tt_core_0: has no entries; gather the whole tensors before saving
    """
    found = tuple(tensor.shape)
    if tensor.is_meta:
        fault = "is on the meta device, without values"
    elif type(tensor) not in (Tensor, nn.Parameter):
        fault = f"is a {type(tensor).__name__}, which may be spread over processes"
    elif shape is not None and found != shape:
        fault = f"is {found} here, and {shape} as a whole"
    elif not tensor.numel():
        fault = "has no entries"
    else:
        return
    raise UnsupportedError(f"{name}: {fault}; gather the whole tensors before saving")


def _groups(model: nn.Module) -> dict[str, tuple[Group, FactorGenerator]]:
    """Each generator with the layers that it serves, by a name of their shape."""
    served: dict[FactorGenerator, dict[int, tuple[str, AdaptedLinear]]] = {}
    for name, layer in adapted_layers(model):
        own = served.setdefault(layer.generator, {})
        if layer.site in own:
            raise UnsupportedError(
                f"{name}: shares its generator and site {layer.site} with {own[layer.site][0]}; "
                "give each layer its own"
            )
        own[layer.site] = name, layer
    found: dict[str, tuple[Group, FactorGenerator]] = {}
    for generator, own in served.items():
        map = generator.map
        lacking = sorted(set(range(map.sites)) - set(own))
        if lacking:
            raise UnsupportedError(f"sites {lacking[:4]} of a map that serves {map.sites} have no layer")
        names, layers = zip(*(own[site] for site in range(map.sites)), strict=True)
        scales = tuple(layer.spec.scale for layer in layers)
        group = Group(map, names, scales, layers[0].spec.activation)
        found[group_name((map.in_features, map.out_features), found)] = group, generator
    return found


def _described(config: Json, file: Path) -> tuple[dict[str, Site | Group], dict[str, Callable[[str], str]]]:
    """The sites or groups of a folder, and for each the key of a tensor by its flat name."""
    try:
        if config.get("peft_type") == SHARED_PEFT_TYPE:
            groups = groups_from_config(config)
            return {**groups}, {name: partial(group_key, name) for name in groups}
        sites = sites_from_config(config)
    except TntuneError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return {**sites}, {name: partial(site_key, name) for name in sites}


def _saved_modules(model: nn.Module, config: Json, file: Path) -> dict[str, Tensor]:
    """The model's own tensors of the modules that a folder holds whole, by checkpoint key.

    PEFT names a module by the end of its path, and lists heads that a model may not have.
    """
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(name and isinstance(name, str) for name in names):
        raise CheckpointError(f"{file}: modules_to_save: must be a list of names, not {names!r:.80}")
    paths = [path for path, _ in model.named_modules() for name in names if f".{path}".endswith(f".{name}")]
    return {key: tensor for path in paths for key, tensor in _module_state(model, path).items()}


def _check_apart(path: str, adapted: Sequence[str]) -> None:
    """Raise where a module to save whole holds an adapted layer, or is one, or is in one."""
    clash = [name for name in adapted if f"{name}.".startswith(f"{path}.") or path.startswith(f"{name}.")]
    if clash:
        raise UnsupportedError(f"{path}: cannot be saved whole, since {clash} have adapters")


def _module_state(model: nn.Module, path: str) -> dict[str, Tensor]:
    """The tensors of one module by checkpoint key."""
    module = dict(model.named_modules()).get(path)
    if module is None or not path:
        raise TargetError(f"{type(model).__name__} has no module {path!r} to save")
    return {f"{KEY_PREFIX}{path}.{key}": tensor for key, tensor in module.state_dict(keep_vars=True).items()}


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _like(file: Path, shape: Shape) -> Tensor:
    """A tensor of that shape without entries; CheckpointError where the shape is beyond all tensors."""
    try:
        return torch.empty(shape, device="meta")
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(f"{file}: has no tensor of shape {shape}, which a map needs") from error


def _check_tensor(file: Path, key: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
        found, wanted = (f"{x.dtype} of shape {tuple(x.shape)}" for x in (tensor, like))
        raise CheckpointError(f"{file}: {key}: is {found}, the model needs something like {wanted}")
    _checked(f"{file}: {key}", tensor)


def _checked(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself; raises where it is not finite."""
    if not bool(torch.isfinite(tensor).all()):
        raise NumericalError(f"{name}: has entries that are not finite")
    return tensor
