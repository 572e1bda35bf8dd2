"""convert_whole: a LoRA to the best of several whole adapters, weighed against one another."""

import os
from dataclasses import replace
from pathlib import Path

from tntune.checkpoint.lora import LoraFolder, LoraSite
from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.checkpoint.tensorguide_writer import write_groups, write_tensorguide
from tntune.convert.candidate import Candidate, Layers
from tntune.convert.contest import Contest, Weighed
from tntune.convert.encode import DEFAULT_LAYOUTS
from tntune.convert.progress import Progress
from tntune.convert.report import ConversionReport, LayerReport, total_error
from tntune.convert.settings import ConversionSettings
from tntune.convert.task import Task
from tntune.convert.truncation import svd_errors
from tntune.errors import SpecError
from tntune.maps.base import Shape
from tntune.maps.group import Group
from tntune.maps.site import Site
from tntune.maps.streams import Streams

__all__ = ["check_whole", "convert_whole", "write_best"]


def convert_whole(
    folder: LoraFolder,
    output: str | os.PathLike[str],
    settings: ConversionSettings,
    *,
    task: Task | None,
    progress: Progress,
    overwrite: bool,
) -> ConversionReport:
    """Write the candidate of least divergence, or else of least error in the norm; the report has them all.

    Candidates of ``"svd"`` are truncated SVDs, plain and weighted, ranks spread by singular values or evenly;
    of ``"joint"`` trains over the layers of each shape, mixed with SVDs of groups where those are better, in
    the task norm at three dampings where a model judges; of ``"auto"`` both. Where a model judges, the best
    of them is then tried at a few larger scales, and distilled where the task says so. A tolerance is the
    relative error of all ΔW together, in the norm; the smallest budget is sought that meets it.

    Args:
        folder: The opened LoRA.
        output: Folder to write, checked.
        settings: With a budget or a tolerance as target.
        task: What is known of the adapter's use.
        progress: Called as candidates are made.
        overwrite: Whether an existing adapter folder may be replaced.

    Raises:
        SpecError: Where the target is a cap on ranks, the method makes no whole adapters, layouts are given,
            or a distillation is to meet a tolerance.
        RankError: Where the budget is too small for anything, or all parameters miss the tolerance.

    Example:
        >>> convert_whole.__name__
        'convert_whole'
    """
    check_whole(settings, distilled=task is not None and task.distillation is not None)
    contest = Contest(Layers.load(folder, settings.dtype), task, progress)
    return write_best(contest, folder, output, settings, overwrite=overwrite)


def check_whole(settings: ConversionSettings, *, distilled: bool = False) -> None:
    """Raise SpecError where these settings convert no whole adapter, or none that is distilled.

    Example:
        >>> from tntune.convert.target import Target
        >>> check_whole(ConversionSettings(Target(params=0.5), "svd"))
    """
    if settings.target.max_rank is not None or settings.method == "tensorguide":
        raise SpecError(
            "with a calibration the methods are joint, svd and auto, for a budget (params, max_params) or a "
            f"tolerance; not {settings.method!r} for {settings.target.to_json()}"
        )
    if tuple(settings.layouts) != DEFAULT_LAYOUTS:
        raise SpecError(f"with a calibration no layouts are chosen from, but {settings.layouts} were given")
    settings.check_one_job()
    if settings.target.tolerance is not None and distilled:
        raise SpecError("a distillation follows predictions, a tolerance the norm: give a budget to distil")


def write_best(
    contest: Contest,
    folder: LoraFolder,
    output: str | os.PathLike[str],
    settings: ConversionSettings,
    *,
    overwrite: bool,
) -> ConversionReport:
    """:func:`convert_whole` with a contest that may have served other budgets: the result is the same.

    Example:
        >>> write_best.__name__
        'write_best'
    """
    tolerance = settings.target.tolerance
    budget = settings.target.budget(folder.params)
    if tolerance is not None:
        budget = contest.budget_of(settings.method, tolerance, folder.params)
    best = contest.scored(contest.best(settings.method, budget or 0, tolerance=tolerance))
    report = replace(_report(folder, contest, settings, best), output=str(output))
    _write(folder, output, best.candidate, report, overwrite=overwrite)
    return replace(report, bytes_after=(Path(output) / TENSORS_NAME).stat().st_size)


