"""Adapters of a plain torch model to a folder and back, in the format that tntune converts to."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tntune.adapters.adapt import adapted_layers, install
from tntune.errors import CheckpointError, NumericalError, OutputError, TntuneError, UnsupportedError
from tntune.files import CONFIG_NAME, new_folder, read_json, write_json
from tntune.maps.site import Site, site_config, site_key, sites_from_config

__all__ = ["load_adapters", "save_adapters"]

_WEIGHTS_NAME = "adapter_model.safetensors"


def save_adapters(model: nn.Module, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the adapters, and nothing of the base; :func:`load_adapters` gives them back bit for bit.

    The folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. It is written whole or not
    at all, and ``tntune export --to lora`` reads it.

    Args:
        model: A model with adapters, merged or not.
        folder: The folder to make; its parent must exist.
        overwrite: Replace an adapter folder that is there.

    Raises:
        OutputError: Where the folder exists and ``overwrite`` is False, or cannot be written.
        NumericalError: Where a tensor is not finite; nothing is written.
        UnsupportedError: Where several layers share one generator, which a folder cannot say.
        TargetError: Where the model has no adapters.

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
    sites, tensors = {}, {}
    generators = set()
    for name, layer in adapted_layers(model):
        if layer.generator.map.sites != 1 or layer.generator in generators:
            raise UnsupportedError(f"{name}: shares its generator with other layers; give each its own")
        generators.add(layer.generator)
        sites[name] = layer.spec
        for key, tensor in layer.generator.tensors().items():
            tensors[site_key(name, key)] = _checked(site_key(name, key), tensor).cpu().contiguous()
    with new_folder(folder, overwrite=overwrite) as path:
        write_json(path / CONFIG_NAME, site_config(sites))
        try:
            save_file(tensors, path / _WEIGHTS_NAME, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OutputError(f"{path / _WEIGHTS_NAME}: cannot be written: {error}") from error


def load_adapters(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Wrap the layers that the folder names with its adapters; the model is unchanged on any error.

    Args:
        model: A model whose modules have the names in the folder.
        folder: Written by :func:`save_adapters` or ``tntune convert``.

    Returns:
        ``model`` itself.

    Raises:
        CheckpointError: Where the folder cannot be read, or tensors are missing, unknown, of a wrong shape,
            or no floats.
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
    try:
        sites = sites_from_config(config)
    except TntuneError as error:
        raise CheckpointError(f"{config_file}: {error}") from error
    weights = _read(weights_file)
    expected = {
        site_key(name, key): shape
        for name, site in sites.items()
        for key, shape in site.tensor_shapes().items()
    }
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        raise CheckpointError(f"{weights_file}: missing keys {missing}, unknown keys {unknown}")
    for key, shape in expected.items():
        _check_tensor(weights_file, key, weights[key], shape)
    install(model, sites, {name: _tensors(name, site, weights) for name, site in sites.items()})
    return model


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _check_tensor(file: Path, key: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise CheckpointError(f"{file}: {key}: is {found}, the map needs floats of shape {shape}")
    _checked(f"{file}: {key}", tensor)


def _checked(name: str, tensor: Tensor) -> Tensor:
    """The tensor itself; raises where it is not finite."""
    if not bool(torch.isfinite(tensor).all()):
        raise NumericalError(f"{name}: has entries that are not finite")
    return tensor


def _tensors(name: str, site: Site, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: weights[site_key(name, key)] for key in site.tensor_shapes()}
