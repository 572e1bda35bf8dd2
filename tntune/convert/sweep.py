"""sweep_lora: one LoRA at many budgets, with the truncated SVDs of each beside it."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.convert.candidate import Layers
from tntune.convert.contest import Contest
from tntune.convert.encode import DEFAULT_LAYOUTS
from tntune.convert.output import check_output
from tntune.convert.progress import Progress, silent
from tntune.convert.report import CandidateReport, ConversionReport
from tntune.convert.settings import ConversionSettings
from tntune.convert.task import Task
from tntune.convert.whole import write_best
from tntune.errors import OutputError, SpecError, TntuneError
from tntune.files import CONFIG_NAME, finite, new_file, new_folder, read_json, write_json

__all__ = ["SWEEP_NAME", "SweepPoint", "SweepReport", "sweep_lora"]

SWEEP_NAME = "sweep.json"
"""What the folder of a sweep holds beside its adapters."""


@dataclass(frozen=True)
class SweepPoint:
    """One budget of a sweep.

    Attributes:
        share: Share of the parameters.
        report: Of the conversion; its output is the folder of this budget.
        written: What the report says of the candidate that was written.
        baselines: Truncated SVDs of this budget, plain and weighted, ranks by singular values or even.

    Example:
        >>> list(SweepPoint.__dataclass_fields__)
        ['share', 'report', 'written', 'baselines']
    """

    share: float
    report: ConversionReport
    written: CandidateReport
    baselines: tuple[CandidateReport, ...]


@dataclass(frozen=True)
class SweepReport:
    """All budgets of a sweep, the largest first.

    Attributes:
        source: The LoRA folder.
        output: Folder of the sweep.
        norm: The norm of ``task_error`` everywhere.
        lora: The LoRA itself, as the other rows are given.
        points: One for each budget.
        unfinished: Shares without a point, of a sweep that goes on or was interrupted.

    Example:
        >>> lora = CandidateReport("lora", 9, 0.0, None, None)
        >>> SweepReport("a", "b", "frobenius", lora, ()).rows()[0].params
        9
    """

    source: str
    output: str
    norm: str
    lora: CandidateReport
    points: tuple[SweepPoint, ...]
    unfinished: tuple[float, ...] = ()

    def rows(self) -> list[CandidateReport]:
        """The LoRA, and for each budget what was written, then its baselines."""
        own = [row for point in self.points for row in (point.written, *point.baselines)]
        return [self.lora, *own]

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; what is not finite is null."""
        points = [
            {
                "share": point.share,
                "folder": Path(point.report.output).name,
                "written": asdict(point.written),
                "baselines": [asdict(each) for each in point.baselines],
                "report": point.report.to_json(),
            }
            for point in self.points
        ]
        value = {
            "source": self.source,
            "output": self.output,
            "norm": self.norm,
            "lora": asdict(self.lora),
            "points": points,
            "unfinished": self.unfinished,
        }
        plain: dict[str, Any] = finite(value)
        return plain


def sweep_lora(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    budgets: Sequence[ConversionSettings],
    *,
    overwrite: bool = False,
    carry: bool = False,
    progress: Progress | None = None,
    task: Task | None = None,
) -> SweepReport:
    """Write ``output/0.25`` and so on: each is what :func:`convert_lora` makes of that budget, bit for bit.

    So it is with a task, or by method ``"joint"``; without a task ``"auto"`` and ``"svd"`` too convert the
    layers together here, where that function goes layer by layer.

    What does not depend on the budget is done once: loading, norms, weighted SVDs, rough fits, the LoRA's own
    predictions. ``output/sweep.json`` holds the report; it is there from the beginning and grows with every
    budget, so that a sweep that was interrupted says what it has, and may be overwritten.

    Args:
        source: LoRA folder.
        output: Folder to make, with a folder for each budget; they are written one by one, largest first.
        budgets: Settings of each conversion: shares of the parameters (``Target(params=0.25)``), each once,
            one dtype, methods that make whole adapters: ``"auto"``, ``"joint"``, ``"svd"``.
        overwrite: Whether an earlier sweep may be replaced; its other adapters are removed at the end.
        carry: Whether unknown tensors of the source are carried along.
        progress: Called as candidates are made.
        task: What is known of the adapter's use; without it plain Frobenius weighs.

    Raises:
        SpecError: For no budget, one twice or of another kind, other methods, layouts, or two dtypes.
        OutputError: Where the folder exists and may not be replaced, or is no sweep's.
        RankError: Where a budget is too small for anything; nothing is written then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import eye
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> from tntune.convert.target import Target
        >>> with TemporaryDirectory() as parent:
        ...     lora = Path(parent) / "lora"
        ...     write_lora(lora, [LoraEntry("fc", eye(4, 5), eye(4, 4))], base_config={})
        ...     budgets = [ConversionSettings(Target(params=share), "auto") for share in (0.25, 0.5)]
        ...     report = sweep_lora(lora, Path(parent) / "sweep", budgets)
        ...     sorted(path.name for path in (Path(parent) / "sweep").iterdir())
        ['0.25', '0.5', 'sweep.json']
        >>> [point.written.params for point in report.points]
        [18, 9]
    """
    settings = _by_share(budgets)
    _check_folder(source, Path(output), overwrite=overwrite)
    folder = open_lora(source, carry=carry)
    contest = Contest(Layers.load(folder, budgets[0].dtype), task, progress or silent)
    for own in settings.values():
        contest.check(own.target.budget(folder.params) or 0)
    lora, shares, old = _lora(folder, task), tuple(settings), _listed(Path(output))
    report = SweepReport(str(folder.path), str(output), contest.norm.name, lora, (), shares)
    _keep(report)
    for share, own in settings.items():
        point = _point(contest, folder, Path(output) / f"{share:g}", own, overwrite=overwrite)
        report = replace(report, points=(*report.points, point), unfinished=report.unfinished[1:])
        _keep(report)
    for name in old - {f"{share:g}" for share in shares}:
        shutil.rmtree(Path(output) / name, ignore_errors=True)
    return report


