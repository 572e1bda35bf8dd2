"""Folders of TensorGuide and the other maps: for each module a map in the configuration and its tensors."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tntune.checkpoint.config import carried, check_carried, is_saved_module
from tntune.checkpoint.embedding import EMBEDDINGS_KEY, embedding_name, embedding_scales
from tntune.checkpoint.tensor_file import TENSORS_NAME, TensorFile, check_values, open_tensors, write_tensors
from tntune.errors import CheckpointError, ModeError, SpecError
from tntune.files import CARD_NAME, CONFIG_NAME, Json, new_folder, read_json, write_json, write_text
from tntune.maps.site import GENERATOR_KEY, Site, site_config, site_key, sites_from_config

__all__ = ["TensorGuideFolder", "open_tensorguide", "write_tensorguide"]


@dataclass(frozen=True)
class TensorGuideFolder:
    """An opened folder: maps, names and shapes are checked, values are read when asked for.

    Attributes:
        path: The folder.
        config: adapter_config.json as read.
        sites: The map, scale and activation of each module, by its path in the base model.
        passthrough: Names of the tensors that are no map's and are carried along untouched.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.maps.lora import LoRA
        >>> site = Site(LoRA(5, 3, 2), scale=0.5)
        >>> tensors = {name: torch.ones(shape) for name, shape in site.tensor_shapes().items()}
        >>> with TemporaryDirectory() as parent:
        ...     path = Path(parent) / "adapter"
        ...     write_tensorguide(path, {"h.0.fc": (site, tensors)}, config={"task_type": "CAUSAL_LM"})
        ...     folder = open_tensorguide(path)
        ...     down, up = folder.sites["h.0.fc"].factors(folder.load("h.0.fc"))
        >>> folder.sites["h.0.fc"] == site, tuple(down.shape), tuple(up.shape)
        (True, (1, 2, 5), (1, 3, 2))
    """

    path: Path
    config: Json
    sites: Mapping[str, Site]
    passthrough: tuple[str, ...]
    _file: TensorFile = field(repr=False)

    @property
    def metadata(self) -> Json:
        """What the writer noted about the adapter."""
        found: Json = self.config.get("metadata") or {}
        return found

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes that occur among the tensors of the maps, each once."""
        keys = (key for name, site in self.sites.items() for key in _keys(name, site).values())
        return tuple(dict.fromkeys(self._file.entries[key].dtype for key in keys))

    @property
    def num_bytes(self) -> int:
        """Size of the weights file on disk."""
        return self._file.num_bytes

    @property
    def params(self) -> int:
        """Number of trainable entries of all maps."""
        return sum(site.map.num_parameters for site in self.sites.values())

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of one module by their flat names, as stored, for :meth:`Site.factors`.

        Raises:
            CheckpointError: Where no module has that path.
            NumericalError: Where an entry is NaN or infinite; names the file and the tensor.
        """
        if name not in self.sites:
            raise CheckpointError(f"{self.path}: {name}: no such module")
        keys = _keys(name, self.sites[name])
        return {flat: self._file.load_factor(key) for flat, key in keys.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the file, as stored; CheckpointError where there is none."""
        return self._file.load(name)


