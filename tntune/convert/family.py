"""convert_family: a trained LoRA to the maps of any published method, and the error of each layer."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.checkpoint.lora import LoraFolder, LoraSite, open_lora
from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.checkpoint.tensorguide_writer import write_groups, write_tensorguide
from tntune.convert.encode import stored
from tntune.convert.family_settings import FamilySettings
from tntune.convert.gauge import Balanced, balance, delta_distance
from tntune.convert.option import Encoded, linear_factors
from tntune.convert.output import check_output
from tntune.convert.progress import Progress, silent
from tntune.convert.report import ConversionReport, LayerReport, total_error
from tntune.convert.truncation import svd_errors
from tntune.errors import NumericalError
from tntune.maps.base import Factors, WeightMap
from tntune.maps.budget import largest_rank
from tntune.maps.fit_groups import FittedGroup, fit_groups
from tntune.maps.group import Group
from tntune.maps.member import Member
from tntune.maps.recipe import JOINT_METHODS, Recipe
from tntune.maps.site import Site
from tntune.maps.tt_lora import TTLoRA

__all__ = ["convert_family"]

Fitted = Mapping[str, FittedGroup]


def convert_family(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: FamilySettings,
    *,
    overwrite: bool = False,
    carry: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write ``output``, maps of one method whose ΔW differs from that of ``source`` by the reported error.

    Each map is fitted to all its layers by :func:`tntune.maps.fit_groups`, in float64: HOSVD and TT-SVD
    within a known factor of the best, alternating least squares for a CP. A budget or a cap is one fit; a
    tolerance is met by the least rank, by bisection, with at most as many parameters as the LoRA has.

    Args:
        source: LoRA folder as PEFT writes it.
        output: Folder to write; whole or not at all.
        settings: Target and method.
        overwrite: Whether an existing adapter folder may be replaced.
        carry: Whether unknown tensors of the source are carried along.
        progress: Called as layers are read and fits are done.

    Returns:
        The report, with SVD truncation at equal parameters beside every error.

    Raises:
        CheckpointError, NumericalError: Where the source cannot be read, or is untrained (every ΔW zero).
        SpecError: Where the budget is below the least size of the method, or heads of unknown size.
        ModeError: Where heads do not divide the features.
        OutputError: Where the output cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import eye
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> from tntune.convert.target import Target
        >>> layers = [LoraEntry(f"h.{i}.fc", eye(2, 5), (i + 1.0) * eye(4, 2)) for i in range(3)]
        >>> with TemporaryDirectory() as parent:
        ...     lora, smaller = Path(parent) / "lora", Path(parent) / "smaller"
        ...     write_lora(lora, layers, base_config={})
        ...     report = convert_family(lora, smaller, FamilySettings(Target(tolerance=0.01), "lotr"))
        >>> report.params_before, report.params_after, report.relative_error < 1e-6
        (54, 30, True)
    """
    check_output(source, output, overwrite=overwrite)
    folder, watched = open_lora(source, carry=carry), progress or silent
    balanced = _balanced(folder, watched)
    fitted = _fitted(folder, settings, balanced, watched)
    pieces = {name: _piece(folder, settings, each) for name, each in fitted.items()}
    report = replace(_report(folder, settings, balanced, pieces), output=str(output))
    _write(folder, output, pieces, report, overwrite=overwrite)
    return replace(report, bytes_after=(Path(output) / TENSORS_NAME).stat().st_size)


class _Piece(NamedTuple):
    """A group with its tensors in the dtype to store."""

    group: Group
    tensors: dict[str, Tensor]

    def site(self, index: int) -> Site:
        """One layer of it by itself."""
        map = self.group.map
        return Site(map if map.sites == 1 else Member(map, index), self.group.scales[index])


def _balanced(folder: LoraFolder, progress: Progress) -> dict[str, Balanced]:
    """The balanced factors of every layer, so that a fit of factors does not depend on their gauge."""
    found = {}
    for done, site in enumerate(folder.sites, 1):
        try:
            found[site.name] = balance(*folder.load(site))
        except NumericalError as error:
            raise NumericalError(f"{folder.path}: {site.name}: {error}") from error
        progress("read", done, len(folder.sites))
    if not any(each.norm for each in found.values()):
        raise NumericalError(f"{folder.path}: every ΔW is zero: this adapter was never trained")
    return found


class _Fits:
    """Fits of one method at several sizes to the same layers."""

    def __init__(self, recipe: Recipe, balanced: Mapping[str, Balanced], progress: Progress) -> None:
        self._recipe, self._progress, self._made = recipe, progress, 0
        self._layers = {name: Factors(each.down, each.up) for name, each in balanced.items()}
        self._norms = {name: each.norm for name, each in balanced.items()}

    def at(self, *, rank: int | None = None, params: int | None = None) -> Fitted:
        """The fit at a rank or within a budget."""
        found = fit_groups(replace(self._recipe, rank=rank, params=params), self._layers)
        self._made += 1
        self._progress("fit", self._made, self._made)
        return found

    def least(self, tolerance: float, most: int) -> Fitted:
        """The fit of least rank that meets a tolerance; of all within so many parameters the largest else."""
        low, high = 0, largest_rank(self._count, most, f"{len(self._layers)} layers")
        best = self.at(rank=high)
        if self._error(best) > tolerance:
            return best
        while high - low > 1:
            middle = (low + high) // 2
            found = self.at(rank=middle)
            if self._error(found) > tolerance:
                low = middle
            else:
                high, best = middle, found
        return best

    def _count(self, rank: int) -> int:
        sizes = {name: (down.shape[1], up.shape[0]) for name, (down, up) in self._layers.items()}
        recipe = replace(self._recipe, rank=rank)
        maps = [map for _, map in recipe.joint_maps(sizes).values()] if recipe.is_joint else []
        return sum(map.num_parameters for map in maps or recipe.layer_maps(sizes).values())

    def _error(self, fitted: Fitted) -> float:
        """Relative error of all ΔW together."""
        norms = [math.hypot(*(self._norms[name] for name in each.group.modules)) for each in fitted.values()]
        lost = ((each.error * norm) ** 2 for each, norm in zip(fitted.values(), norms, strict=True) if norm)
        return total_error(lost, norms)