def _listed(output: Path) -> set[str]:
    """Folders that an earlier sweep's file lists and that hold adapters; none where it cannot be read."""
    try:
        points = read_json(output / SWEEP_NAME)["points"]
        names = {f"{float(point['share']):g}" for point in points}
    except (TntuneError, KeyError, TypeError, ValueError):
        return set()
    return {name for name in names if (output / name / CONFIG_NAME).is_file()}


def _keep(report: SweepReport) -> None:
    """The report in its file; the folder, where there is none, comes into being with it."""
    output = Path(report.output)
    if not output.exists():
        with new_folder(output) as draft:
            write_json(draft / SWEEP_NAME, report.to_json())
        return
    with new_file(output / SWEEP_NAME, overwrite=True) as draft:
        write_json(draft, report.to_json())


def _by_share(budgets: Sequence[ConversionSettings]) -> dict[float, ConversionSettings]:
    """The settings by share, the largest first."""
    if odd := [own for own in budgets if not isinstance(own, ConversionSettings)]:
        raise SpecError(f"budgets must be ConversionSettings(Target(params=...)), not {odd[0]!r}")
    found = {own.target.params: own for own in budgets if own.target.params is not None}
    if not found or len({f"{share:g}" for share in found}) < len(budgets):
        asked = [own.target.to_json() for own in budgets]
        raise SpecError(f"a sweep needs shares of the parameters, each once, not {asked}")
    if len({own.dtype for own in budgets}) > 1:
        raise SpecError("a sweep stores all its adapters in one dtype")
    if any(own.method == "tensorguide" or tuple(own.layouts) != DEFAULT_LAYOUTS for own in budgets):
        raise SpecError(
            "a sweep converts whole adapters: its methods are auto, joint and svd, and choose no layouts here"
        )
    for own in budgets:
        own.check_one_job()
    return dict(sorted(found.items(), reverse=True))


def _check_folder(source: str | os.PathLike[str], output: Path, *, overwrite: bool) -> None:
    check_output(source, output, overwrite=overwrite)
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output}: exists and is not a folder")
    if output.exists() and any(output.iterdir()) and not (output / SWEEP_NAME).is_file():
        raise OutputError(f"{output}: holds no {SWEEP_NAME}, so it is no sweep and is not replaced")


def _point(
    contest: Contest, folder: LoraFolder, output: Path, settings: ConversionSettings, *, overwrite: bool
) -> SweepPoint:
    report = write_best(contest, folder, output, settings, overwrite=overwrite)
    written = next(each for each in report.candidates if each.name == report.chosen)
    baselines = contest.baselines(settings.target.budget(folder.params) or 0)
    share = settings.target.params or 0.0
    return SweepPoint(share, report, written, tuple(each.report for each in baselines))


def _lora(folder: LoraFolder, task: Task | None) -> CandidateReport:
    """The LoRA in its own table."""
    size = sum(site.params * site.dtype.itemsize for site in folder.sites)
    score = task.score.before if task and task.score else None
    error = 0.0 if task else None
    judged = 0.0 if task and task.divergence else None
    return CandidateReport("lora", folder.params, 0.0, error, judged, size, score)
