"""convert_lora: a trained LoRA folder to a smaller adapter folder, with an honest report."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tntune.checkpoint.lora import LoraFolder, LoraSite, open_lora
from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.checkpoint.tensorguide_writer import write_tensorguide
from tntune.convert.encode import DeltaEncoder, stored
from tntune.convert.gauge import balance
from tntune.convert.jobs import Jobs
from tntune.convert.option import Encoded, Option
from tntune.convert.output import check_output
from tntune.convert.progress import Progress, silent
from tntune.convert.report import ConversionReport, LayerReport, stored_dtypes, total_error
from tntune.convert.settings import ConversionSettings
from tntune.convert.target import choose, train_options
from tntune.convert.task import Task
from tntune.convert.truncation import svd_errors
from tntune.convert.whole import convert_whole
from tntune.errors import NumericalError, RankError, SpecError
from tntune.maps.activation import activation
from tntune.maps.lora import LoRA
from tntune.maps.site import Site

__all__ = ["convert_lora"]


def convert_lora(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    settings: ConversionSettings,
    *,
    overwrite: bool = False,
    carry: bool = False,
    progress: Progress | None = None,
    task: Task | None = None,
) -> ConversionReport:
    """Write ``output``, an adapter folder whose ΔW differs from that of ``source`` by the reported error.

    Layer by layer: the balanced gauge, exact trains in every layout, their errors at points along the way
    from exact to rank one; then one choice over all layers; then the chosen tensors. The source is read
    twice, one layer at a time (``settings.jobs`` at a time). Nothing of size (out, in) is ever formed.

    Args:
        source: LoRA folder as PEFT writes it.
        output: Folder to write; whole or not at all.
        settings: Target, method, layouts.
        overwrite: Whether an existing adapter folder may be replaced.
        carry: Whether unknown tensors of the source are carried along (see :func:`open_lora`).
        progress: Called as layers are done.
        task: A calibration, in whose norm whole adapters are fitted and weighed against one another, and
            what judges and distils them; for the methods ``"joint"``, ``"svd"`` and ``"auto"`` and a
            budget or a tolerance, which is then that of all ΔW together.

    Returns:
        The report, with SVD truncation at equal parameters beside every error.

    Raises:
        CheckpointError, NumericalError: Where the source cannot be read, or is untrained (every ΔW zero).
        RankError: Where the budget is too small for any encoding.
        OutputError: Where the output cannot be written.
        WorkerError: Where one of several jobs is killed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import eye
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> from tntune.convert.target import Target
        >>> settings = ConversionSettings(Target(max_rank=2), method="svd")
        >>> with TemporaryDirectory() as parent:
        ...     lora, smaller = Path(parent) / "lora", Path(parent) / "smaller"
        ...     write_lora(lora, [LoraEntry("fc", eye(3, 5), eye(4, 3))], base_config={})
        ...     report = convert_lora(lora, smaller, settings)
        >>> report.params_after, round(report.relative_error**2, 6)
        (18, 0.333333)
    """
    if not isinstance(settings, ConversionSettings):
        raise SpecError(f"settings must be ConversionSettings(Target(...)), not {settings!r}")
    check_output(source, output, overwrite=overwrite)
    folder = open_lora(source, carry=carry)
    report_progress = progress or silent
    if task is not None or settings.method == "joint":
        return convert_whole(
            folder, output, settings, task=task, progress=report_progress, overwrite=overwrite
        )
    with Jobs(settings.jobs) as jobs:
        spectra, curves = _survey(_Layers(folder, settings), jobs, report_progress)
        norms = {name: float(values.norm()) for name, values in spectra.items()}
        chosen = choose(curves, norms, settings.target, folder.params)
        encoded = dict(_encode(_Layers(folder, settings), chosen, jobs, report_progress))
    if not encoded:
        raise RankError(
            f"{sum(norm > 0 for norm in norms.values())} trained layers, and none fits the budget"
        )
    report = _report(folder, str(output), settings, spectra, chosen, encoded)
    write_tensorguide(
        output,
        encoded,
        config=folder.config,
        passthrough={name: folder.tensor(name) for name in folder.passthrough},
        metadata={
            "tntune": "convert",
            "settings": settings.to_json(),
            "relative_error": report.relative_error,
        },
        card=report.card(),
        overwrite=overwrite,
    )
    written = (Path(output) / TENSORS_NAME).stat().st_size
    return replace(report, bytes_after=written)


@dataclass(frozen=True)
class _Layers:
    """What is done with each layer, in this process or in another."""

    folder: LoraFolder
    settings: ConversionSettings

    def survey(self, site: LoraSite) -> tuple[Tensor, list[Option]]:
        """Singular values and options of a layer."""
        try:
            encoder = self._encoder(site)
            options = list(_options(encoder, site, self.settings, self.folder.params))
        except NumericalError as error:
            raise NumericalError(f"{self.folder.path}: {site.name}: {error}") from error
        return encoder.balanced.values, options

    def encode(self, chosen: tuple[LoraSite, Option]) -> Encoded:
        """Site and tensors of a layer."""
        site, option = chosen
        return self._encoder(site).encode(option)

    def _encoder(self, site: LoraSite) -> DeltaEncoder:
        down, up, scale = self.folder.load(site)
        dtype = self.settings.dtype or site.dtype
        lora = LoRA(site.in_features, site.out_features, site.width, "random")
        tensors = {"lora_down": stored(down, dtype), "lora_up": stored(up, dtype)}
        original = Encoded(Site(lora, scale), tensors)
        return DeltaEncoder(balance(down, up, scale), dtype, self.settings.activation, original=original)


def _survey(
    layers: _Layers, jobs: Jobs, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, list[Option]]]:
    """Singular values and options of every layer; one whose train would be no smaller may stay as it is."""
    spectra, curves = {}, {}
    sites = layers.folder.sites
    for done, (site, found) in enumerate(zip(sites, jobs.map(layers.survey, sites), strict=True), 1):
        spectra[site.name], curves[site.name] = found
        progress("survey", done, len(sites))
    if not any(bool(values.any()) for values in spectra.values()):
        raise NumericalError(f"{layers.folder.path}: every ΔW is zero: this adapter was never trained")
    return spectra, curves


def _options(
    encoder: DeltaEncoder, site: LoraSite, settings: ConversionSettings, total: int
) -> Iterator[Option]:
    target = settings.target
    budget, cap = target.budget(total), target.max_rank or site.width
    if activation(settings.activation).linear and target.max_rank is None:
        yield encoder.kept()
    if settings.method != "tensorguide":
        yield from (option for option in encoder.truncations() if option.ranks[0] <= cap)
    if settings.method != "svd":
        for layout in settings.layouts:
            yield from train_options(encoder, layout, target, (budget or total) * site.params / total)
    if budget is not None:
        yield encoder.dropped()


def _encode(
    layers: _Layers, chosen: Mapping[str, Option], jobs: Jobs, progress: Progress
) -> Iterator[tuple[str, Encoded]]:
    """Site and tensors of every layer that is kept."""
    kept = [
        (site, chosen[site.name]) for site in layers.folder.sites if chosen[site.name].method != "dropped"
    ]
    for done, ((site, _), encoded) in enumerate(zip(kept, jobs.map(layers.encode, kept), strict=True), 1):
        yield site.name, encoded
        progress("encode", done, len(kept))


def _report(
    folder: LoraFolder,
    output: str,
    settings: ConversionSettings,
    spectra: Mapping[str, Tensor],
    chosen: Mapping[str, Option],
    encoded: Mapping[str, Encoded],
) -> ConversionReport:
    norms = {name: float(values.norm()) for name, values in spectra.items()}
    after = sum(option.params for option in chosen.values())
    layers = tuple(
        _layer(site, chosen[site.name], encoded.get(site.name), spectra[site.name]) for site in folder.sites
    )
    error = total_error((option.squared_error for option in chosen.values()), norms.values())
    return ConversionReport(
        source=str(folder.path),
        output=output,
        settings=settings.to_json(),
        measure="frobenius",
        params_before=folder.params,
        params_after=after,
        bytes_before=folder.num_bytes,
        bytes_after=0,
        dtypes=stored_dtypes(encoded.values()),
        relative_error=error,
        svd_relative_error=_baseline(folder, settings, spectra, layers),
        target_met=settings.target.met(chosen, norms, folder.params),
        passthrough=len(folder.passthrough),
        layers=layers,
    )


def _baseline(
    folder: LoraFolder,
    settings: ConversionSettings,
    spectra: Mapping[str, Tensor],
    layers: tuple[LayerReport, ...],
) -> float:
    """Total error of plain SVD with as many parameters: in total for a budget, else in every layer."""
    sizes = {site.name: site.in_features + site.out_features for site in folder.sites}
    norms = [layer.norm for layer in layers]
    if settings.target.budget(folder.params) is not None:
        after = sum(layer.params_after for layer in layers)
        return total_error(svd_errors(spectra, sizes, after).values(), norms)
    return total_error([((layer.svd_relative_error or 0.0) * layer.norm) ** 2 for layer in layers], norms)


def _layer(site: LoraSite, option: Option, encoded: Encoded | None, values: Tensor) -> LayerReport:
    norm = float(values.norm())
    size = site.in_features + site.out_features
    squared = svd_errors({site.name: values}, {site.name: size}, option.params)[site.name]
    return LayerReport(
        name=site.name,
        shape=(site.out_features, site.in_features),
        method=option.method,
        layout=option.layout,
        ranks=option.ranks,
        width=encoded.site.map.width if encoded else 0,
        params_before=site.params,
        params_after=option.params,
        norm=norm,
        relative_error=total_error([option.squared_error], [norm]),
        svd_relative_error=total_error([squared], [norm]),
    )
