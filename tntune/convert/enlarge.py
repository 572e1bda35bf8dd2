"""enlarge_library: new members on the bases that a library has."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.config import carried
from tntune.checkpoint.library import LibraryFolder, LibraryMember, open_library, own_params
from tntune.checkpoint.library_writer import write_library
from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.convert.candidate import Candidate, Layers, Piece, joint_piece, truncated_piece
from tntune.convert.collected import Collected, check_bases
from tntune.convert.collection import group_name, passthrough, sized, write_notes
from tntune.convert.collection_report import MemberReport, member_reports
from tntune.convert.form import Form
from tntune.convert.joint import best_coefficients
from tntune.convert.joint_train import JOINT_LAYOUT, JointTrain
from tntune.convert.norm import LayerNorm
from tntune.convert.output import check_output
from tntune.convert.search import TruncatedSearch
from tntune.errors import SpecError
from tntune.maps.base import Factors
from tntune.maps.group import Group
from tntune.maps.layout import Joined
from tntune.maps.tensorguide import TensorGuide

__all__ = ["enlarge_library"]


class _Base(NamedTuple):
    """A train of a library: its name there, its group and tensors, and the bases in float64."""

    label: str
    group: Group
    tensors: dict[str, Tensor]
    train: JointTrain


def enlarge_library(
    library: str | os.PathLike[str],
    sources: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    calibrations: Mapping[str, Calibration] | None = None,
    mixed_bases: bool = False,
    overwrite: bool = False,
) -> tuple[MemberReport, ...]:
    """Write ``output``, the library with new members; what it says of the old ones stays, bit for bit.

    A new member costs only its coefficients on the library's bases, the best there are: one small SVD for
    each layer (:func:`tntune.convert.joint.best_coefficients`). A layer of a shape for which the library has
    no bases is stored whole.

    Args:
        library: Library to read.
        sources: LoRA folder of each new member, by the name it gets.
        output: Library to write; whole or not at all.
        calibrations: Of every new member, in whose norm it is fitted; or of none.
        mixed_bases: Whether they may name another base model.
        overwrite: Whether an existing adapter folder may be replaced.

    Returns:
        A report of each new member, with truncated SVDs of as many parameters as they add.

    Raises:
        SpecError: For no source, a name that the library has, or another base model.
        ModeError, CheckpointError, NumericalError, TargetError, OutputError: As
            :func:`tntune.convert.convert_collection`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> from tntune.convert.collection import CollectionSettings, convert_collection
        >>> from tntune.convert.target import Target
        >>> with TemporaryDirectory() as parent:
        ...     one, two, old, new = (Path(parent) / name for name in ("one", "two", "old", "new"))
        ...     for path, size in ((one, 1.0), (two, 3.0)):
        ...         layers = [LoraEntry(f"h.{k}", torch.eye(2, 9), size * torch.eye(8, 2)) for k in range(4)]
        ...         write_lora(path, layers, base_config={})
        ...     report = convert_collection({"one": one}, old, CollectionSettings(Target(params=0.6)))
        ...     (added,) = enlarge_library(old, {"two": two}, new)
        >>> added.relative_error < 1e-6, added.params_before, added.params_after
        (True, 136, 32)
    """
    if not sources:
        raise SpecError("there is no member to add")
    for source in (library, *sources.values()):
        check_output(source, output, overwrite=overwrite)
    old = open_library(library)
    folders = {name: open_lora(sources[name]) for name in sorted(sources)}
    _check_members(old, folders, mixed_bases)
    bases = dict(_bases(old))
    collected = Collected.load(folders, calibrations or {}, _dtype(old))
    pieces = dict(_pieces(collected, bases, len(old.groups)))
    added = Candidate("added", tuple(pieces.values()))
    own = own_params(group for group, _ in _grown(bases, pieces, collected).values())
    candidates = {"shared": added}
    for other in TruncatedSearch(collected.layers, collected.norm).candidates(sum(own.values())):
        candidates.setdefault(other.name, other)
    reports = member_reports(folders, collected, candidates, own)
    write_library(
        output,
        {**old.members, **write_notes(folders, reports, collected.norm.name)},
        {**{name: (group, old.load(name)) for name, group in old.groups.items()}, **grown},
        passthrough={**_carried(old), **passthrough(folders)},
        metadata=old.config.get("metadata"),
        overwrite=overwrite,
    )
    return reports
