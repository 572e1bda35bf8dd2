"""convert_collection: several LoRAs of one model as one library, whose members share their bases."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.library import open_library, own_params
from tntune.checkpoint.library_writer import write_library
from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.convert.candidate import Candidate
from tntune.convert.collected import Collected, check_bases
from tntune.convert.collection_report import CollectionReport
from tntune.convert.encode import check_stored
from tntune.convert.member import described, group_name, library_card, member_reports, passthrough, sized
from tntune.convert.output import check_output
from tntune.convert.progress import Progress, silent
from tntune.convert.search import JointSearch, TruncatedSearch
from tntune.convert.target import Target
from tntune.errors import RankError, SpecError

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
        DtypeError: For a dtype that is not of floating point, or of less than 16 bits.

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
        check_stored(self.dtype)

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
        >>> from pathlib import Path
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
    if not isinstance(settings, CollectionSettings):
        raise SpecError(f"settings must be CollectionSettings(Target(params=...)), not {settings!r}")
    if not sources:
        raise SpecError("a library needs at least one member")
    for source in sources.values():
        check_output(source, output, overwrite=overwrite)
    folders = {name: open_lora(sources[name], carry=settings.carry) for name in sorted(sources)}
    if not settings.mixed_bases:
        check_bases({name: each.config.get("base_model_name_or_path") for name, each in folders.items()})
    collected = Collected.load(folders, calibrations or {}, settings.dtype)
    before = sum(folder.params for folder in folders.values())
    candidates = dict(_candidates(collected, settings.target.budget(before) or 0, progress or silent))
    report = _report(folders, collected, settings, candidates)
    report = replace(report, output=str(output))
    _write(folders, output, collected, candidates["shared"], report, overwrite=overwrite)
    written = open_library(output)
    return replace(report, bytes_after=written.num_bytes)


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
    shared = candidates["shared"]
    own = own_params(group for group, _ in shared.pieces)
    before = sum(folder.params for folder in folders.values())
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
        members=member_reports(folders, collected, candidates, own),
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
    members = described(folders, report.members, report.norm)
    groups = {
        group_name(i, piece[0]): sized(piece, collected.sizes) for i, piece in enumerate(candidate.pieces)
    }
    write_library(
        output,
        members,
        groups,
        passthrough=passthrough(folders),
        metadata={"tntune": "collect", "settings": report.settings},
        card=library_card(output, members, (group for group, _ in groups.values())),
        overwrite=overwrite,
    )
