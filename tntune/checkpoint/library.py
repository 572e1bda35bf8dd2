"""Libraries: folders in which several adapters of one model share the maps that make them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tntune.checkpoint.tensor_file import TensorFile, TensorInfo, open_tensors
from tntune.checkpoint.tensorguide import (
    TensorGuideFolder,
    check_tensor,
    group_keys,
    group_sites,
    is_map_key,
)
from tntune.errors import CheckpointError, SpecError, TargetError
from tntune.files import CONFIG_NAME, Json, read_json
from tntune.maps.group import Group, group_config, group_key, groups_from_config
from tntune.maps.part import Part
from tntune.maps.site import LIBRARY_PEFT_TYPE

__all__ = [
    "LIBRARY_PEFT_TYPE",
    "LibraryFolder",
    "LibraryMember",
    "check_member_name",
    "member_path",
    "open_library",
    "own_params",
]

_SEPARATOR = "/"


@dataclass(frozen=True)
class LibraryMember:
    """What a library says of one adapter beside its tensors.

    Attributes:
        config: What its own configuration said of the base model, the task and modules saved whole.
        notes: What is worth knowing of it, such as its error; anything that has a JSON form.

    Example:
        >>> LibraryMember({"task_type": "CAUSAL_LM"}, {"relative_error": 0.25}).notes
        {'relative_error': 0.25}
    """

    config: Json
    notes: Json = field(default_factory=dict)


@dataclass(frozen=True)
class LibraryFolder:
    """An opened library: maps, names and shapes are checked, values are read when asked for.

    Attributes:
        path: The folder.
        config: adapter_config.json as read.
        members: What is known of each adapter, by name.
        groups: The maps, by name; their modules are ``member/module``.
        tensors: The tensors as stored.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.library_writer import write_library
        >>> from tntune.maps.lora import LoRA
        >>> group = Group(LoRA(5, 3, 2), ("one/h.0.fc",), (0.5,))
        >>> tensors = {name: torch.ones(shape) for name, shape in group.tensor_shapes().items()}
        >>> with TemporaryDirectory() as parent:
        ...     path = Path(parent) / "library"
        ...     write_library(path, {"one": LibraryMember({})}, {"5x3": (group, tensors)})
        ...     library = open_library(path)
        >>> list(library.members), list(library.member("one").sites)
        (['one'], ['h.0.fc'])
    """

    path: Path
    config: Json
    members: Mapping[str, LibraryMember]
    groups: Mapping[str, Group]
    tensors: TensorFile = field(repr=False)

    @property
    def params(self) -> int:
        """Trainable entries of all maps, those that members share once."""
        return sum(group.map.num_parameters for group in self.groups.values())

    @property
    def num_bytes(self) -> int:
        """Size of the weights file on disk."""
        return self.tensors.num_bytes

    @property
    def own_params(self) -> dict[str, int]:
        """Trainable entries that each member alone reads."""
        return {**dict.fromkeys(self.members, 0), **own_params(self.groups.values())}

    def carried(self) -> dict[str, Tensor]:
        """What the members carry along, by ``member/key``."""
        keys = (key for key in self.tensors.entries if _SEPARATOR in key)
        return {key: self.tensors.load(key) for key in keys}

    def load(self, group: str) -> dict[str, Tensor]:
        """The tensors of one map by their flat names, as stored; finite, else NumericalError."""
        keys = group_keys(group, self.groups[group])
        return {flat: self.tensors.load_factor(key) for flat, key in keys.items()}

    def member(self, name: str) -> TensorGuideFolder:
        """One adapter alone: the same folder as if only its coefficients, and the shared bases, were there.

        Raises:
            TargetError: Where no member has that name, or nothing of it was kept; names those there are.
        """
        served = self._served(name)
        if not served:
            raise TargetError(f"{self.path}: {name}: every layer was dropped; nothing of this member is kept")
        groups, entries = {}, dict(self.tensors.entries)
        cut: dict[str, tuple[Part, str]] = {}
        for label, (group, indices) in served.items():
            part = Part(group.map, indices)
            modules = tuple(group.modules[i].partition(_SEPARATOR)[2] for i in indices)
            scales = tuple(group.scales[i] for i in indices)
            groups[label] = Group(part.map, modules, scales, group.activation)
            for flat, shape in groups[label].tensor_shapes().items():
                key = group_key(label, flat)
                cut[key] = (part, flat)
                entries[key] = TensorInfo(shape, entries[key].dtype)
        start = member_path(name, "")
        carried = {key.removeprefix(start): key for key in self.tensors.entries if key.startswith(start)}

        entries |= {key: self.tensors.entries[full] for key, full in carried.items()}
        config = {**self.members[name].config, **group_config(groups), "metadata": self.members[name].notes}
        file = TensorFile(self.tensors.path, entries, _MemberTensors(self.tensors, carried, cut))
        sites, keys = group_sites(groups)
        return TensorGuideFolder(self.path, config, sites, groups, tuple(carried), file, keys)

    def _served(self, name: str) -> dict[str, tuple[Group, tuple[int, ...]]]:
        """The groups that serve a member, with the indices of its sites."""
        if name not in self.members:
            raise TargetError(f"{self.path}: has no member {name!r}, only {', '.join(self.members)}")
        start = member_path(name, "")
        found = {
            label: (group, tuple(i for i, module in enumerate(group.modules) if module.startswith(start)))
            for label, group in self.groups.items()
        }
        return {label: (group, sites) for label, (group, sites) in found.items() if sites}


@dataclass(frozen=True)
class _MemberTensors:
    """Reads the tensors of one member from those of its library: cut out of the shared ones, or carried."""

    tensors: TensorFile
    carried: Mapping[str, str]
    cut: Mapping[str, tuple[Part, str]]

    def __call__(self, key: str) -> Tensor:
        value = self.tensors.load(self.carried.get(key, key))
        if key not in self.cut:
            return value
        part, flat = self.cut[key]
        return part.tensor(flat, value)


def open_library(folder: str | os.PathLike[str]) -> LibraryFolder:
    """Open a library so that every map has exactly its tensors, and every module its member, or refuse it.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.

    Example:
        >>> open_library("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    path = Path(folder)
    config = read_json(path / CONFIG_NAME)
    members, groups = _describe(config, path / CONFIG_NAME)
    file = open_tensors(path)
    expected = set()
    for name, group in groups.items():
        shapes = group.tensor_shapes()
        for flat, key in group_keys(name, group).items():
            check_tensor(file, key, shapes[flat])
            expected.add(key)
    for key in file.entries:
        member, separator, own = key.partition(_SEPARATOR)
        if key not in expected and (not separator or member not in members or is_map_key(own)):
            raise CheckpointError(
                f"{file.path}: {key}: no map and no member of {CONFIG_NAME} has this tensor"
            )
    return LibraryFolder(path, config, members, groups, file)


def member_path(member: str, name: str) -> str:
    """What a library calls a module, or a carried tensor, of a member.

    Example:
        >>> member_path("one", "h.0.fc")
        'one/h.0.fc'
    """
    return f"{member}{_SEPARATOR}{name}"


def check_member_name(name: str) -> None:
    """Raise SpecError unless a member may be called so: not empty, and without a slash.

    Example:
        >>> check_member_name("a/b")
        Traceback (most recent call last):
        tntune.errors.SpecError: 'a/b': the name of a member has no '/' and is not empty
    """
    if not name or _SEPARATOR in name:
        raise SpecError(f"{name!r}: the name of a member has no {_SEPARATOR!r} and is not empty")


def own_params(groups: Iterable[Group]) -> dict[str, int]:
    """Trainable entries that each member alone reads; what it shares with others is not counted.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> own_params([Group(LoRA(5, 3, 2), ("one/fc",), (1.0,)), Group(LoRA(5, 3, 1), ("two/fc",), (1.0,))])
        {'one': 16, 'two': 8}
    """
    found: dict[str, int] = {}
    for group in groups:
        whole, sites = group.map.num_parameters, group.map.sites
        owners = Counter(module.partition(_SEPARATOR)[0] for module in group.modules)
        for name, count in owners.items():
            kept = whole
            if count < sites:  # what a map without one of the sites would not have, for each
                kept = count * (whole - Part(group.map, tuple(range(sites - 1))).map.num_parameters)
            found[name] = found.get(name, 0) + kept
    return found


def _describe(config: Json, file: Path) -> tuple[dict[str, LibraryMember], dict[str, Group]]:
    """Members and groups of a configuration."""
    try:
        groups = groups_from_config(config, peft_type=LIBRARY_PEFT_TYPE)
        members = {name: _read_member(name, obj) for name, obj in config["members"].items()}
        owners = {module.partition(_SEPARATOR)[0] for group in groups.values() for module in group.modules}
        if owners - members.keys():
            raise SpecError(f"groups: no member is called {min(owners - members.keys())!r}")
    except Exception as error:  # a file may hold any JSON value where a map expects a number or a list
        reason = f"{type(error).__name__}: " * (not isinstance(error, SpecError)) + str(error)
        raise CheckpointError(f"{file}: {reason.partition(chr(10))[0]}") from error
    return members, groups


def _read_member(name: str, obj: object) -> LibraryMember:
    check_member_name(name)
    if not isinstance(obj, dict) or set(obj) != {"config", "notes"}:
        raise SpecError(f"members: {name}: has the keys config and notes, not {obj!r:.80}")
    if not all(isinstance(value, dict) for value in obj.values()):
        raise SpecError(f"members: {name}: config and notes are objects")
    return LibraryMember(obj["config"], obj["notes"])
