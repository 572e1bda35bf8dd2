"""convert_collection: several LoRAs of one model as one library, whose members share their bases."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.config import carried
from tntune.checkpoint.library import LibraryMember, member_path, open_library, own_params
from tntune.checkpoint.library_writer import write_library
from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.convert.candidate import Candidate, Piece
from tntune.convert.collected import Collected, MemberErrors, check_bases, owner
from tntune.convert.collection_report import CollectionReport, MemberReport
from tntune.convert.convert import Progress
from tntune.convert.norm import Norm
from tntune.convert.output import check_output
from tntune.convert.search import JointSearch, TruncatedSearch
from tntune.convert.target import Target
from tntune.errors import RankError, SpecError
from tntune.maps.group import Group

__all__ = ["CollectionSettings", "convert_collection"]

_STAGES = 3  # the library, members apart, truncated SVDs


@dataclass(frozen=True)
class CollectionSettings:
    """How a library is made.

    Attributes:
        target: A budget (params, max_params) for all members together.
        dtype: Dtype to store; by default the widest of the members'.
        mixed_bases: Whether members may name different base models, whose layers must agree in size.
        carry: Whether unknown tensors of the members are carried along.

    Raises:
        SpecError: Where the target is no budget.

    Example:
        >>> CollectionSettings(Target(params=0.1)).to_json()["target"]
        {'params': 0.1}
    """

    target: Target
    dtype: torch.dtype | None = None
    mixed_bases: bool = False
    carry: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.target, Target) or self.target.budget(1) is None:
            raise SpecError(f"a library needs a budget, such as Target(params=0.1), not {self.target!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for reports."""
        dtype = str(self.dtype) if self.dtype else None
        return {**vars(self), "target": self.target.to_json(), "dtype": dtype}


