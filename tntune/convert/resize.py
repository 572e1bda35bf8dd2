"""resize_lora: a plain LoRA of lower ranks, in the format that it came in."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tntune.checkpoint.lora import LoraFolder, LoraSite, open_lora
from tntune.checkpoint.lora_file import LoraFile, open_lora_file
from tntune.checkpoint.lora_file_writer import write_lora_file
from tntune.checkpoint.lora_writer import LoraEntry, write_lora
from tntune.convert.encode import stored
from tntune.convert.gauge import Balanced, balance, delta_distance, delta_norm
from tntune.convert.jobs import Jobs
from tntune.convert.norm import Norm, weighted_balance
from tntune.convert.output import check_output
from tntune.convert.progress import Progress, silent
from tntune.convert.report import total_error
from tntune.convert.resize_report import ResizedLayer, ResizeReport
from tntune.convert.resize_settings import ResizeSettings, resized_ranks
from tntune.errors import NumericalError, OutputError
from tntune.maps.base import Factors

__all__ = ["resize_lora"]

Source = LoraFolder | LoraFile

_MEASURED = 1e-12  # relative errors below that are rounding of the measurement
_SUFFIX = ".safetensors"


def resize_lora(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: ResizeSettings,
    *,
    norm: Norm | None = None,
    overwrite: bool = False,
    carry: bool = False,
    progress: Progress | None = None,
) -> ResizeReport:
    """Write ``output``, a plain LoRA whose every ΔW is the best of its rank.

    Each layer is truncated by the SVD of its ΔW, from thin QRs of the factors: nothing of size (out, in) is
    formed, and factors (R down, up R⁻¹) give the same. A layer whose rank is not lowered stays as it is. The
    source is read twice, one layer at a time; errors are measured on the output as read back.

    Args:
        source: A PEFT LoRA folder, or a ``.safetensors`` file of kohya's scripts or diffusers.
        output: What to write, in the format of ``source``; whole or not at all.
        settings: How small or how accurate.
        norm: The norm in which errors are least: the task norm of a calibration, else Frobenius.
        overwrite: Whether an adapter that is there may be replaced.
        carry: Whether unknown tensors of the source are carried along.
        progress: Called as layers are done.

    Raises:
        CheckpointError, NumericalError: Where the source cannot be read, or is untrained (every ΔW zero).
        TargetError: Where the calibration does not have a layer.
        RankError: Where the budget is too small for any layer.
        OutputError: Where the output cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as parent:
        ...     lora, smaller = Path(parent) / "lora", Path(parent) / "smaller"
        ...     write_lora(lora, [LoraEntry("fc", torch.eye(4, 5), torch.eye(4, 4))], base_config={})
        ...     report = resize_lora(lora, smaller, ResizeSettings(rank=3))
        >>> report.params_after, round(report.relative_error, 6)
        (27, 0.5)

    Reference: Eckart and Young (1936).
    """
    check_output(source, output, overwrite=overwrite)
    opened = _open(source, carry)
    if isinstance(opened, LoraFile) and Path(output).suffix != _SUFFIX:
        raise OutputError(f"{output}: a single LoRA file is named *{_SUFFIX}")
    with Jobs(settings.jobs) as jobs:
        run = _Run(_Layers(opened, settings, norm or Norm()), jobs, progress or silent)
        ranks = run.ranks()
        _write(opened, output, list(run.entries(ranks)), settings, overwrite)
        return run.report(_open(output, True))


def _open(path: str | os.PathLike[str], carry: bool) -> Source:
    """A PEFT folder or a single file."""
    return open_lora(path, carry=carry) if Path(path).is_dir() else open_lora_file(path, carry=carry)


def _factors(opened: Source, site: LoraSite) -> Factors:
    """Down and up of a layer in float64, the scale in up."""
    down, up, scale = opened.load(site)
    return Factors(down.double(), scale * up.double())


def _distance(first: Factors, second: Factors) -> float:
    """How far two ΔW are apart; 0 for the same factors, free of rounding."""
    same = all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    return 0.0 if same else delta_distance(first, second)


def _write(
    opened: Source,
    output: str | os.PathLike[str],
    entries: list[LoraEntry],
    settings: ResizeSettings,
    overwrite: bool,
) -> None:
    """The entries in the format of the source."""
    if isinstance(opened, LoraFile):
        notes = {"tntune": json.dumps({"resize": settings.to_json()})}
        write_lora_file(output, entries, like=opened, notes=notes, overwrite=overwrite)
        return
    passthrough = {key: opened.tensor(key) for key in opened.passthrough}
    write_lora(output, entries, base_config=opened.config, passthrough=passthrough, overwrite=overwrite)


@dataclass(frozen=True)
class _Layers:
    """What is done with each layer, in this process or in another."""

    opened: Source
    settings: ResizeSettings
    norm: Norm

    def values(self, site: LoraSite) -> Tensor:
        """Non-zero singular values of a layer, in the norm."""
        values = self._balanced(site).values
        return values[values > 0]

    def entry(self, chosen: tuple[LoraSite, int]) -> LoraEntry:
        """A layer of that rank: as it is, or truncated."""
        site, rank = chosen
        down, up, scale = self.opened.load(site)
        dtypes = [self.settings.dtype or factor.dtype for factor in (down, up)]
        if rank < site.width:
            balanced, scale = self._balanced(site), 1.0
            down, up = balanced.down[:rank], balanced.up[:, :rank]
        return LoraEntry(site.name, stored(down, dtypes[0]), stored(up, dtypes[1]), scale)

    def resized(self, written: Source, pair: tuple[LoraSite, LoraSite | None]) -> tuple[ResizedLayer, float]:
        """One layer's report, and its norm in the task norm."""
        site, after = pair
        own = _factors(self.opened, site)
        made = _factors(written, after) if after else Factors(own.down[:1], torch.zeros_like(own.up[:, :1]))
        norm, task_norm, task_error = delta_norm(own), 0.0, None
        if self.norm.calibration is not None:
            layer = self.norm.layer(site.name, (site.out_features, site.in_features))
            task_norm = math.sqrt(layer.squared(own))
            task_error = total_error([layer.squared_distance(own, made)], [task_norm])
        resized = ResizedLayer(
            name=site.name,
            shape=(site.out_features, site.in_features),
            rank_before=site.width,
            rank_after=after.width if after else 0,
            params_before=site.params,
            params_after=after.params if after else 0,
            norm=norm,
            relative_error=total_error([_distance(own, made) ** 2], [norm]),
            task_error=task_error,
        )
        return resized, task_norm

    def _balanced(self, site: LoraSite) -> Balanced:
        """Factors of which the leading k are the best of rank k in the norm."""
        factors = _factors(self.opened, site)
        try:
            plain = balance(*factors)
            if self.norm.calibration is None or not plain.norm:
                return plain
            return weighted_balance(
                factors, self.norm.layer(site.name, (site.out_features, site.in_features))
            )
        except NumericalError as error:
            raise NumericalError(f"{self.opened.path}: {site.name}: {error}") from error


