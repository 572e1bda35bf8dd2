"""Contest: the ways to store a whole adapter in one budget, weighed against one another."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from tntune.convert.candidate import Candidate, Layers
from tntune.convert.distill import DistillationReport, distill
from tntune.convert.gain import Gains, GainSearch, gains_by_role, rising_gains
from tntune.convert.norm import DAMPING, Norm
from tntune.convert.progress import Progress
from tntune.convert.report import CandidateReport, total_error
from tntune.convert.search import JointSearch, TruncatedSearch
from tntune.convert.stream_search import StreamSearch
from tntune.convert.task import Task
from tntune.convert.tolerance import verified_budget
from tntune.errors import NumericalError, RankError, SpecError
from tntune.maps.base import Factors

__all__ = ["Contest", "Weighed"]

DAMPINGS = (DAMPING, 0.03, 0.3)
"""Those tried where a model judges."""

_CLOSE = 0.25
"""Of the best rating: the best of each kind that is no further above it is tried at gains, or distilled."""


@dataclass(frozen=True)
class Weighed:
    """A candidate with its errors as stored.

    Attributes:
        candidate: What would be written.
        squares: Squared Frobenius error of each layer.
        task_errors: Relative error of each layer in the task norm; empty without a calibration.
        report: What reports say of it.
        rivals: The reports of all that it was chosen from, its own among them; empty before the choice.
        distillation: How it was trained, where it was.

    Example:
        >>> [name for name in Weighed.__dataclass_fields__][:2]
        ['candidate', 'squares']
    """

    candidate: Candidate
    squares: Mapping[str, float]
    task_errors: Mapping[str, float]
    report: CandidateReport
    rivals: tuple[CandidateReport, ...] = ()
    distillation: DistillationReport | None = None

    @property
    def error(self) -> float:
        """The relative error in the norm of the contest."""
        return self.report.relative_error if self.report.task_error is None else self.report.task_error

    @property
    def rating(self) -> float:
        """What is least for the best."""
        return self.error if self.report.divergence is None else self.report.divergence


class Contest:
    """One adapter's candidates; what does not depend on a budget is computed once.

    Args:
        layers: The layers.
        task: What is known of the adapter's use.
        progress: Called as candidates are made.

    Example:
        >>> import torch
        >>> from tntune.convert.gauge import balance
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> contest = Contest(layers, None, lambda stage, done, total: None)
        >>> best = contest.best("svd", 8)
        >>> best.candidate.name, round(best.error**2, 6)
        ('svd', 0.5)
    """

    def __init__(self, layers: Layers, task: Task | None, progress: Progress) -> None:
        self.layers, self.task, self.progress = layers, task, progress
        self._baselines: dict[int, list[Weighed]] = {}

    @cached_property
    def norm(self) -> Norm:
        """The norm that is fitted and reported."""
        return Norm(self.task.calibration) if self.task else Norm()

    @cached_property
    def least(self) -> int:
        """Parameters of the cheapest layer at rank one."""
        return min(self.layers.size(name) for name in self.layers.balanced)

    def best(self, method: str, budget: int, *, tolerance: float | None = None) -> Weighed:
        """The candidate of least divergence, or else of least error in the norm.

        Where a model judges and no tolerance binds, the best of each kind that comes close is tried at
        gains of all its layers, and where that serves, the winner at gains of its roles. Where the task asks
        for distillation, the best that shares bases and the best that does not are distilled, if they are
        close. A divergence that is not finite counts as infinite.

        Args:
            method: ``"svd"``, ``"joint"``, or ``"auto"`` for both.
            budget: Parameters at most.
            tolerance: Error in the norm that the choice meets; for a budget of :meth:`budget_of`.

        Raises:
            RankError: Where the budget is too small for anything.
            NumericalError: Where no candidate has a finite divergence.
            SpecError: Where the judge returns no number.
        """
        self.check(budget)
        rivals = [] if method == "joint" else list(self.baselines(budget))
        if method != "svd":
            count = len(self._dampings) * (1 + self._is_judged)
            rivals += self._weigh_all(self._joint(method, budget, self._dampings), count)
        if tolerance is not None:
            meeting = (each for each in rivals if each.error <= tolerance)
            return replace(min(meeting, key=_rating), rivals=_reports(rivals))
        if self._is_judged:
            if not any(math.isfinite(each.rating) for each in rivals):
                raise NumericalError(f"the divergence of none of {len(rivals)} candidates is finite")
            rivals += self._louder(rivals)
        return self._distilled(rivals)

    def check(self, budget: int) -> None:
        """Raise :class:`RankError` where the budget is too small for the cheapest layer at rank one."""
        if budget < self.least:
            raise RankError(
                f"a budget of {budget} parameters fits no layer; the least possible is {self.least}"
            )

    def baselines(self, budget: int) -> list[Weighed]:
        """Truncated SVDs, plain and weighted, ranks by singular values or even; with scores."""
        if budget not in self._baselines:
            candidates = list(self._truncated.candidates(budget))
            weighed = self._weigh_all(candidates, len(candidates))
            self._baselines[budget] = [self.scored(each) for each in weighed]
        return self._baselines[budget]

    def scored(self, weighed: Weighed) -> Weighed:
        """The same with the score of the task, where it has one."""
        if self.task is None or self.task.score is None or weighed.report.score is not None:
            return weighed
        score = self.task.score.after(weighed.candidate.factors())
        return replace(weighed, report=replace(weighed.report, score=score))

    def budget_of(self, method: str, tolerance: float, most: int) -> int:
        """The smallest budget found whose candidate, as stored, meets an error in the norm.

        Raises:
            RankError: Where all ``most`` parameters miss it.
        """
        forecast = self._truncated.error if method == "svd" else self._forecast
        errors: dict[int, float] = {}

        def measured(budget: int) -> float:
            candidates = self._joint(method, budget, (DAMPING,)) if method != "svd" else iter(())
            plain = () if method == "joint" else self._truncated.candidates(budget)
            errors[budget] = min(self.error(each) for each in (*plain, *candidates))
            return errors[budget]

        found = verified_budget(forecast, measured, self.least, most, tolerance)
        if found is None:
            raise RankError(
                f"a tolerance of {tolerance:g} is missed even with {most} parameters: the error is "
                f"{errors[most]:.3g} ({self.norm.name}, stored as {self.layers.dtype})"
            )
        return found

    def error(self, candidate: Candidate) -> float:
        """The relative error of a candidate in the norm, as stored."""
        own = self.layers.norms(self.norm)
        return total_error(candidate.squared_errors(self.layers, own).values(), self._sizes.values())

    @cached_property
    def _truncated(self) -> TruncatedSearch:
        return TruncatedSearch(self.layers, self.norm)

    @cached_property
    def _search(self) -> JointSearch:
        return JointSearch(self.layers, self.norm)

    @cached_property
    def _streams(self) -> StreamSearch:
        return StreamSearch(self.layers, self.norm)

    @cached_property
    def _sizes(self) -> dict[str, float]:
        """The norm of each layer's ΔW, as reports have it."""
        if self.norm.calibration is None:
            return {name: each.norm for name, each in self.layers.balanced.items()}
        own = self.layers.norms(self.norm)
        return {name: own[name].squared(self.layers.factors(name)) ** 0.5 for name in own}

    @property
    def _is_judged(self) -> bool:
        return self.task is not None and self.task.divergence is not None

    @property
    def _dampings(self) -> tuple[float, ...]:
        return DAMPINGS if self._is_judged else DAMPINGS[:1]

    def _forecast(self, budget: int) -> float:
        """The relative error in the norm that the better plan leaves, before it is fitted to the end."""
        streams, left = self._streams.plan(budget), self._search.error(budget)
        return (
            left if streams is None else min(left, total_error([streams.squared_error], self._sizes.values()))
        )

    def _joint(self, method: str, budget: int, dampings: Iterable[float]) -> Iterator[Candidate]:
        """Bases that all layers share, and trains over layers of one shape, mixed with SVDs, where better.

        Where no model judges only those of the two whose plan leaves less.
        """
        streams, groups = self._streams.plan(budget), self._search.plan(budget)
        left = sum(option.squared_error for option in groups.values())
        for damping in dampings:
            norm = self.norm.damped(damping)
            if streams is not None and (self._is_judged or streams.squared_error < left):
                yield self._streams.candidate(streams, norm)
            if streams is None or self._is_judged or left <= streams.squared_error:
                candidate = self._search.candidate(groups, norm)
                if candidate.pieces and (candidate.joint or method == "joint"):
                    yield candidate

    def _weigh_all(self, candidates: Iterable[Candidate], count: int) -> list[Weighed]:
        weighed = []
        for done, candidate in enumerate(candidates, 1):
            weighed.append(self._weigh(candidate))
            self.progress("weigh", done, count)
        return weighed

    def _weigh(self, candidate: Candidate) -> Weighed:
        """All errors of a candidate, as stored."""
        squares = candidate.squared_errors(self.layers, self.layers.norms(Norm()))
        relative = total_error(squares.values(), (self.layers.balanced[name].norm for name in squares))
        task_error, task_errors = None, {}
        if self.task:
            missed = candidate.squared_errors(self.layers, self.layers.norms(self.norm))
            task_error = total_error(missed.values(), self._sizes.values())
            task_errors = {name: total_error([missed[name]], [self._sizes[name]]) for name in missed}
        divergence = self._divergence(candidate.factors()) if self._is_judged else None
        size = sum(value.nbytes for _, tensors in candidate.pieces for value in tensors.values())
        report = CandidateReport(candidate.name, candidate.params, relative, task_error, divergence, size)
        return Weighed(candidate, squares, task_errors, report)

    def _divergence(self, factors: Mapping[str, Factors]) -> float:
        """What the model says; infinite where that is not finite, so that it is the last."""
        assert self.task is not None
        assert self.task.divergence is not None
        found = self.task.divergence(factors)
        try:
            value = float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise SpecError(f"a divergence is a number, not {type(found).__name__}") from error
        return value if math.isfinite(value) else math.inf

    def _louder(self, rivals: list[Weighed]) -> list[Weighed]:
        """The leaders at rising gains, as long as the model finds them better; the best by its roles."""
        leaders = _leaders(rivals, lambda candidate: candidate.kind)
        louder = [each for leader in leaders for each in self._tried(leader, rising_gains)]
        best = min((*rivals, *louder), key=_rating)
        if any(each is best for each in louder):
            louder += sorted(self._tried(best, gains_by_role), key=_rating)[:1]
        return louder

    def _tried(self, start: Weighed, search: GainSearch) -> list[Weighed]:
        """All that a search of gains asks for."""
        tried: list[Weighed] = []

        def rate(gains: Gains) -> float:
            tried.append(self._weigh(start.candidate.scaled(gains)))
            return tried[-1].rating

        search(start.candidate.modules, rate, start.rating)
        return tried

    def _distilled(self, rivals: list[Weighed]) -> Weighed:
        """The best of all; where the task asks for training, after it: what shares and what does not."""
        task = self.task
        if task is None or task.distillation is None or task.divergence is None:
            return replace(min(rivals, key=_rating), rivals=_reports(rivals))
        finals, trained = [], []
        for start in _leaders(rivals, lambda candidate: candidate.joint):
            candidate, report = distill(
                start.candidate, task.distillation, self._divergence, progress=self.progress
            )
            if report.best_step:
                trained.append(start := self._weigh(candidate))
            finals.append(replace(start, distillation=report))
        return replace(min(finals, key=_rating), rivals=_reports([*rivals, *trained]))


def _leaders(weighed: Iterable[Weighed], kind: Callable[[Candidate], Hashable]) -> list[Weighed]:
    """The best of each kind, where it is close to the best."""
    first: dict[Hashable, Weighed] = {}
    for each in sorted(weighed, key=_rating):
        first.setdefault(kind(each.candidate), each)
    least = min(each.rating for each in first.values())
    return [each for each in first.values() if each.rating - least <= _CLOSE * abs(least)]


def _rating(weighed: Weighed) -> float:
    return weighed.rating


def _reports(weighed: Iterable[Weighed]) -> tuple[CandidateReport, ...]:
    return tuple(each.report for each in weighed)
