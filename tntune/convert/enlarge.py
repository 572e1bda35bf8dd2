"""enlarge_library: new members on the bases that a library has."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.library import LibraryFolder, open_library, own_params
from tntune.checkpoint.library_writer import write_library
from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.convert.candidate import Candidate, Layers, Piece, joint_piece, truncated_piece
from tntune.convert.coefficients import best_coefficients
from tntune.convert.collected import Collected, check_bases
from tntune.convert.collection_report import MemberReport
from tntune.convert.form import Form
from tntune.convert.joint_train import JOINT_LAYOUT, JointTrain
from tntune.convert.member import described, group_name, library_card, member_reports, passthrough, sized
from tntune.convert.norm import LayerNorm
from tntune.convert.output import check_output
from tntune.convert.search import TruncatedSearch
from tntune.errors import ModeError, SpecError
from tntune.maps.group import Group
from tntune.maps.layout import Joined
from tntune.maps.tensorguide import TensorGuide

__all__ = ["enlarge_library"]


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
    each layer (:func:`best_coefficients`). A layer of a shape for which the library has
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
    collected = Collected.load(folders, calibrations or {}, _dtype(old))
    _check_shapes(collected.layers, old)
    pieces = dict(_pieces(collected, old))
    groups = {name: (group, old.load(name)) for name, group in old.groups.items()}
    for name, piece in pieces.items():
        new = sized(piece, collected.sizes)
        groups[name] = _grown(groups[name], new) if name in groups else new
    own = own_params(group for group, _ in groups.values())
    candidates = {"shared": Candidate("added", tuple(pieces.values()))}
    spent = sum(own[name] for name in folders)
    for other in TruncatedSearch(collected.layers, collected.norm).candidates(spent):
        candidates.setdefault(other.name, other)
    reports = member_reports(folders, collected, candidates, own)
    members = {**old.members, **described(folders, reports, collected.norm.name)}
    write_library(
        output,
        members,
        groups,
        passthrough={**old.carried(), **passthrough(folders)},
        metadata=old.config.get("metadata"),
        card=library_card(output, members, (group for group, _ in groups.values())),
        overwrite=overwrite,
    )
    return reports


def _check_members(old: LibraryFolder, folders: Mapping[str, LoraFolder], mixed_bases: bool) -> None:
    """Raise where a name is taken or a base model is another."""
    taken = sorted(folders.keys() & old.members.keys())
    if taken:
        raise SpecError(f"{old.path}: has a member {taken[0]!r} already; name the new one otherwise")
    if not mixed_bases:
        new = {name: folder.config.get("base_model_name_or_path") for name, folder in folders.items()}
        check_bases({"the library": old.config.get("base_model_name_or_path"), **new})


def _check_shapes(layers: Layers, old: LibraryFolder) -> None:
    """Raise where a module has other sizes in the library."""
    known = {
        module.partition("/")[2]: (module, _shape(group))
        for group in old.groups.values()
        for module in group.modules
    }
    for name in layers.balanced:
        first, shape = known.get(name.partition("/")[2], (name, layers.shape(name)))
        if shape != layers.shape(name):
            raise ModeError(f"{name}: is {layers.shape(name)}, but {first} is {shape}")


def _dtype(old: LibraryFolder) -> torch.dtype:
    """The dtype of a library's first map."""
    return next(iter(old.load(next(iter(old.groups))).values())).dtype


def _pieces(collected: Collected, old: LibraryFolder) -> Iterator[tuple[str, Piece]]:
    """The new layers: by the name of the group whose bases they use, or whole by a new name."""
    layers, norms = collected.layers, collected.layers.norms(collected.norm)
    bases = {_shape(group): name for name, group in old.groups.items() if _is_shared(group)}
    count = len(old.groups)
    for names in layers.groups():
        label = bases.get(layers.shape(names[0]))
        if label is not None:
            train = _train(old.groups[label], old.load(label))
            yield label, joint_piece(layers, names, _coefficients(train, layers, names, norms))
            continue
        for name in names:
            piece = truncated_piece(layers, name, layers.balanced[name], len(layers.balanced[name].values))
            yield group_name(count, piece[0]), piece
            count += 1


def _is_shared(group: Group) -> bool:
    return isinstance(group.map, TensorGuide) and getattr(group.map.layout, "pattern", "") == JOINT_LAYOUT


def _shape(group: Group) -> tuple[int, int]:
    return group.map.out_features, group.map.in_features


def _train(group: Group, tensors: Mapping[str, Tensor]) -> JointTrain:
    """The train of a group, in float64."""
    first, second = (tensors[name].double() for name in group.map.param_shapes)
    return JointTrain.of_cores(first, second, inside=group.map.in_features, layers=group.map.sites)


def _coefficients(
    train: JointTrain, layers: Layers, names: tuple[str, ...], norms: Mapping[str, LayerNorm]
) -> JointTrain:
    """The train's bases with the best coefficients of these layers, as wide as those it had."""
    own = [layers.factors(name) for name in names]
    sides = (
        _seen(train.inputs, [each.down for each in own], [norms[name].inputs for name in names]),
        _seen(train.outputs, [each.up.mT for each in own], [norms[name].outputs for name in names]),
    )
    width = train.down.shape[2]
    down, up, _ = best_coefficients(*sides, width)
    missing = (0, width - down.shape[2])
    return JointTrain(train.inputs, train.outputs, pad(down, missing), pad(up, missing))


def _seen(basis: Tensor, rows: Sequence[Tensor], forms: Sequence[Form]) -> tuple[Tensor, Tensor]:
    """Each form on a basis, and each layer's rows' products with it."""
    applied = [form.apply(basis) for form in forms]
    seen = [each @ own for each, own in zip(rows, applied, strict=True)]
    return torch.stack([basis.mT @ own for own in applied]), pad_sequence(seen, batch_first=True)


def _grown(old: Piece, new: Piece) -> Piece:
    """One group of the modules of both, on the same bases."""
    (group, tensors), (added, coefficients) = old, new
    assert isinstance(group.map, TensorGuide)
    assert isinstance(group.map.layout, Joined)
    first, second = group.map.param_shapes
    features, count, sides, width = group.map.layout.sizes
    layout = replace(group.map.layout, sizes=(features, count + added.map.sites, sides, width))
    rank = tensors[second].shape[0]
    parts = [each[second].reshape(rank, -1, sides * width) for each in (tensors, coefficients)]
    grown = Group(
        replace(group.map, layout=layout),
        (*group.modules, *added.modules),
        (*group.scales, *added.scales),
        group.activation,
    )
    return grown, {first: tensors[first], second: torch.cat(parts, dim=1).reshape(rank, -1, 1)}
