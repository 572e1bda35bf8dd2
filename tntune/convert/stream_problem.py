"""StreamProblem: bases that layers of any shapes share, fitted by alternating least squares."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from tntune.convert.coefficients import Coefficients, Seen, best_coefficients, whitened
from tntune.convert.joint_side import JointSide, cholesky, solved_basis
from tntune.convert.norm import LayerNorm, weighted_balance
from tntune.errors import SpecError
from tntune.maps.base import Factors

__all__ = ["Pair", "StreamFit", "StreamProblem", "StreamState"]

Pair: TypeAlias = tuple[str, str]
"""The stream that a layer reads and the one that it writes."""


class StreamProblem:
    """Layers and their norms, reduced to the directions that matter in each stream of features.

    Memory: that of a :class:`tntune.convert.joint_side.JointSide` for each stream.

    Args:
        factors: Down and up of each layer, scale in up.
        norms: The norm of each.
        streams: The streams of each; all sides of a stream have the same features. No layer reads the stream
            that it writes, so that ΔW is linear in every basis.

    Attributes:
        squares: Squared norm of each ΔW.
        sides: All sides of each stream.
        features: Size of each stream.
        pairs: The layers between each pair of streams.
        uses: For each stream the pairs that it is in, and where: 0 as the input, 1 as the output; its sides
            are in this order.

    Raises:
        SpecError: Where a layer reads the stream that it writes.

    Example:
        >>> from tntune.convert.form import Form
        >>> sizes = ((5, 4), (4, 5))
        >>> factors = [Factors(torch.eye(2, n), torch.eye(m, 2)) for n, m in sizes]
        >>> norms = [LayerNorm(Form(n), Form(m)) for n, m in sizes]
        >>> problem = StreamProblem(factors, norms, [("five", "four"), ("four", "five")])
        >>> state = StreamState(problem, problem.starts({"five": 2, "four": 2}), (2, 2))
        >>> round(state.error, 6)
        0.0
    """

    def __init__(
        self, factors: Sequence[Factors], norms: Sequence[LayerNorm], streams: Sequence[Pair]
    ) -> None:
        same = sorted({first for first, second in streams if first == second})
        if same:
            raise SpecError(f"a layer reads and writes the stream {same[0]!r}; its sides need one each")
        balanced = [weighted_balance(each, norm) for each, norm in zip(factors, norms, strict=True)]
        self.squares = torch.stack([each.values.square().sum() for each in balanced])
        self.pairs: dict[Pair, list[int]] = {}
        for layer, pair in enumerate(streams):
            self.pairs.setdefault(pair, []).append(layer)
        self.uses: dict[str, list[tuple[Pair, int]]] = {}
        for side in (0, 1):
            for pair in self.pairs:
                self.uses.setdefault(pair[side], []).append((pair, side))
        self.sides: dict[str, JointSide] = {}
        for stream, uses in self.uses.items():
            places = [(layer, side) for pair, side in uses for layer in self.pairs[pair]]
            rows = [balanced[layer].up.mT if side else balanced[layer].down for layer, side in places]
            self.sides[stream] = JointSide.of(rows, [norms[layer][side] for layer, side in places])
        self.features = {
            stream: (
                factors[self.pairs[pair][0]].up.shape[0]
                if side
                else factors[self.pairs[pair][0]].down.shape[1]
            )
            for stream, ((pair, side), *_) in self.uses.items()
        }

    @property
    def total(self) -> float:
        """Squared norm of all ΔW."""
        return float(self.squares.sum())

    def starts(self, ranks: Mapping[str, int]) -> dict[str, Tensor]:
        """Bases of the leading directions of each stream, at most so many as its sides span."""
        return {stream: self.sides[stream].start[:, :rank] for stream, rank in ranks.items()}


class StreamFit(NamedTuple):
    """Fitted bases and coefficients.

    Attributes:
        bases: ``(features, r)`` of each stream, float64.
        layers: Of each layer the coefficients of its down ``(r, w)`` and up ``(r', w)``.
        history: Squared error in the norm, relative to all ΔW, at the start and after each sweep; never
            rising.

    Example:
        >>> StreamFit._fields
        ('bases', 'layers', 'history')
    """

    bases: dict[str, Tensor]
    layers: tuple[tuple[Tensor, Tensor], ...]
    history: tuple[float, ...]


class StreamState:
    """Bases of all streams, and the best coefficients of given widths between them.

    Args:
        problem: What is fitted.
        bases: ``(m, r)`` for each stream, in the coordinates of its side.
        widths: Of each layer; 0 leaves it out.

    Attributes:
        bases: The same, orthonormal.
        seen: What the sides of each stream see of its basis.
        coefficients: Of the layers of each pair, zero beyond their widths.

    Example:
        >>> StreamState.__name__
        'StreamState'
    """

    def __init__(self, problem: StreamProblem, bases: Mapping[str, Tensor], widths: Sequence[int]) -> None:
        self.problem, self.widths = problem, tuple(widths)
        self.bases = {stream: torch.linalg.qr(basis)[0] for stream, basis in bases.items()}
        self.seen = {stream: problem.sides[stream].seen_by(basis) for stream, basis in self.bases.items()}
        self.coefficients = {pair: self._best(pair) for pair in problem.pairs}

    @property
    def ranks(self) -> dict[str, int]:
        """Of each stream."""
        return {stream: basis.shape[1] for stream, basis in self.bases.items()}

    @property
    def error(self) -> float:
        """The squared error, relative to all ΔW."""
        kept = sum(float(each.values.square().sum()) for each in self.coefficients.values())
        return max(0.0, 1.0 - kept / self.problem.total) if self.problem.total else 0.0

    def fit(self, *, sweeps: int, tolerance: float = 1e-3) -> StreamFit:
        """Solve in turn for each basis, with the coefficients that are best for it: no step raises the error.

        A basis is solved for by preconditioned conjugate gradients on its least-squares problem
        (:func:`tntune.convert.joint_side.solved_basis`), all coefficients at once by small SVDs
        (:func:`tntune.convert.coefficients.best_coefficients`).

        Args:
            sweeps: At most so many over all streams.
            tolerance: It ends when a sweep lowers the squared error by less than that share of it.
        """
        history = [self.error]
        for _ in range(sweeps):
            for stream in self.bases:
                self._improve(stream)
            history.append(self.error)
            if history[-2] - history[-1] <= tolerance * history[-2]:
                break
        bases = {stream: self.problem.sides[stream].expand(basis) for stream, basis in self.bases.items()}
        layers: dict[int, tuple[Tensor, Tensor]] = {}
        for pair, (down, up, _) in self.coefficients.items():
            for index, layer in enumerate(self.problem.pairs[pair]):
                width = self.widths[layer]
                layers[layer] = down[index, :, :width], up[index, :, :width]
        return StreamFit(bases, tuple(layers[layer] for layer in sorted(layers)), tuple(history))

    def cut(self, ranks: Mapping[str, int], widths: Sequence[int]) -> "StreamState":
        """The leading columns of each basis, at these widths."""
        bases = {stream: basis[:, : ranks[stream]] for stream, basis in self.bases.items()}
        return StreamState(self.problem, bases, widths)

    def sorted(self) -> "StreamState":
        """The same spaces, in bases whose leading columns carry most of all ΔW."""
        return StreamState(self.problem, {stream: self._sorted(stream) for stream in self.bases}, self.widths)

    def cores(self) -> dict[Pair, tuple[Tensor, Tensor]]:
        """Of each pair its layers' ΔW between the bases, as factors: see :func:`whitened`."""
        return {pair: whitened(self._part(pair, 0), self._part(pair, 1)) for pair in self.problem.pairs}

    def _sorted(self, stream: str) -> Tensor:
        side, (grams, _) = self.problem.sides[stream], self.seen[stream]
        size = side.forms.diagonal(dim1=1, dim2=2).mean(1)[side.kind][:, None, None]
        root = cholesky((grams / size).mean(0)[None])[0]
        energy = root.mT @ (size * self._normal(stream)[0]).sum(0) @ root
        vectors = torch.linalg.eigh(energy).eigenvectors.flip(1)
        turned: Tensor = self.bases[stream] @ torch.linalg.solve_triangular(root.mT, vectors, upper=True)
        return turned

    def _improve(self, stream: str) -> None:
        side = self.problem.sides[stream]
        found = solved_basis(side, self.bases[stream], *self._normal(stream))
        self.bases[stream] = torch.linalg.qr(found)[0]
        self.seen[stream] = side.seen_by(self.bases[stream])
        for pair in dict.fromkeys(pair for pair, _ in self.problem.uses[stream]):
            self.coefficients[pair] = self._best(pair)

    def _normal(self, stream: str) -> tuple[Tensor, Tensor]:
        """``(M, b)`` of the normal equations ``Σ form X M_s = b`` of a stream's basis X over its sides s."""
        count, middles, weights = self.problem.sides[stream].seen.shape[1], [], []
        for pair, side in self.problem.uses[stream]:
            (own, other), (grams, rows) = self.coefficients[pair][:2], self._part(pair, 1 - side)
            own, other = (other, own) if side else (own, other)
            middles.append(own @ (other.mT @ grams @ other) @ own.mT)
            each = rows[:, :count] @ other @ own.mT
            weights.append(pad(each, (0, 0, 0, count - each.shape[1])))
        return torch.cat(middles), self.problem.sides[stream].weighted_sum(torch.cat(weights))

    def _best(self, pair: Pair) -> Coefficients:
        widths = torch.tensor([self.widths[layer] for layer in self.problem.pairs[pair]])
        down, up, values = best_coefficients(
            self._part(pair, 0), self._part(pair, 1), max(1, int(widths.max()))
        )
        kept = (torch.arange(values.shape[1]) < widths[:, None]).to(values)
        return Coefficients(down * kept[:, None], up * kept[:, None], values * kept)

    def _part(self, pair: Pair, side: int) -> Seen:
        """What the layers of a pair see of the basis on one of their sides."""
        uses, first = self.problem.uses[pair[side]], 0
        for each in uses:
            count = len(self.problem.pairs[each[0]])
            if each == (pair, side):
                break
            first += count
        grams, rows = self.seen[pair[side]]
        return grams[first : first + count], rows[first : first + count]