def _fitted(
    folder: LoraFolder, settings: FamilySettings, balanced: Mapping[str, Balanced], progress: Progress
) -> Fitted:
    """The fit that the target asks for."""
    fits = _Fits(settings.recipe(max(len(each.values) for each in balanced.values())), balanced, progress)
    target = settings.target
    if target.tolerance is not None:
        return fits.least(target.tolerance, folder.params)
    return fits.at(rank=target.max_rank, params=target.budget(folder.params))


def _piece(folder: LoraFolder, settings: FamilySettings, fitted: FittedGroup) -> _Piece:
    own = [site.dtype for site in folder.sites if site.name in fitted.group.modules]
    dtype = settings.dtype or reduce(torch.promote_types, own)
    return _Piece(fitted.group, {name: stored(value, dtype) for name, value in fitted.tensors.items()})


def _report(
    folder: LoraFolder,
    settings: FamilySettings,
    balanced: Mapping[str, Balanced],
    pieces: Mapping[str, _Piece],
) -> ConversionReport:
    sizes = {site.name: site.in_features + site.out_features for site in folder.sites}
    placed = {name: (piece, k) for piece in pieces.values() for k, name in enumerate(piece.group.modules)}
    layers = tuple(
        _layer(site, settings.method, balanced[site.name], *placed[site.name]) for site in folder.sites
    )
    norms = [layer.norm for layer in layers]
    after = sum(piece.group.map.num_parameters for piece in pieces.values())
    error = total_error(((layer.relative_error * layer.norm) ** 2 for layer in layers), norms)
    plain = svd_errors({name: each.values for name, each in balanced.items()}, sizes, after)
    tensors = [tensor for piece in pieces.values() for tensor in piece.tensors.values()]
    return ConversionReport(
        source=str(folder.path),
        output="",
        settings=settings.to_json(),
        measure="frobenius",
        params_before=folder.params,
        params_after=after,
        bytes_before=folder.num_bytes,
        bytes_after=0,
        dtypes=tuple(dict.fromkeys(str(tensor.dtype) for tensor in tensors)),
        relative_error=error,
        svd_relative_error=total_error(plain.values(), norms),
        target_met=settings.target.tolerance is None or error <= settings.target.tolerance,
        passthrough=len(folder.passthrough),
        layers=layers,
    )


def _layer(site: LoraSite, method: str, balanced: Balanced, piece: _Piece, index: int) -> LayerReport:
    map, size = piece.group.map, site.in_features + site.out_features
    after = map.num_parameters // map.sites + (index < map.num_parameters % map.sites)
    found = linear_factors(Encoded(piece.site(index), piece.tensors))
    gap = delta_distance(Factors(balanced.down, balanced.up), found)
    plain = svd_errors({site.name: balanced.values}, {site.name: size}, after)[site.name]
    norm = balanced.norm
    return LayerReport(
        name=site.name,
        shape=(site.out_features, site.in_features),
        method=method,
        layout="",
        ranks=_ranks(map),
        width=map.width,
        params_before=site.params,
        params_after=after,
        norm=norm,
        relative_error=gap / norm if norm else gap,
        svd_relative_error=total_error([plain], [norm]),
    )


def _ranks(map: WeightMap) -> tuple[int, ...]:
    """All ranks of the trains or the tensor, or the one of all bonds."""
    if isinstance(map, TTLoRA):
        return (*map.down_train.ranks, *map.up_train.ranks)
    ranks: tuple[int, ...] = getattr(map, "ranks", (getattr(map, "rank", map.width),))
    return ranks


def _write(
    folder: LoraFolder,
    output: str | os.PathLike[str],
    pieces: Mapping[str, _Piece],
    report: ConversionReport,
    *,
    overwrite: bool,
) -> None:
    """A folder of groups where maps are shared, else of sites."""
    passthrough = {name: folder.tensor(name) for name in folder.passthrough}
    metadata = {
        "tntune": "convert",
        "settings": report.settings,
        "relative_error": report.relative_error,
    }
    if report.settings["method"] in JOINT_METHODS:
        write_groups(
            output,
            pieces,
            config=folder.config,
            passthrough=passthrough,
            metadata=metadata,
            card=report.card(),
            overwrite=overwrite,
        )
        return
    write_tensorguide(
        output,
        {piece.group.modules[0]: (piece.site(0), piece.tensors) for piece in pieces.values()},
        config=folder.config,
        passthrough=passthrough,
        metadata=metadata,
        card=report.card(),
        overwrite=overwrite,
    )
