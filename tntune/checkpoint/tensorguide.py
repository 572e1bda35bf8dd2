"""Folders of TensorGuide and the other maps: a map for each module, or for each group of modules."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tntune.checkpoint.config import check_carried, is_saved_module
from tntune.checkpoint.embedding import embedding_name
from tntune.checkpoint.tensor_file import TensorFile, open_tensors
from tntune.errors import CheckpointError
from tntune.files import CONFIG_NAME, Json, read_json
from tntune.maps.group import (
    SHARED_KEY,
    SHARED_PEFT_TYPE,
    Group,
    group_key,
    groups_from_config,
)
from tntune.maps.member import Member
from tntune.maps.site import GENERATOR_KEY, Site, site_key, sites_from_config

__all__ = [
    "Keys",
    "TensorGuideFolder",
    "check_tensor",
    "group_keys",
    "group_sites",
    "is_map_key",
    "open_tensorguide",
    "site_keys",
]

Keys = Mapping[str, str]
"""Key in the file of each tensor of a map, by its flat name."""


@dataclass(frozen=True)
class TensorGuideFolder:
    """An opened folder: maps, names and shapes are checked, values are read when asked for.

    Attributes:
        path: The folder.
        config: adapter_config.json as read.
        sites: The map, scale and activation of each module, by its path in the base model; in a folder of
            groups the map is a :class:`tntune.maps.Member` of the group's.
        groups: The maps that serve several modules, by name; empty where each module has its own.
        passthrough: Names of the tensors that are no map's and are carried along untouched.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.tensorguide_writer import write_tensorguide
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
    groups: Mapping[str, Group]
    passthrough: tuple[str, ...]
    _file: TensorFile = field(repr=False)
    _keys: Mapping[str, Keys] = field(repr=False)

    @property
    def metadata(self) -> Json:
        """What the writer noted about the adapter."""
        found: Json = self.config.get("metadata") or {}
        return found

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes that occur among the tensors of the maps, each once."""
        keys = (key for keys in self._keys.values() for key in keys.values())
        return tuple(dict.fromkeys(self._file.entries[key].dtype for key in keys))

    @property
    def num_bytes(self) -> int:
        """Size of the weights file on disk."""
        return self._file.num_bytes

    @property
    def params(self) -> int:
        """Number of trainable entries of all maps, those of a shared map once."""
        owners = self.groups or self.sites
        return sum(owner.map.num_parameters for owner in owners.values())

    def load(self, name: str) -> dict[str, Tensor]:
        """The tensors of one module's map by their flat names, as stored, for :meth:`Site.factors`.

        Raises:
            CheckpointError: Where no module has that path.
            NumericalError: Where an entry is NaN or infinite; names the file and the tensor.
        """
        if name not in self.sites:
            raise CheckpointError(f"{self.path}: {name}: no such module")
        return {flat: self._file.load_factor(key) for flat, key in self._keys[name].items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the file, as stored; CheckpointError where there is none."""
        return self._file.load(name)


def open_tensorguide(folder: str | os.PathLike[str], *, carry: bool = False) -> TensorGuideFolder:
    """Open a folder so that every map has exactly its tensors, or refuse it by name.

    Args:
        folder: What :func:`tntune.checkpoint.write_tensorguide`, or PEFT with tntune, has written.
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
    groups, sites, keys = _describe(config, path / CONFIG_NAME)
    check_carried(config, path / CONFIG_NAME, carry=carry)
    file = open_tensors(path)
    for name, own in keys.items():
        shapes = sites[name].tensor_shapes()
        for flat, key in own.items():
            check_tensor(file, key, shapes[flat])
    expected = {key for own in keys.values() for key in own.values()}
    others = tuple(key for key in file.entries if key not in expected)
    for key in others:
        if is_map_key(key):
            raise CheckpointError(f"{file.path}: {key}: no site of {CONFIG_NAME} has this tensor")
        if not (carry or embedding_name(key) or is_saved_module(config, key)):
            raise CheckpointError(f"{file.path}: {key}: unknown tensor; carry=True keeps it as it is")
    return TensorGuideFolder(path, config, sites, groups, others, file, keys)


def _describe(config: Json, file: Path) -> tuple[dict[str, Group], dict[str, Site], dict[str, Keys]]:
    """Groups, sites and the keys of each site's tensors."""
    if config.get("peft_type") != SHARED_PEFT_TYPE:
        sites = _read_sites(config, file)
        return {}, sites, {name: site_keys(name, site) for name, site in sites.items()}
    groups = _read_groups(config, file)
    return groups, *group_sites(groups)


def group_sites(groups: Mapping[str, Group]) -> tuple[dict[str, Site], dict[str, Keys]]:
    """The site of each module of these groups, and the keys of its tensors.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> sites, keys = group_sites({"5x3": Group(LoRA(5, 3, 2), ("fc",), (0.5,))})
        >>> sites["fc"].scale, len(keys["fc"])
        (0.5, 2)
    """
    sites, keys = {}, {}
    for name, group in groups.items():
        for index, module in enumerate(group.modules):
            sites[module] = Site(Member(group.map, index), group.scales[index], group.activation)
            keys[module] = group_keys(name, group)
    return sites, keys


def _read_groups(config: Json, file: Path) -> dict[str, Group]:
    """The groups of a configuration."""
    try:
        return groups_from_config(config)
    except Exception as error:  # a file may hold any JSON value where a map expects a number or a list
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file}: {reason}") from error


def _read_sites(config: Json, file: Path) -> dict[str, Site]:
    """The sites of a configuration, each of one module."""
    try:
        return sites_from_config(config)
    except Exception as error:  # a file may hold any JSON value where a map expects a number or a list
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{file}: {reason}") from error


def site_keys(name: str, site: Site) -> Keys:
    """The key of each tensor of a site, by flat name.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> site_keys("fc", Site(LoRA(5, 3, 2)))["lora_up"]
        'base_model.model.fc.tensorguide_gen.lora_up'
    """
    return {flat: site_key(name, flat) for flat in site.tensor_shapes()}


def group_keys(name: str, group: Group) -> Keys:
    """The key of each tensor of a group, by flat name.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> group_keys("5x3", Group(LoRA(5, 3, 2), ("fc",), (1.0,)))["lora_up"]
        'base_model.tensorguide_shared.5x3.lora_up'
    """
    return {flat: group_key(name, flat) for flat in group.tensor_shapes()}


def is_map_key(key: str) -> bool:
    """Whether a key can only be that of a map's tensor.

    Example:
        >>> is_map_key("base_model.model.fc.tensorguide_gen.tt_core_0")
        True
    """
    return f".{GENERATOR_KEY}." in key or f".{SHARED_KEY}." in key


def check_tensor(file: TensorFile, key: str, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError unless the file has floats of that shape.

    Example:
        >>> check_tensor(TensorFile(Path("x"), {}, torch.ones), "z", (1,))
        Traceback (most recent call last):
        tntune.errors.CheckpointError: x: z: is missing
    """
    if key not in file.entries:
        raise CheckpointError(f"{file.path}: {key}: is missing")
    found = file.check_factor(key, len(shape)).shape
    if found != shape:
        raise CheckpointError(f"{file.path}: {key}: has shape {found}, the map needs {shape}")
