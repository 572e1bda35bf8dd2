"""Adapters of a plain torch model to a folder and back, in the format that tntune converts to."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tntune.adapters.adapt import adapted_layers, install
from tntune.errors import CheckpointError, NumericalError, TntuneError
from tntune.files import CONFIG_NAME, new_folder, read_json, write_json
from tntune.maps.site import Site, site_config, site_key, sites_from_config

__all__ = ["load_adapters", "save_adapters"]

_WEIGHTS_NAME = "adapter_model.safetensors"


def save_adapters(model: nn.Module, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the adapters, and nothing of the base; :func:`load_adapters` gives them back bit for bit.

    The folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. It is written whole or not
    at all, and ``tntune export --to lora`` reads it.

    Raises:
        OutputError: Where the folder exists and ``overwrite`` is False, or cannot be written.
        NumericalError: Where a tensor is not finite; nothing is written.
        TargetError: Where the model has no adapters.
    """
    sites, tensors = {}, {}
    for name, layer in adapted_layers(model):
        sites[name] = layer.spec
        for key, tensor in layer.generator.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise NumericalError(f"{site_key(name, key)} has non-finite entries; nothing was written")
            tensors[site_key(name, key)] = tensor.cpu().contiguous()
    with new_folder(folder, overwrite=overwrite) as path:
        write_json(path / CONFIG_NAME, site_config(sites))
        save_file(tensors, path / _WEIGHTS_NAME, metadata={"format": "pt"})


def load_adapters(model: nn.Module, folder: str | os.PathLike[str]) -> nn.Module:
    """Wrap the layers that the folder names with its adapters; the model is unchanged on any error.

    Args:
        model: A model whose modules have the names in the folder.
        folder: Written by :func:`save_adapters` or ``tntune convert``.

    Returns:
        ``model`` itself.

    Raises:
        CheckpointError: Where the folder cannot be read, or keys are missing, unknown, or of a wrong shape.
        TargetError: Where the model lacks a module.
    """
    path = Path(folder)
    config = read_json(path / CONFIG_NAME)
    try:
        sites = sites_from_config(config)
    except TntuneError as error:
        raise CheckpointError(f"{path / CONFIG_NAME}: {error}") from error
    weights = _read(path / _WEIGHTS_NAME)
    expected = {
        site_key(name, key): (name, key) for name, site in sites.items() for key in site.tensor_shapes()
    }
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        raise CheckpointError(f"{path / _WEIGHTS_NAME}: missing keys {missing}, unknown keys {unknown}")
    install(model, sites, _by_site(sites, expected, weights))
    return model


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error


def _by_site(
    sites: Mapping[str, Site], expected: Mapping[str, tuple[str, str]], weights: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    grouped: dict[str, dict[str, Tensor]] = {name: {} for name in sites}
    for full, (name, key) in expected.items():
        grouped[name][key] = weights[full]
    return grouped
