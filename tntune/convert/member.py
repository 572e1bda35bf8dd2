"""What libraries say of their members, and the pieces of a candidate as a library stores them."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from tntune.checkpoint.config import carried
from tntune.checkpoint.library import LibraryMember, member_path, own_params
from tntune.checkpoint.lora import LoraFolder
from tntune.convert.candidate import Candidate, Piece
from tntune.convert.collected import Collected, MemberErrors, owner
from tntune.convert.collection_report import MemberReport
from tntune.convert.norm import Norm
from tntune.maps.group import Group

_ERRORS = ("relative_error", "svd_relative_error", "task_error")

_CARD = """# {name}

A library of {count} adapters of {base}, made by tntune: {before:,} parameters in all before, {after:,} after,
of which members share {shared:,}.

| member | parameters before | own after | error | plain SVD | error in the task norm |
|---|---|---|---|---|---|
{rows}

Errors are relative errors of ΔW, as stored. Plain SVD: truncated SVDs of all members together, of as many
parameters in all; for members that were added later, of as many as they added.

`tntune export LIBRARY --member NAME --to lora -o OUTPUT` makes a plain LoRA of a member, which PEFT and every
LoRA server load.
"""

__all__ = ["described", "group_name", "library_card", "member_reports", "passthrough", "sized"]


def member_reports(
    folders: Mapping[str, LoraFolder],
    collected: Collected,
    candidates: Mapping[str, Candidate],
    own: Mapping[str, int],
) -> tuple[MemberReport, ...]:
    """A report of each member.

    Args:
        folders: The members' LoRAs.
        collected: Their layers.
        candidates: ``"shared"``, which is stored, and beside it ``"apart"``, ``"svd"`` and ``"weighted svd"``
            where they were made.
        own: What each member alone costs.

    Example:
        >>> member_reports.__name__
        'member_reports'
    """
    plain = {name: collected.errors(each, Norm()) for name, each in candidates.items()}
    task: dict[str, MemberErrors] = {}
    if collected.norm.calibration is not None:
        task = {name: collected.errors(each, collected.norm) for name, each in candidates.items()}
    modules = [module for group, _ in candidates["shared"].pieces for module in group.modules]
    return tuple(
        MemberReport(
            name=name,
            source=str(folder.path),
            layers=sum(owner(module) == name for module in modules),
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


def described(
    folders: Mapping[str, LoraFolder], reports: tuple[MemberReport, ...], norm: str
) -> dict[str, LibraryMember]:
    """What the library is to say of each member.

    Example:
        >>> described({}, (), "frobenius")
        {}
    """
    return {
        own.name: LibraryMember(
            carried(folders[own.name].config),
            {
                "layers": own.layers,
                "params_before": own.params_before,
                "relative_error": own.relative_error,
                "svd_relative_error": own.svd_relative_error,
                "task_error": own.task_error,
                "norm": norm,
            },
        )
        for own in reports
    }


def library_card(
    path: str | os.PathLike[str], members: Mapping[str, LibraryMember], groups: Iterable[Group]
) -> str:
    """A model card in Markdown, of what a library says of its members.

    Example:
        >>> "A library of 1 adapters of gpt2" in library_card(
        ...     "a", {"one": LibraryMember({"base_model_name_or_path": "gpt2"}, {"params_before": 9})}, ())
        True
    """
    served = list(groups)
    own = own_params(served)
    after = sum(group.map.num_parameters for group in served)
    rows = [
        f"| {name} | {each.notes['params_before']:,} | {own.get(name, 0):,} "
        + "".join(f"| {_shown(each.notes.get(key))} " for key in _ERRORS)
        + "|"
        for name, each in members.items()
    ]
    return _CARD.format(
        name=Path(path).name,
        count=len(members),
        base=next(iter(members.values())).config.get("base_model_name_or_path") or "one model",
        before=sum(each.notes["params_before"] for each in members.values()),
        after=after,
        shared=after - sum(own.values()),
        rows="\n".join(rows),
    )


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"


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
