"""Writing libraries, whole or not at all."""

import os
from collections.abc import Mapping

from torch import Tensor

from tntune.checkpoint.library import LIBRARY_PEFT_TYPE, LibraryMember, check_member_name, member_path
from tntune.checkpoint.tensorguide import is_map_key
from tntune.checkpoint.tensorguide_writer import group_tensors, write_files
from tntune.errors import SpecError
from tntune.files import Json
from tntune.maps.group import Group, group_config, groups_from_config

__all__ = ["write_library"]


def write_library(
    path: str | os.PathLike[str],
    members: Mapping[str, LibraryMember],
    groups: Mapping[str, tuple[Group, Mapping[str, Tensor]]],
    *,
    passthrough: Mapping[str, Tensor] | None = None,
    metadata: Json | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a library: ``open_library(path)`` has these members and groups, and their tensors bit for bit.

    Args:
        path: The folder to make.
        members: What is known of each adapter, by name.
        groups: For each name, without dot and slash, a group whose modules are ``member/module``, and all
            tensors of its map by flat name.
        passthrough: Other tensors of the members, by ``member/key``, kept untouched.
        metadata: What is worth knowing of the library.
        card: Text of README.md; none is written without.
        overwrite: As in :func:`tntune.files.new_folder`.

    Raises:
        SpecError: For no group, a bad name, a module of no member or in two groups, tensors that are not the
            map's, or a passthrough key that is a map's or no member's.
        ModeError, DtypeError, NumericalError: Where a tensor is not what the map needs.
        OutputError: Where the folder cannot be written; nothing was changed.

    Example:
        >>> write_library("nowhere", {}, {})
        Traceback (most recent call last):
        tntune.errors.SpecError: groups: must be an object with at least one group
    """
    described = group_config({name: group for name, (group, _) in groups.items()})
    described["peft_type"] = LIBRARY_PEFT_TYPE
    groups_from_config(described, peft_type=LIBRARY_PEFT_TYPE)
    _check_names(members, groups, passthrough or {})
    content = group_tensors(groups)
    first = next(iter(members.values())).config
    config = {
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        **described,
        "inference_mode": True,
        "members": {name: {"config": own.config, "notes": own.notes} for name, own in members.items()},
        "metadata": metadata or {},
    }
    write_files(path, config, {**content, **(passthrough or {})}, card, overwrite=overwrite)


def _check_names(
    members: Mapping[str, LibraryMember],
    groups: Mapping[str, tuple[Group, Mapping[str, Tensor]]],
    passthrough: Mapping[str, Tensor],
) -> None:
    """Raise unless every module and every carried tensor is a member's, by a name that can be read back."""
    for name in members:
        check_member_name(name)
    dotted = [name for name in groups if not name or "." in name or "/" in name]
    if dotted:
        raise SpecError(f"{dotted[0]!r}: the name of a group has no dot, no slash and is not empty")
    starts = tuple(member_path(name, "") for name in members)
    modules = [module for group, _ in groups.values() for module in group.modules]
    strange = [name for name in (*modules, *passthrough) if not name.startswith(starts)]
    if strange:
        raise SpecError(f"{strange[0]}: is of no member ({', '.join(members)})")
    maps = [key for key in passthrough if is_map_key(key)]
    if maps:
        raise SpecError(f"{maps[0]}: is a map's tensor and cannot be passed through")
