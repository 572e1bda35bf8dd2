"""Reports of libraries: what each member costs and how far it is off, with what else the size could buy."""

import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["CollectionReport", "MemberReport"]


@dataclass(frozen=True)
class MemberReport:
    """What became of one adapter.

    Attributes:
        name: In the library.
        source: Folder read.
        layers: Number of its layers in the library.
        params_before: Entries of its factors before.
        params_after: Trainable entries that it alone reads: what one member more costs.
        relative_error: ``‖ΔW − ΔW'‖ / ‖ΔW‖`` over its layers, Frobenius, as stored.
        svd_relative_error: The same where all members are truncated SVDs, of as many parameters in all.
        apart_relative_error: The same where no two members share a train, of as many parameters in all.
        task_error: The relative error in its task norm; None without a calibration.
        svd_task_error: The same for SVDs weighted by the task norms.
        apart_task_error: The same where no two members share a train.

    Example:
        >>> MemberReport("one", "loras/one", 3, 48, 8, 0.5, 0.6, 0.7).error
        0.5
    """

    name: str
    source: str
    layers: int
    params_before: int
    params_after: int
    relative_error: float
    svd_relative_error: float | None
    apart_relative_error: float | None
    task_error: float | None = None
    svd_task_error: float | None = None
    apart_task_error: float | None = None

    @property
    def error(self) -> float:
        """The error in the norm that was minimised."""
        return self.relative_error if self.task_error is None else self.task_error

    @property
    def svd_error(self) -> float | None:
        """The same of truncated SVDs."""
        return self.svd_relative_error if self.task_error is None else self.svd_task_error

    @property
    def apart_error(self) -> float | None:
        """The same of members that share nothing."""
        return self.apart_relative_error if self.task_error is None else self.apart_task_error


@dataclass(frozen=True)
class CollectionReport:
    """The whole library; total errors are root mean squares of the members', which all count alike.

    Attributes:
        output: Folder written.
        settings: What was asked for.
        base_model: Name of the model that the first member adapts.
        norm: What was minimised: ``"frobenius"``, or the task norms with their damping.
        params_before: Entries of all factors before.
        params_after: Trainable entries of the library.
        shared_params: Those of them that several members read.
        bytes_before: Sizes of the weights files before.
        bytes_after: Size of the weights file after.
        dtype: Dtype of its tensors.
        target_met: Whether the budget is met.
        members: One report for each.

    Example:
        >>> sizes = {"params_before": 96, "params_after": 32, "shared_params": 16, "bytes_before": 400}
        >>> one = MemberReport("one", "a", 3, 48, 8, 0.3, 0.6, 0.7)
        >>> two = MemberReport("two", "b", 3, 48, 8, 0.4, 0.6, 0.7)
        >>> report = CollectionReport("c", {}, "gpt2", "frobenius", **sizes, bytes_after=150,
        ...                           dtype="torch.float32", target_met=True, members=(one, two))
        >>> round(report.error, 6), report.svd_error
        (0.353553, 0.6)
    """

    output: str
    settings: dict[str, Any]
    base_model: str | None
    norm: str
    params_before: int
    params_after: int
    shared_params: int
    bytes_before: int
    bytes_after: int
    dtype: str
    target_met: bool
    members: tuple[MemberReport, ...]

    @property
    def error(self) -> float:
        """The total error in the norm that was minimised."""
        return _mean([member.error for member in self.members]) or 0.0

    @property
    def svd_error(self) -> float | None:
        """The same of truncated SVDs; None where none were made."""
        return _mean([member.svd_error for member in self.members])

    @property
    def apart_error(self) -> float | None:
        """The same of members that share nothing; None where none were made."""
        return _mean([member.apart_error for member in self.members])

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys; ``json.dumps`` takes it."""
        totals = {"error": self.error, "svd_error": self.svd_error, "apart_error": self.apart_error}
        return json.loads(json.dumps({**asdict(self), **totals}))  # type: ignore[no-any-return]


def _mean(errors: list[float | None]) -> float | None:
    """Root mean square; None where one is missing."""
    known = [error for error in errors if error is not None]
    if len(known) < len(errors) or not known:
        return None
    return float((sum(error**2 for error in known) / len(known)) ** 0.5)
