"""SpectrumReport: the spectrum of a Gram matrix, and no number that its precision cannot carry."""

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tntune.errors import ModeError, NumericalError, RankError
from tntune.tt.linalg import safe_svd

__all__ = ["SpectrumReport"]

_RESOLVED = 10.0  # a smallest eigenvalue counts as resolved this many times above the threshold


@dataclass(frozen=True)
class SpectrumReport:
    """The spectrum of T = A Aᵀ: ``lambda_min`` is 0.0 where the structure says so, else resolved or None.

    Made by :meth:`from_factor`, which resolves eigenvalues down to the square of what :meth:`from_gram` can.

    Attributes:
        size: Rows of T.
        method: ``"factor"``: squares of the singular values of A. ``"gram"``: eigenvalues of T.
        rank_bound: No structure admits a larger rank; ``size`` where nothing is known.
        zero_threshold: Eigenvalues up to this are indistinguishable from 0.
        eigenvalues: The ``rank`` values above the threshold, descending; the other ``size - rank`` are 0 or
            not told from it.
        lambda_min: 0.0 where ``rank_bound < size``; the smallest eigenvalue where it is ten thresholds high;
            None where the precision cannot tell.
        lambda_min_upper: The smallest eigenvalue is at most this.
        trace: Sum of all eigenvalues.
        residual_fraction: ``|(1 - P) y|² / |y|²`` with P onto the range of T; None without targets.
        norm_squared: ``B² = yᵀ T⁺ y``, the squared norm of the least function through P y; None without
            targets. Where the residual is not 0, no function reaches y itself.
        dtype: Dtype of A or T as given. All arithmetic is float64, the threshold is that of this dtype.

    Example:
        >>> report = SpectrumReport.from_factor(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        >>> report.eigenvalues, report.lambda_min, report.cond_plus
        ((9.0, 1.0), 0.0, 9.0)
    """

    size: int
    method: str
    rank_bound: int
    zero_threshold: float
    eigenvalues: tuple[float, ...]
    lambda_min: float | None
    lambda_min_upper: float
    trace: float
    residual_fraction: float | None
    norm_squared: float | None
    dtype: str

    @classmethod
    def from_factor(
        cls, factor: Tensor, *, rank_bound: int | None = None, targets: Tensor | None = None
    ) -> "SpectrumReport":
        """Spectrum of ``factor @ factor.mT`` by singular values, without squaring.

        Args:
            factor: A (size, P). ``rank_bound`` is never more than P.
            rank_bound: What the structure admits: P less the nullity, T6.
            targets: y with ``size`` entries, of any shape.

        Raises:
            ModeError: Where A is no matrix, or y has another number of entries.
            RankError: Where an eigenvalue beyond ``rank_bound`` is clearly not zero.
            NumericalError: Where an entry is not finite.

        Example:
            >>> SpectrumReport.from_factor(torch.eye(3), targets=torch.ones(3)).norm_squared
            3.0

        Reference: Golub, Van Loan (2013), Matrix computations, section 8.6.
        """
        if factor.ndim != 2 or not factor.numel():
            raise ModeError(f"a factor is a matrix (size, P), not a tensor of shape {tuple(factor.shape)}")
        size, columns = factor.shape
        _check_finite(factor)
        if targets is None:
            values, vectors = torch.linalg.svdvals(factor.detach().double()), None
        else:
            vectors, values, _ = safe_svd(factor.detach().double())
        unit = max(size, columns) * torch.finfo(factor.dtype).eps
        bound = _checked_bound(rank_bound, min(size, columns))
        return _report(
            "factor", size, values.square(), unit**2, bound, _parts(vectors, targets, size), factor
        )

    @classmethod
    def from_gram(
        cls,
        gram: Tensor,
        *,
        columns: int | None = None,
        rank_bound: int | None = None,
        targets: Tensor | None = None,
    ) -> "SpectrumReport":
        """Spectrum of T itself; eigenvalues below ``size * eps * lambda_max`` are lost.

        Args:
            gram: T (size, size), symmetric.
            columns: Number P of parameters of which T is the Gram, where known; it widens the threshold.
            rank_bound: What the structure admits.
            targets: y with ``size`` entries, of any shape.

        Raises:
            ModeError: Where T is not square, or y has another number of entries.
            RankError: Where an eigenvalue beyond ``rank_bound`` is clearly not zero.
            NumericalError: Where an entry is not finite, or T is not symmetric positive semidefinite.

        Example:
            >>> report = SpectrumReport.from_gram(torch.diag(torch.tensor([4.0, 1e-9])))
            >>> report.lambda_min is None, report.rank
            (True, 1)
        """
        if gram.ndim != 2 or not gram.numel() or gram.shape[0] != gram.shape[1]:
            raise ModeError(f"a Gram is a square matrix, not a tensor of shape {tuple(gram.shape)}")
        _check_finite(gram)
        size, eps = len(gram), torch.finfo(gram.dtype).eps
        wide = gram.detach().double()
        if float((wide - wide.mT).abs().max()) > math.sqrt(eps) * float(wide.abs().max()):
            raise NumericalError("T is not symmetric, so it is no Gram; symmetrise it if that is meant")
        values, vectors = torch.linalg.eigh((wide + wide.mT) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        if float(-values[-1]) > math.sqrt(eps) * float(values.abs().max()):
            raise NumericalError(f"T has the eigenvalue {float(values[-1]):.3e}: it is not a Gram")
        unit = max(size, columns or size) * eps
        bound = _checked_bound(rank_bound, size if columns is None else min(size, columns))
        parts = _parts(vectors, targets, size)
        return _report("gram", size, values.clamp(min=0.0), unit, bound, parts, gram)

    @property
    def rank(self) -> int:
        """Numerical rank: eigenvalues above the threshold."""
        return len(self.eigenvalues)

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return self.eigenvalues[0] if self.eigenvalues else 0.0

    @property
    def lambda_min_plus(self) -> float | None:
        """The smallest eigenvalue that is told from 0; None where T is 0."""
        return self.eigenvalues[-1] if self.eigenvalues else None

    @property
    def lambda_min_resolved(self) -> bool:
        """Whether ``lambda_min`` is known: exactly 0, or well above the threshold."""
        return self.lambda_min is not None

    @property
    def cond(self) -> float | None:
        """``lambda_max / lambda_min``: ``inf`` where T is singular, None where that cannot be told."""
        if self.lambda_min is None:
            return None
        return self.lambda_max / self.lambda_min if self.lambda_min > 0 else math.inf

    @property
    def cond_plus(self) -> float | None:
        """``lambda_max / lambda_min_plus``: the condition number on the range of T; None where T is 0."""
        return self.lambda_max / self.eigenvalues[-1] if self.eigenvalues else None

    @property
    def stable_rank(self) -> float:
        """``tr T / lambda_max``: the least of the three effective ranks."""
        return self.trace / self.lambda_max if self.eigenvalues else 0.0

    @property
    def participation_rank(self) -> float:
        """``(tr T)² / |T|²`` (Frobenius): the participation ratio of the eigenvalues."""
        squares = math.fsum((value / self.lambda_max) ** 2 for value in self.eigenvalues)
        return self.stable_rank**2 / squares if self.eigenvalues else 0.0

    @property
    def entropy_rank(self) -> float:
        """``exp H`` with H the entropy of the eigenvalues over their sum."""
        total = math.fsum(self.eigenvalues)
        shares = [value / total for value in self.eigenvalues]
        return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else 0.0

    def to_json(self) -> str:
        """All fields and properties as JSON; an infinite condition is the string ``"inf"``.

        Example:
            >>> json.loads(SpectrumReport.from_factor(torch.eye(2)).to_json())["cond"]
            1.0
        """
        derived = {name: getattr(self, name) for name in _DERIVED}
        if self.cond == math.inf:
            derived["cond"] = "inf"
        return json.dumps({**asdict(self), **derived}, allow_nan=False)


_DERIVED = (
    "rank",
    "lambda_max",
    "lambda_min_plus",
    "lambda_min_resolved",
    "cond",
    "cond_plus",
    "stable_rank",
    "participation_rank",
    "entropy_rank",
)


def _report(
    method: str,
    size: int,
    values: Tensor,
    unit: float,
    bound: int,
    parts: tuple[Tensor, float] | None,
    given: Tensor,
) -> SpectrumReport:
    """The report of descending eigenvalues and the squared coefficients of the targets."""
    top = float(values[0])
    threshold = unit * top
    _check_structure(values, bound, math.sqrt(torch.finfo(given.dtype).eps) * top)
    rank = int((values[:bound] > threshold).sum())
    kept = values[:rank]
    smallest, upper = _smallest(values, size, bound, threshold)
    residual = norm = None
    if parts is not None:
        squares, total = parts
        norm = float((squares[:rank] / kept).sum())
        residual = max(0.0, 1.0 - float(squares[:rank].sum()) / total) if total else 0.0
    return SpectrumReport(
        size=size,
        method=method,
        rank_bound=bound,
        zero_threshold=threshold,
        eigenvalues=tuple(kept.tolist()),
        lambda_min=smallest,
        lambda_min_upper=upper,
        trace=float(values[:bound].sum()),
        residual_fraction=residual,
        norm_squared=norm,
        dtype=str(given.dtype).removeprefix("torch."),
    )


def _smallest(values: Tensor, size: int, bound: int, threshold: float) -> tuple[float | None, float]:
    """λ_min, or None where it is not resolved, and what it is at most."""
    last = float(values[-1])
    if bound < size or float(values[0]) == 0.0:
        return 0.0, 0.0
    if last > _RESOLVED * threshold:
        return last, last
    return None, last + threshold


def _parts(vectors: Tensor | None, targets: Tensor | None, size: int) -> tuple[Tensor, float] | None:
    """Squared coefficients of the targets in the eigenvectors, and their whole square."""
    if vectors is None or targets is None:
        return None
    if targets.numel() != size:
        raise ModeError(f"targets have {targets.numel()} entries, but T has {size} rows")
    y = targets.detach().to(vectors).flatten()
    return (vectors.mT @ y).square(), float(y.square().sum())


def _check_finite(matrix: Tensor) -> None:
    """Raise where an entry is infinite or not a number."""
    if not bool(torch.isfinite(matrix).all()):
        raise NumericalError(f"a matrix of shape {tuple(matrix.shape)} has entries that are not finite")


def _checked_bound(given: int | None, own: int) -> int:
    """The lesser of the bound given and that of the shape."""
    if given is not None and given < 0:
        raise RankError(f"a rank bound is at least 0, not {given}")
    return own if given is None else min(given, own)


def _check_structure(values: Tensor, bound: int, limit: float) -> None:
    """Raise where the spectrum contradicts the structural bound by more than rounding."""
    if bound < len(values) and float(values[bound]) > limit:
        raise RankError(
            f"eigenvalue {bound + 1} is {float(values[bound]):.3e}, but a rank bound of {bound} was given; "
            f"the bound is wrong, or T is not what it was derived for"
        )
