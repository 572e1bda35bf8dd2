"""convert_whole: a LoRA to the best of several whole adapters, weighed against one another."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tntune.checkpoint.lora import LoraFolder, LoraSite
from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.checkpoint.tensorguide_writer import write_groups, write_tensorguide
from tntune.convert.candidate import Candidate, Layers
from tntune.convert.norm import DAMPING, Norm
from tntune.convert.report import CandidateReport, ConversionReport, LayerReport, total_error
from tntune.convert.search import JointSearch, svd_candidates
from tntune.convert.settings import ConversionSettings
from tntune.convert.task import Task
from tntune.convert.truncation import svd_errors
from tntune.errors import RankError, SpecError
from tntune.maps.group import Group
from tntune.maps.site import Site

__all__ = ["convert_whole"]

DAMPINGS = (DAMPING, 0.03, 0.3)
"""Those tried where a model judges."""

GAINS = (1.1, 1.2, 1.35, 1.5)
"""Factors of the whole ΔW tried where a model judges: least squares shrinks what it cannot represent."""


@dataclass(frozen=True)
class _Weighed:
    """A candidate with its squared errors by layer, and the relative ones in the task norm."""

    candidate: Candidate
    squares: Mapping[str, float]
    task_errors: Mapping[str, float]
    report: CandidateReport


def convert_whole(
    folder: LoraFolder,
    output: str | os.PathLike[str],
    settings: ConversionSettings,
    *,
    task: Task | None,
    progress: Callable[[str, int, int], None],
    overwrite: bool,
) -> ConversionReport:
    """Write the candidate of least divergence, or else of least error in the norm; the report has them all.

    Candidates of ``"svd"`` are truncated SVDs, plain and weighted, ranks spread by singular values or evenly;
    of ``"joint"`` trains over the layers of each shape, mixed with SVDs of groups where those are better, in
    the task norm at three dampings where a model judges; of ``"auto"`` both. Where a model judges, the best
    of them is then tried at a few larger scales.

    Args:
        folder: The opened LoRA.
        output: Folder to write, checked.
        settings: With a budget as target.
        task: What is known of the adapter's use.
        progress: Called as candidates are made.
        overwrite: Whether an existing adapter folder may be replaced.

    Raises:
        SpecError: Where the target is no budget, or the method makes no whole adapters.
        RankError: Where the budget is too small for anything.

    Example:
        >>> convert_whole.__name__
        'convert_whole'
    """
    budget = settings.target.budget(folder.params)
    if budget is None or settings.method == "tensorguide":
        raise SpecError(
            f"with a calibration the methods are joint, svd and auto, for a budget (params, max_params); "
            f"not {settings.method!r} for {settings.target.to_json()}"
        )
    norm = Norm(task.calibration) if task else Norm()
    layers = Layers.load(folder, settings.dtype)
    weighed = []
    for candidate in _candidates(layers, norm, budget, settings.method, task):
        weighed.append(_weigh(layers, candidate, norm, task))
        progress("weigh", len(weighed), _most(settings.method, task))
    if not weighed:
        raise RankError(
            f"a budget of {budget} parameters fits no layer; the least possible is {_least(layers)}"
        )
    best = min(weighed, key=lambda each: _rating(each.report))
    for louder in _louder(layers, best, norm, task):
        weighed.append(louder)
        best = min(best, louder, key=lambda each: _rating(each.report))
    report = _report(folder, layers, settings, norm, [best, *weighed])
    _write(folder, output, best.candidate, replace(report, output=str(output)), overwrite=overwrite)
    return replace(report, output=str(output), bytes_after=(Path(output) / TENSORS_NAME).stat().st_size)


def _candidates(
    layers: Layers, norm: Norm, budget: int, method: str, task: Task | None
) -> Iterator[Candidate]:
    if method != "joint":
        yield from svd_candidates(layers, norm, budget)
    if method != "svd":
        search = JointSearch(layers, norm, budget)
        plan = search.plan()
        for damping in _dampings(task):
            candidate = search.candidate(plan, norm.damped(damping))
            if candidate.pieces and (candidate.joint or method == "joint"):
                yield candidate


def _louder(layers: Layers, best: _Weighed, norm: Norm, task: Task | None) -> Iterator[_Weighed]:
    """The best candidate times rising gains, as long as a model finds them better."""
    if task is None or task.divergence is None:
        return
    for gain in GAINS:
        tried = _weigh(layers, best.candidate.scaled(gain), norm, task)
        yield tried
        if _rating(tried.report) >= _rating(best.report):
            return
        best = replace(best, report=tried.report)


def _dampings(task: Task | None) -> tuple[float, ...]:
    return DAMPINGS if task and task.divergence else DAMPINGS[:1]


def _most(method: str, task: Task | None) -> int:
    """How many candidates there are at most."""
    truncated = 0 if method == "joint" else 4 if task else 2
    return truncated + (0 if method == "svd" else len(_dampings(task)))


def _weigh(layers: Layers, candidate: Candidate, norm: Norm, task: Task | None) -> _Weighed:
    """All errors of a candidate, as stored."""
    plain, own = layers.norms(Norm()), layers.norms(norm)
    squares = candidate.squared_errors(layers, plain)
    relative = total_error(squares.values(), (layers.balanced[name].norm for name in squares))
    task_error, task_errors = None, {}
    if task:
        missed = candidate.squared_errors(layers, own)
        sizes = {name: own[name].squared(layers.factors(name)) ** 0.5 for name in own}
        task_error = total_error(missed.values(), sizes.values())
        task_errors = {name: total_error([missed[name]], [sizes[name]]) for name in missed}
    divergence = task.divergence(candidate.factors()) if task and task.divergence else None
    report = CandidateReport(candidate.name, candidate.params, relative, task_error, divergence)
    return _Weighed(candidate, squares, task_errors, report)


def _rating(report: CandidateReport) -> float:
    """What is least for the best."""
    for value in (report.divergence, report.task_error):
        if value is not None:
            return value
    return report.relative_error


def _least(layers: Layers) -> int:
    return min(layers.size(name) for name in layers.balanced)


def _report(
    folder: LoraFolder, layers: Layers, settings: ConversionSettings, norm: Norm, weighed: list[_Weighed]
) -> ConversionReport:
    """The report of the first of these, with the others beside it."""
    best, *every = weighed
    own = {module: group for group, _ in best.candidate.pieces for module in group.modules}
    spectra = {name: each.values for name, each in layers.balanced.items()}
    sizes = {name: layers.size(name) for name in spectra}
    plain = svd_errors(spectra, sizes, best.candidate.params)
    rows = tuple(_layer(site, own.get(site.name), layers, best) for site in folder.sites)
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
        target_met=best.candidate.params <= (settings.target.budget(folder.params) or 0),
        passthrough=len(folder.passthrough),
        layers=rows,
        norm=norm.name,
        task_error=best.report.task_error,
        divergence=best.report.divergence,
        chosen=best.candidate.name,
        candidates=tuple(each.report for each in every),
    )


def _layer(site: LoraSite, group: Group | None, layers: Layers, best: _Weighed) -> LayerReport:
    known = layers.balanced.get(site.name)
    norm = known.norm if known else 0.0
    after = 0 if group is None else _part(group, site.name)
    plain = 0.0
    if known:
        plain = svd_errors({site.name: known.values}, {site.name: layers.size(site.name)}, after)[site.name]
    joint = group is not None and group.map.sites > 1
    width = group.map.width if group else 0
    return LayerReport(
        name=site.name,
        shape=(site.out_features, site.in_features),
        method="joint" if joint else "svd" if group else "dropped",
        layout=getattr(getattr(group.map, "layout", None), "pattern", "") if group else "",
        ranks=getattr(group.map, "ranks", (width,)) if group else (),
        width=width,
        params_before=site.params,
        params_after=after,
        norm=norm,
        relative_error=total_error([best.squares.get(site.name, 0.0)], [norm]),
        svd_relative_error=total_error([plain], [norm]),
        task_error=best.task_errors.get(site.name),
    )


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
    """Such as ``0_384x1536``: in by out."""
    return f"{index}_{group.map.in_features}x{group.map.out_features}"