def _report(
    folder: LoraFolder, contest: Contest, settings: ConversionSettings, best: Weighed
) -> ConversionReport:
    """The report of the best, with its rivals beside it."""
    layers, target = contest.layers, settings.target
    own = {module: group for group, _ in best.candidate.pieces for module in group.modules}
    spectra = {name: each.values for name, each in layers.balanced.items()}
    sizes = {name: layers.size(name) for name in spectra}
    plain = svd_errors(spectra, sizes, best.candidate.params)
    met = target.tolerance is None or best.error <= target.tolerance
    score = contest.task.score if contest.task else None
    return ConversionReport(
        source=str(folder.path),
        output="",
        settings=settings.to_json(),
        measure="frobenius",
        params_before=folder.params,
        params_after=best.candidate.params,
        bytes_before=folder.num_bytes,
        bytes_after=0,
        dtypes=(str(layers.dtype),),
        relative_error=best.report.relative_error,
        svd_relative_error=total_error(plain.values(), (each.norm for each in layers.balanced.values())),
        target_met=met and best.candidate.params <= (target.budget(folder.params) or folder.params),
        passthrough=len(folder.passthrough),
        layers=tuple(_layer(site, own.get(site.name), layers, best) for site in folder.sites),
        norm=contest.norm.name,
        task_error=best.report.task_error,
        divergence=best.report.divergence,
        chosen=best.candidate.name,
        candidates=tuple(best.report if each.name == best.candidate.name else each for each in best.rivals),
        distillation=best.distillation,
        score_before=score.before if score else None,
        score_after=best.report.score,
    )


def _layer(site: LoraSite, group: Group | None, layers: Layers, best: Weighed) -> LayerReport:
    known = layers.balanced.get(site.name)
    norm = known.norm if known else 0.0
    after = 0 if group is None else _part(group, site.name)
    plain = 0.0
    if known:
        plain = svd_errors({site.name: known.values}, {site.name: layers.size(site.name)}, after)[site.name]
    joint = group is not None and group.map.sites > 1
    layout, ranks, width = _form(group, site.name) if group else ("", (), 0)
    return LayerReport(
        name=site.name,
        shape=(site.out_features, site.in_features),
        method="joint" if joint else "svd" if group else "dropped",
        layout=layout,
        ranks=ranks,
        width=width,
        params_before=site.params,
        params_after=after,
        norm=norm,
        relative_error=total_error([best.squares.get(site.name, 0.0)], [norm]),
        svd_relative_error=total_error([plain], [norm]),
        task_error=best.task_errors.get(site.name),
    )


def _form(group: Group, module: str) -> tuple[str, Shape, int]:
    """Layout, ranks and width of a module; of streams the ranks of those that it reads and writes."""
    map, site = group.map, group.modules.index(module)
    width = map.site_sizes(site)[2]
    if isinstance(map, Streams):
        return map.kind, (map.ranks[map.inputs[site]], map.ranks[map.outputs[site]]), width
    return getattr(getattr(map, "layout", None), "pattern", ""), getattr(map, "ranks", (width,)), width


def _part(group: Group, module: str) -> int:
    """A module's even part of its map's parameters; the parts of all modules are the whole."""
    whole, rest = divmod(group.map.num_parameters, group.map.sites)
    return whole + (group.modules.index(module) < rest)


def _write(
    folder: LoraFolder,
    output: str | os.PathLike[str],
    candidate: Candidate,
    report: ConversionReport,
    *,
    overwrite: bool,
) -> None:
    """The candidate's folder: maps for modules where each serves one, else for groups."""
    passthrough = {name: folder.tensor(name) for name in folder.passthrough}
    metadata = {
        "tntune": "convert",
        "settings": report.settings,
        "chosen": report.chosen,
        "relative_error": report.relative_error,
        "task_error": report.task_error,
        "divergence": report.divergence,
        "distillation": None if report.distillation is None else report.distillation.metadata(),
    }
    if candidate.joint:
        groups = {_group_name(i, group): (group, own) for i, (group, own) in enumerate(candidate.pieces)}
        write_groups(
            output,
            groups,
            config=folder.config,
            passthrough=passthrough,
            metadata=metadata,
            card=report.card(),
            overwrite=overwrite,
        )
        return
    write_tensorguide(
        output,
        {group.modules[0]: (Site(group.map, group.scales[0]), own) for group, own in candidate.pieces},
        config=folder.config,
        passthrough=passthrough,
        metadata=metadata,
        card=report.card(),
        overwrite=overwrite,
    )


def _group_name(index: int, group: Group) -> str:
    """Such as ``0_384x1536``: in by out; or ``0_streams`` of layers of many shapes."""
    if not group.map.is_even:
        return f"{index}_{group.map.kind}"
    return f"{index}_{group.map.in_features}x{group.map.out_features}"