def open_tensorguide(folder: str | os.PathLike[str], *, carry: bool = False) -> TensorGuideFolder:
    """Open a folder so that every map has exactly its tensors, or refuse it by name.

    Args:
        folder: What :func:`write_tensorguide`, or PEFT with tntune, has written.
        carry: Keep unknown tensors outside the maps, trained biases and trained token rows as they are,
            instead of refusing the folder.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.

    Example:
        >>> open_tensorguide("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    path = Path(folder)
    config = read_json(path / CONFIG_NAME)
    sites = _read_sites(config, path / CONFIG_NAME)
    check_carried(config, path / CONFIG_NAME, carry=carry)
    file = open_tensors(path)
    expected = {key: shape for name, site in sites.items() for key, shape in _shapes(name, site)}
    for key, shape in expected.items():
        _check_tensor(file, key, shape)
    others = tuple(key for key in file.entries if key not in expected)
    for key in others:
        if f".{GENERATOR_KEY}." in key:
            raise CheckpointError(f"{file.path}: {key}: no site of {CONFIG_NAME} has this tensor")
        if not (carry or embedding_name(key) or is_saved_module(config, key)):
            raise CheckpointError(f"{file.path}: {key}: unknown tensor; carry=True keeps it as it is")
    return TensorGuideFolder(path, config, sites, others, file)


def write_tensorguide(
    path: str | os.PathLike[str],
    sites: Mapping[str, tuple[Site, Mapping[str, Tensor]]],
    *,
    config: Json,
    passthrough: Mapping[str, Tensor] | None = None,
    metadata: Json | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder: ``open_tensorguide(path)`` has each site, and its tensors bit for bit.

    Args:
        path: The folder to make.
        sites: For each path of a module its site and all tensors of the map by flat name.
        config: Configuration of the adapter that this one replaces; what concerns the base model, the task
            and modules saved whole is carried along.
        passthrough: Other tensors of that adapter, by their full keys, kept untouched.
        metadata: What is worth knowing of the adapter; anything that has a JSON form.
        card: Text of README.md; none is written without.
        overwrite: As in :func:`tntune.files.new_folder`.

    Raises:
        SpecError: For no site, a map that serves several modules, tensors that are not the map's, or a
            passthrough key that is a map's.
        ModeError: Where the shape of a tensor is not the map's.
        DtypeError: Where a tensor does not hold floats of 16, 32 or 64 bits.
        NumericalError: Where a tensor is not finite.
        OutputError: Where the folder cannot be written; nothing was changed.

    Example:
        >>> write_tensorguide("nowhere", {}, config={})
        Traceback (most recent call last):
        tntune.errors.SpecError: there is no site to write
    """
    if not sites:
        raise SpecError("there is no site to write")
    others = dict(passthrough or {})
    content: dict[str, Tensor] = {}
    for name, (site, tensors) in sites.items():
        content.update(_checked(name, site, tensors))
    clash = sorted(key for key in others if key in content or f".{GENERATOR_KEY}." in key)
    if clash:
        raise SpecError(f"{clash[0]}: is a map's tensor and cannot be passed through")
    embeddings = embedding_scales(config, {key: tuple(value.shape) for key, value in others.items()})
    described = {
        **carried(config),
        **site_config({name: site for name, (site, _) in sites.items()}),
        "inference_mode": True,
        EMBEDDINGS_KEY: {name: scale for name, (_, scale) in embeddings.items()},
        "metadata": metadata or {},
    }
    with new_folder(path, overwrite=overwrite) as folder:
        write_json(folder / CONFIG_NAME, described)
        write_tensors(folder / TENSORS_NAME, {**content, **others})
        if card is not None:
            write_text(folder / CARD_NAME, card)


def _read_sites(config: Json, file: Path) -> dict[str, Site]:
    """The sites of a configuration, each of one module."""
    try:
        sites = sites_from_config(config)
    except Exception as error:  # a file may hold any JSON value where a map expects a number or a list
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file}: {reason}") from error
    for name, site in sites.items():
        if site.map.sites != 1:
            raise CheckpointError(f"{file}: sites: {name}: its map serves {site.map.sites} modules")
    return sites


def _keys(name: str, site: Site) -> dict[str, str]:
    """The key of each tensor of a site, by flat name."""
    return {flat: site_key(name, flat) for flat in site.tensor_shapes()}


def _shapes(name: str, site: Site) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Key and shape of each tensor of a site."""
    return zip(_keys(name, site).values(), site.tensor_shapes().values(), strict=True)


def _check_tensor(file: TensorFile, key: str, shape: tuple[int, ...]) -> None:
    """Raise unless the file has floats of that shape."""
    if key not in file.entries:
        raise CheckpointError(f"{file.path}: {key}: is missing")
    found = file.check_factor(key, len(shape)).shape
    if found != shape:
        raise CheckpointError(f"{file.path}: {key}: has shape {found}, the map needs {shape}")


def _checked(name: str, site: Site, tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Key and value of each tensor of a site, once they are the map's and finite."""
    if site.map.sites != 1:
        raise SpecError(f"{name}: its map serves {site.map.sites} modules; write one map for each module")
    keys, shapes = _keys(name, site), site.tensor_shapes()
    if keys.keys() != tensors.keys():
        raise SpecError(f"{name}: the map needs the tensors {sorted(keys)}, not {sorted(tensors)}")
    for flat, key in keys.items():
        if tuple(tensors[flat].shape) != shapes[flat]:
            raise ModeError(f"{key}: has shape {tuple(tensors[flat].shape)}, the map needs {shapes[flat]}")
        check_values(key, tensors[flat])
        yield key, tensors[flat]