@dataclass(frozen=True)
class _Run:
    """One resizing: its steps, each over all layers."""

    layers: _Layers
    jobs: Jobs
    progress: Progress

    @property
    def opened(self) -> Source:
        return self.layers.opened

    @property
    def settings(self) -> ResizeSettings:
        return self.layers.settings

    def ranks(self) -> dict[str, int]:
        """The rank that each layer gets."""
        sites = self.opened.sites
        spectra = {}
        found = self.jobs.map(self.layers.values, sites)
        for done, (site, values) in enumerate(zip(sites, found, strict=True), 1):
            spectra[site.name] = values
            self.progress("survey", done, len(sites))
        if not any(len(values) for values in spectra.values()):
            raise NumericalError(f"{self.opened.path}: every ΔW is zero: this adapter was never trained")
        widths = {site.name: site.width for site in sites}
        sizes = {site.name: site.in_features + site.out_features for site in sites}
        dtypes = (self.settings.dtype,) if self.settings.dtype else self.opened.dtypes
        rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
        return resized_ranks(self.settings, spectra, widths, sizes, rounding=rounding)

    def entries(self, ranks: Mapping[str, int]) -> Iterator[LoraEntry]:
        """The layers that are kept, in the dtypes to store."""
        kept = [(site, ranks[site.name]) for site in self.opened.sites if ranks[site.name]]
        for done, entry in enumerate(self.jobs.map(self.layers.entry, kept), 1):
            yield entry
            self.progress("truncate", done, len(kept))

    def report(self, written: Source) -> ResizeReport:
        """What became of the source, from what is in the output."""
        after = {site.name: site for site in written.sites}
        pairs = [(site, after.get(site.name)) for site in self.opened.sites]
        measured = list(self.jobs.map(partial(self.layers.resized, written), pairs))
        layers = tuple(layer for layer, _ in measured)
        norms = [norm for _, norm in measured]
        measure = self.layers.norm
        weighted = measure.calibration is not None
        task = [((layer.task_error or 0.0) * norm) ** 2 for layer, norm in measured] if weighted else []
        error = total_error(
            ((each.relative_error * each.norm) ** 2 for each in layers), (x.norm for x in layers)
        )
        task_error = total_error(task, norms) if weighted else None
        return ResizeReport(
            source=str(self.opened.path),
            output=str(written.path),
            format=written.style if isinstance(written, LoraFile) else "peft",
            settings=self.settings.to_json(),
            norm=measure.name,
            params_before=self.opened.params,
            params_after=written.params,
            bytes_before=self.opened.num_bytes,
            bytes_after=written.num_bytes,
            dtypes=tuple(str(dtype) for dtype in written.dtypes),
            relative_error=error,
            task_error=task_error,
            target_met=self._met(layers, error if task_error is None else task_error),
            passthrough=len(written.passthrough),
            layers=layers,
        )

    def _met(self, layers: tuple[ResizedLayer, ...], error: float) -> bool:
        """Whether the aim is met by what was measured."""
        settings = self.settings
        if settings.rank is not None:
            return all(layer.rank_after <= settings.rank for layer in layers)
        if settings.lost is None:
            return sum(layer.params_after for layer in layers) <= (settings.budget(self.opened.params) or 0)
        errors = [layer.relative_error if layer.task_error is None else layer.task_error for layer in layers]
        return max(errors if settings.uniform else [error]) <= math.sqrt(settings.lost) + _MEASURED
