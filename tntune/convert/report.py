"""Reports of conversions: errors of ΔW by layer and in total, plain SVD at the same size beside them."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tntune.convert.distill import DistillationReport
from tntune.convert.option import Encoded

__all__ = ["CandidateReport", "ConversionReport", "LayerReport", "stored_dtypes", "total_error"]

_CARD = """# {name}

An adapter made by tntune: {before:,} parameters before, {after:,} after.

Relative error of ΔW (Frobenius norm, as stored): {error:.6f}. Plain SVD truncation of the same size: {svd}.
{task}
Load it with `tntune.adapters.load_adapters`, or make a plain LoRA of it, which PEFT and every LoRA server
load: `tntune export FOLDER --to lora -o OUTPUT`.

Settings: `{settings}`

| layer | method | parameters before | after | error | SVD error |
|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: Module path.
        shape: ``(out_features, in_features)``.
        method: ``"tensorguide"``, ``"joint"``, ``"svd"``, ``"kept"`` (as it was), ``"dropped"`` (ΔW = 0), or
            one of :data:`tntune.convert.FAMILY_METHODS`.
        layout: Pattern of the train, else empty.
        ranks: TT-ranks, or the rank of the SVD.
        width: Inner size of the adapter after, 0 where dropped.
        params_before: Entries of its factors before.
        params_after: Trainable entries after; of a train over many layers an even part.
        norm: ``‖ΔW‖`` before, Frobenius.
        relative_error: ``‖ΔW − ΔW'‖ / ‖ΔW‖`` as stored; 0 for a zero ΔW.
        svd_relative_error: The same of plain SVD truncation with at most ``params_after`` entries; None
            where no LoRA was converted.
        task_error: The relative error in the task norm; None without a calibration.

    Example:
        >>> LayerReport("fc", (3, 5), "svd", "", (1,), 1, 16, 8, 2.0, 0.5, 0.5).params_after
        8
    """

    name: str
    shape: tuple[int, int]
    method: str
    layout: str
    ranks: tuple[int, ...]
    width: int
    params_before: int
    params_after: int
    norm: float
    relative_error: float
    svd_relative_error: float | None
    task_error: float | None = None


@dataclass(frozen=True)
class CandidateReport:
    """What was weighed against what.

    Attributes:
        name: ``"svd"``, ``"weighted svd, even ranks"``, ``"joint, task, damping 0.1"``, ...
        params: Trainable entries.
        relative_error: Of all ΔW, Frobenius.
        task_error: The same in the task norm; None without a calibration.
        divergence: From the LoRA's predictions to this one's, on the texts held out; None without a model.
        bytes: Size of the tensors as stored, without heads saved whole.
        score: What the user's own function says of it; None without one, or where it was not asked.

    Example:
        >>> CandidateReport("svd", 9, 0.5, None, None).params
        9
    """

    name: str
    params: int
    relative_error: float
    task_error: float | None
    divergence: float | None
    bytes: int = 0
    score: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """The whole conversion; totals are of all layers' ΔW stacked.

    Attributes:
        source: Folder read.
        output: Folder written.
        settings: What was asked for.
        measure: The norm of every error that is not named otherwise: ``"frobenius"``.
        params_before: Entries of all factors before.
        params_after: Trainable entries after.
        bytes_before: Size of the weights file before.
        bytes_after: Size of the weights file after.
        dtypes: Dtypes of the tensors after: those of before, unless ``settings`` say otherwise.
        relative_error: ``‖ΔW − ΔW'‖ / ‖ΔW‖`` over all layers.
        svd_relative_error: The same of plain SVD truncation with at most ``params_after`` entries, spread
            over the layers by singular values; None where no LoRA was converted.
        target_met: Whether budget and tolerance are met.
        passthrough: Number of tensors carried along untouched.
        layers: One report for each layer.
        norm: What was minimised: ``"frobenius"``, or the task norm with its damping.
        task_error: The relative error in the task norm; None without a calibration.
        divergence: From the LoRA's predictions to the result's; None where no model was asked.
        chosen: Name of the candidate that was written; empty where layers were converted one by one.
        candidates: All that were weighed.
        distillation: How the tensors were trained; None where they were not.
        score_before: What the user's own function says of the LoRA; None without one.
        score_after: The same of the result.

    Example:
        >>> sizes = {"params_before": 16, "params_after": 8, "bytes_before": 64, "bytes_after": 32}
        >>> report = ConversionReport("a", "b", {}, "frobenius", **sizes, dtypes=(), relative_error=0.5,
        ...                           svd_relative_error=0.4, target_met=True, passthrough=0, layers=())
        >>> report.svd_wins, report.to_json()["params_after"]
        (True, 8)
    """

    source: str
    output: str
    settings: dict[str, Any]
    measure: str
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    dtypes: tuple[str, ...]
    relative_error: float
    svd_relative_error: float | None
    target_met: bool
    passthrough: int
    layers: tuple[LayerReport, ...]
    norm: str = "frobenius"
    task_error: float | None = None
    divergence: float | None = None
    chosen: str = ""
    candidates: tuple[CandidateReport, ...] = ()
    distillation: DistillationReport | None = None
    score_before: float | None = None
    score_after: float | None = None

    @property
    def svd_wins(self) -> bool:
        """Whether plain SVD truncation of the same total size is closer."""
        baseline = self.svd_relative_error
        return baseline is not None and baseline < self.relative_error * (1 - 1e-9)

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; ``json.dumps`` takes it."""
        value = asdict(self)
        value["svd_wins"] = self.svd_wins
        return json.loads(json.dumps(value))  # type: ignore[no-any-return]

    def card(self) -> str:
        """A model card in Markdown: what this is, its numbers, and how to load it."""
        rows = [
            f"| {layer.name} | {layer.method} | {layer.params_before:,} | {layer.params_after:,} "
            f"| {layer.relative_error:.4f} | {_shown(layer.svd_relative_error)} |"
            for layer in self.layers
        ]
        return _CARD.format(
            name=Path(self.output).name,
            before=self.params_before,
            after=self.params_after,
            error=self.relative_error,
            svd=_shown(self.svd_relative_error),
            task=self._task_lines(),
            settings=json.dumps(self.settings),
            rows="\n".join(rows),
        )

    def _task_lines(self) -> str:
        """What the card says of the task norm and of the candidates."""
        lines = []
        if self.task_error is not None:
            lines.append(f"\nRelative error in the task norm ({self.norm}): {self.task_error:.6f}.\n")
        if self.divergence is not None:
            lines.append(f"\nDivergence from the LoRA's predictions, held out: {self.divergence:.6f}.\n")
        if self.distillation is not None:
            lines.append(
                f"\nDistilled in {self.distillation.steps} steps: divergence {self.distillation.before:.6f} "
                f"before, {self.distillation.after:.6f} after.\n"
            )
        if self.score_before is not None:
            lines.append(f"\nScore of the LoRA: {self.score_before:.6g}; of this: {self.score_after:.6g}.\n")
        if self.candidates:
            head = "\n| candidate | parameters | error | task norm | divergence |\n|---|---|---|---|---|\n"
            lines += [head, *(_candidate_row(each) for each in self.candidates)]
            lines.append(f"\nWritten: {self.chosen}.\n")
        return "".join(lines)


def _candidate_row(each: CandidateReport) -> str:
    errors = (each.relative_error, each.task_error, each.divergence)
    return f"| {each.name} | {each.params:,} | " + " | ".join(_shown(error) for error in errors) + " |\n"


def stored_dtypes(encoded: Iterable[Encoded]) -> tuple[str, ...]:
    """Names of the dtypes of all tensors, each once."""
    return tuple(dict.fromkeys(str(tensor.dtype) for _, tensors in encoded for tensor in tensors.values()))


def total_error(squared_errors: Iterable[float], norms: Iterable[float]) -> float:
    """``sqrt(Σ ‖error‖² / Σ ‖ΔW‖²)``; where every ΔW is zero 0 without an error, else infinite.

    Example:
        >>> total_error([1.0, 0.0], [3.0, 4.0]), total_error([0.0], [0.0]), total_error([1.0], [0.0])
        (0.2, 0.0, inf)
    """
    whole, lost = math.fsum(norm**2 for norm in norms), math.fsum(squared_errors)
    if whole:
        return math.sqrt(lost / whole)
    return math.inf if lost else 0.0


def _shown(error: float | None) -> str:
    return "-" if error is None else f"{error:.4f}"