def convert_collection(
    sources: Mapping[str, str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: CollectionSettings,
    *,
    calibrations: Mapping[str, Calibration] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CollectionReport:
    """Write ``output``, a library of which each member's ΔW differs from its LoRA's by the reported error.

    All layers of one shape, of every member, get one basis of inputs and one of outputs; each layer of each
    member keeps its coefficients, and one member more costs only those. Shapes for which that does not pay
    are stored as truncated SVDs. The members' ΔW are scaled to norm 1 first, so that all count alike, and
    taken in the order of their names, so that the order in which they are given changes nothing. Members may
    have other ranks, scales and layers than one another.

    Args:
        sources: LoRA folder of each member, by the name it gets.
        output: Folder to write; whole or not at all.
        settings: Budget and dtype.
        calibrations: Of every member, in whose norm it is fitted; or of none.
        overwrite: Whether an existing adapter folder may be replaced.
        progress: Called as stages are done.

    Returns:
        The report, with truncated SVDs and members apart, each at equal parameters, beside every error.

    Raises:
        SpecError: For no source, a bad name, different base models, or some calibrations but not all.
        ModeError: Where a module has other sizes in another member.
        CheckpointError, NumericalError: Where a source cannot be read, or is untrained (every ΔW zero).
        TargetError: Where a calibration does not have a layer.
        RankError: Where the budget is too small for any layer.
        OutputError: Where the output cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     for name, size in (("one", 1.0), ("two", 3.0)):
        ...         layers = [LoraEntry(f"h.{k}", torch.eye(2, 9), size * torch.eye(8, 2)) for k in range(4)]
        ...         write_lora(Path(parent) / name, layers, base_config={})
        ...     sources = {name: Path(parent) / name for name in ("one", "two")}
        ...     report = convert_collection(
        ...         sources, Path(parent) / "library", CollectionSettings(Target(params=0.5))
        ...     )
        >>> report.error < 1e-6, report.params_before, report.params_after
        (True, 272, 98)

    Reference: Brüel-Gabrielsson et al. (arXiv 2407.00066), who share bases of one layer over many LoRAs.
    """
    if not sources:
        raise SpecError("a library needs at least one member")
    for source in sources.values():
        check_output(source, output, overwrite=overwrite)
    folders = {name: open_lora(sources[name], carry=settings.carry) for name in sorted(sources)}
    if not settings.mixed_bases:
        check_bases({name: each.config.get("base_model_name_or_path") for name, each in folders.items()})
    collected = Collected.load(folders, calibrations or {}, settings.dtype)
    before = sum(folder.params for folder in folders.values())
    candidates = dict(_candidates(collected, settings.target.budget(before) or 0, progress or _silent))
    report = _report(folders, collected, settings, candidates)
    report = replace(report, output=str(output))
    _write(folders, output, collected, candidates["shared"], report, overwrite=overwrite)
    written = open_library(output)
    return replace(report, bytes_after=written.num_bytes)


def _silent(stage: str, done: int, total: int) -> None:
    return None


def _candidates(collected: Collected, budget: int, progress: Progress) -> Iterator[tuple[str, Candidate]]:
    """The library, and what else as many parameters could buy."""
    layers, norm = collected.layers, collected.norm
    search = JointSearch(layers, norm)
    shared = search.candidate(search.plan(budget), norm)
    if not shared.pieces:
        least = min(layers.size(name) for name in layers.balanced)
        raise RankError(f"a budget of {budget} parameters fits no layer; the least possible is {least}")
    yield "shared", shared
    progress("fit", 1, _STAGES)
    if len(collected.sizes) > 1:
        search = JointSearch(collected.apart(), norm)
        yield "apart", search.candidate(search.plan(shared.params), norm)
    progress("fit", 2, _STAGES)
    for candidate in TruncatedSearch(layers, norm).candidates(shared.params):
        if candidate.name in ("svd", "weighted svd"):
            yield candidate.name, candidate
    progress("fit", 3, _STAGES)


def _report(
    folders: Mapping[str, LoraFolder],
    collected: Collected,
    settings: CollectionSettings,
    candidates: Mapping[str, Candidate],
) -> CollectionReport:
    plain = {name: collected.errors(each, Norm()) for name, each in candidates.items()}
    task: dict[str, MemberErrors] = {}
    if collected.norm.calibration is not None:
        task = {name: collected.errors(each, collected.norm) for name, each in candidates.items()}
    shared = candidates["shared"]
    own = own_params(group for group, _ in shared.pieces)
    before = sum(folder.params for folder in folders.values())
    members = tuple(
        MemberReport(
            name=name,
            source=str(folder.path),
            layers=sum(owner(module) == name for group, _ in shared.pieces for module in group.modules),
            params_before=folder.params,
            params_after=own.get(name, 0),
            relative_error=plain["shared"][name],
            svd_relative_error=plain.get("svd", {}).get(name),
            apart_relative_error=plain.get("apart", {}).get(name),
            task_error=task.get("shared", {}).get(name),
            svd_task_error=task.get("weighted svd", {}).get(name),
            apart_task_error=task.get("apart", {}).get(name),
        )
        for name, folder in folders.items()
    )
    return CollectionReport(
        output="",
        settings=settings.to_json(),
        base_model=next(iter(folders.values())).config.get("base_model_name_or_path"),
        norm=collected.norm.name,
        params_before=before,
        params_after=shared.params,
        shared_params=shared.params - sum(own.values()),
        bytes_before=sum(folder.num_bytes for folder in folders.values()),
        bytes_after=0,
        dtype=str(collected.layers.dtype),
        target_met=shared.params <= (settings.target.budget(before) or 0),
        members=members,
    )


def _write(
    folders: Mapping[str, LoraFolder],
    output: str | os.PathLike[str],
    collected: Collected,
    candidate: Candidate,
    report: CollectionReport,
    *,
    overwrite: bool,
) -> None:
    """The library of a candidate, at the members' own norms."""
    notes = {own.name: member_notes(own, report.norm) for own in report.members}
    write_library(
        output,
        {name: LibraryMember(carried(each.config), notes[name]) for name, each in folders.items()},
        {group_name(i, piece[0]): sized(piece, collected.sizes) for i, piece in enumerate(candidate.pieces)},
        passthrough=passthrough(folders),
        metadata={"tntune": "collect", "settings": report.settings},
        card=report.card(),
        overwrite=overwrite,
    )


def member_notes(report: MemberReport, norm: str) -> dict[str, Any]:
    """What a library says of a member.

    Example:
        >>> member_notes(MemberReport("one", "a", 3, 48, 8, 0.3, 0.6, 0.7), "frobenius")["params_before"]
        48
    """
    return {
        "layers": report.layers,
        "params_before": report.params_before,
        "relative_error": report.relative_error,
        "svd_relative_error": report.svd_relative_error,
        "task_error": report.task_error,
        "norm": norm,
    }


def group_name(index: int, group: Group) -> str:
    """Such as ``0_384x1536``: in by out.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> group_name(0, Group(LoRA(5, 3, 1), ("one/fc",), (1.0,)))
        '0_5x3'
    """
    return f"{index}_{group.map.in_features}x{group.map.out_features}"


def sized(piece: Piece, sizes: Mapping[str, float]) -> Piece:
    """A piece of members of norm 1 with the members' own norms in its scales.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> sized((Group(LoRA(5, 3, 1), ("one/fc",), (1.0,)), {}), {"one": 2.0})[0].scales
        (2.0,)
    """
    group, tensors = piece
    scales = (scale * sizes[owner(name)] for name, scale in zip(group.modules, group.scales, strict=True))
    return replace(group, scales=tuple(scales)), tensors


def passthrough(folders: Mapping[str, LoraFolder]) -> dict[str, Tensor]:
    """What the members carry along, by ``member/key``.

    Example:
        >>> passthrough({})
        {}
    """
    return {
        member_path(name, key): folder.tensor(key)
        for name, folder in folders.items()
        for key in folder.passthrough
    }
