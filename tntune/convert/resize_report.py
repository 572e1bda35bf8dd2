"""What a resizing did: ranks, sizes and errors of ΔW, by layer and in total."""

import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["ResizeReport", "ResizedLayer"]


@dataclass(frozen=True)
class ResizedLayer:
    """What became of one layer.

    Attributes:
        name: Module path, or the module's name in the file.
        shape: ``(out_features, in_features)``; of a convolution over its patches.
        rank_before: Rank of its factors before.
        rank_after: Rank after, 0 where the layer was dropped.
        params_before: Entries of its factors before.
        params_after: Entries of its factors after.
        norm: ``‖ΔW‖`` before, Frobenius.
        relative_error: ``‖ΔW − ΔW'‖ / ‖ΔW‖`` as read back; 0 for a zero ΔW.
        task_error: The same in the task norm; None without a calibration.

    Example:
        >>> ResizedLayer("fc", (3, 5), 2, 1, 16, 8, 2.0, 0.6).energy
        0.64
    """

    name: str
    shape: tuple[int, int]
    rank_before: int
    rank_after: int
    params_before: int
    params_after: int
    norm: float
    relative_error: float
    task_error: float | None = None

    @property
    def energy(self) -> float:
        """Share of the squared norm that was kept."""
        return 1 - self.relative_error**2


@dataclass(frozen=True)
class ResizeReport:
    """A whole adapter; totals are of all layers' ΔW stacked, errors are of what was read back.

    Attributes:
        source: Folder or file read.
        output: Folder or file written.
        format: ``"peft"``, ``"kohya"`` or ``"diffusers"``, of both.
        settings: What was asked for.
        norm: What was minimised: ``"frobenius"``, or the task norm with its damping.
        params_before: Entries of all factors before.
        params_after: Entries of all factors after.
        bytes_before: Size of the weights file before.
        bytes_after: Size of the weights file after.
        dtypes: Dtypes of the factors after.
        relative_error: ``‖ΔW − ΔW'‖ / ‖ΔW‖`` over all layers.
        task_error: The same in the task norm; None without a calibration.
        target_met: Whether what was asked for is met.
        passthrough: Number of tensors carried along untouched.
        layers: One report for each layer.

    Example:
        >>> sizes = {"params_before": 16, "params_after": 8, "bytes_before": 64, "bytes_after": 32}
        >>> report = ResizeReport("a", "b", "peft", {}, "frobenius", **sizes, dtypes=(), relative_error=0.6,
        ...                       task_error=None, target_met=True, passthrough=0, layers=())
        >>> report.energy, report.to_json()["energy"]
        (0.64, 0.64)
    """

    source: str
    output: str
    format: str
    settings: dict[str, Any]
    norm: str
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    dtypes: tuple[str, ...]
    relative_error: float
    task_error: float | None
    target_met: bool
    passthrough: int
    layers: tuple[ResizedLayer, ...]

    @property
    def energy(self) -> float:
        """Share of the squared norm that was kept."""
        return 1 - self.relative_error**2

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; ``json.dumps`` takes it."""
        layers = [{**asdict(layer), "energy": layer.energy} for layer in self.layers]
        return json.loads(json.dumps({**asdict(self), "energy": self.energy, "layers": layers}))  # type: ignore[no-any-return]
