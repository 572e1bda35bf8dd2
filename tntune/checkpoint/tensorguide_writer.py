"""Writing folders of TensorGuide and the other maps, whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from tntune.checkpoint.config import carried
from tntune.checkpoint.embedding import EMBEDDINGS_KEY, embedding_scales
from tntune.checkpoint.tensor_file import TENSORS_NAME, check_values, write_tensors
from tntune.checkpoint.tensorguide import Keys, group_keys, is_map_key, site_keys
from tntune.errors import ModeError, SpecError
from tntune.files import CARD_NAME, CONFIG_NAME, Json, new_folder, write_json, write_text
from tntune.maps.group import Group, group_config, groups_from_config
from tntune.maps.site import Site, site_config

__all__ = ["checked_tensors", "group_tensors", "write_files", "write_groups", "write_tensorguide"]


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
    for name, (site, _) in sites.items():
        if site.map.sites != 1:
            raise SpecError(f"{name}: its map serves {site.map.sites} modules; write_groups writes it")
    content = {
        key: value
        for name, (site, tensors) in sites.items()
        for key, value in checked_tensors(name, site_keys(name, site), site, tensors)
    }
    described = site_config({name: site for name, (site, _) in sites.items()})
    note = _Note(config, dict(passthrough or {}), metadata or {}, card)
    _write(path, content, described, note, overwrite=overwrite)


def write_groups(
    path: str | os.PathLike[str],
    groups: Mapping[str, tuple[Group, Mapping[str, Tensor]]],
    *,
    config: Json,
    passthrough: Mapping[str, Tensor] | None = None,
    metadata: Json | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a folder of shared maps: ``open_tensorguide(path).groups`` has each, its tensors bit for bit.

    Args:
        path: The folder to make.
        groups: For each name of a group the group and all tensors of its map by flat name.
        config: As in :func:`write_tensorguide`, and so are the other arguments and errors.
        passthrough: Other tensors of the adapter that this one replaces, by their full keys.
        metadata: What is worth knowing of the adapter.
        card: Text of README.md; none is written without.
        overwrite: As in :func:`tntune.files.new_folder`.

    Raises:
        SpecError: For no group, a name with a dot, a module in two groups, or as :func:`write_tensorguide`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from torch import ones
        >>> from tntune.checkpoint.tensorguide import open_tensorguide
        >>> from tntune.maps.lora import LoRA
        >>> group = Group(LoRA(5, 3, 2), ("h.0.fc",), (0.5,))
        >>> tensors = {name: ones(shape) for name, shape in group.tensor_shapes().items()}
        >>> with TemporaryDirectory() as parent:
        ...     write_groups(Path(parent) / "adapter", {"5x3": (group, tensors)}, config={})
        ...     folder = open_tensorguide(Path(parent) / "adapter")
        ...     folder.groups["5x3"] == group, folder.sites["h.0.fc"].scale
        (True, 0.5)
    """
    if not groups:
        raise SpecError("there is no group to write")
    dotted = [name for name in groups if not name or "." in name]
    if dotted:
        raise SpecError(f"{dotted[0]!r}: the name of a group has no dot and is not empty")
    described = group_config({name: group for name, (group, _) in groups.items()})
    groups_from_config(described)
    content = group_tensors(groups)
    note = _Note(config, dict(passthrough or {}), metadata or {}, card)
    _write(path, content, described, note, overwrite=overwrite)


class _Note(NamedTuple):
    """What a folder holds beside its maps."""

    config: Json
    passthrough: dict[str, Tensor]
    metadata: Json
    card: str | None


def _write(
    path: str | os.PathLike[str], content: dict[str, Tensor], described: Json, note: _Note, *, overwrite: bool
) -> None:
    """The folder of these tensors and this description of their maps."""
    clash = sorted(key for key in note.passthrough if key in content or is_map_key(key))
    if clash:
        raise SpecError(f"{clash[0]}: is a map's tensor and cannot be passed through")
    shapes = {key: tuple(value.shape) for key, value in note.passthrough.items()}
    embeddings = embedding_scales(note.config, shapes)
    whole = {
        **carried(note.config),
        **described,
        "inference_mode": True,
        EMBEDDINGS_KEY: {name: scale for name, (_, scale) in embeddings.items()},
        "metadata": note.metadata,
    }
    write_files(path, whole, {**content, **note.passthrough}, note.card, overwrite=overwrite)


def write_files(
    path: str | os.PathLike[str],
    config: Json,
    tensors: Mapping[str, Tensor],
    card: str | None,
    *,
    overwrite: bool,
) -> None:
    """The three files of a folder, whole or not at all; no card without a text.

    Raises:
        OutputError: Where the folder cannot be written; nothing was changed.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     write_files(Path(parent) / "adapter", {}, {}, "# Card", overwrite=False)
        ...     sorted(file.name for file in (Path(parent) / "adapter").iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors']
    """
    with new_folder(path, overwrite=overwrite) as folder:
        write_json(folder / CONFIG_NAME, config)
        write_tensors(folder / TENSORS_NAME, dict(tensors))
        if card is not None:
            write_text(folder / CARD_NAME, card)


def group_tensors(groups: Mapping[str, tuple[Group, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The tensors of groups by their keys, checked as :func:`checked_tensors` does.

    Example:
        >>> group_tensors({})
        {}
    """
    return {
        key: value
        for name, (group, tensors) in groups.items()
        for key, value in checked_tensors(name, group_keys(name, group), group, tensors)
    }


def checked_tensors(
    name: str, keys: Keys, owner: Site | Group, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Key and value of each tensor of a site or group, once they are the map's and finite.

    Raises:
        SpecError, ModeError, DtypeError, NumericalError: As :func:`write_tensorguide`, naming the tensor.

    Example:
        >>> from torch import ones
        >>> from tntune.maps.lora import LoRA
        >>> tensors = {"lora_down": ones(2, 5), "lora_up": ones(3, 2)}
        >>> site = Site(LoRA(5, 3, 2))
        >>> len(dict(checked_tensors("fc", {name: name for name in tensors}, site, tensors)))
        2
    """
    shapes = owner.tensor_shapes()
    if keys.keys() != tensors.keys():
        raise SpecError(f"{name}: the map needs the tensors {sorted(keys)}, not {sorted(tensors)}")
    for flat, key in keys.items():
        if tuple(tensors[flat].shape) != shapes[flat]:
            raise ModeError(f"{key}: has shape {tuple(tensors[flat].shape)}, the map needs {shapes[flat]}")
        check_values(key, tensors[flat])
        yield key, tensors[flat]
