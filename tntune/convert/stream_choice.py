"""StreamChoice: the ranks of streams and the widths of layers that a budget buys."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.convert.stream_problem import Pair

__all__ = ["StreamChoice", "StreamSizes"]

_STRIDE = 12  # ranks are lowered by at least a twelfth of themselves
_EXCHANGES = 8  # tried at the end
_BETTER = 1 + 1e-9


class StreamSizes(NamedTuple):
    """How large bases and coefficients are.

    Attributes:
        ranks: Of each stream.
        widths: Of each layer.

    Example:
        >>> StreamSizes({"residual": 2}, (1, 1)).ranks
        {'residual': 2}
    """

    ranks: dict[str, int]
    widths: tuple[int, ...]


class StreamChoice:
    """What smaller bases keep, read from leading rows of the factors between larger ones; nothing is fitted.

    Args:
        cores: Of each pair of streams its layers' ΔW between the bases, whitened, as two factors: of inputs
            ``(layers, r, k)`` and outputs ``(layers, r', k)``, of bases whose leading columns matter most.
        pairs: The layers of each pair.
        features: Size of each stream.

    Example:
        >>> cores = {("in", "out"): (torch.eye(2)[None], torch.diag(torch.tensor([3.0, 1.0]))[None])}
        >>> choice = StreamChoice(cores, {("in", "out"): [0]}, {"in": 5, "out": 4})
        >>> choice.within(StreamSizes({"in": 2, "out": 2}, (2,)), 11)
        StreamSizes(ranks={'in': 1, 'out': 1}, widths=(1,))
    """

    def __init__(
        self,
        cores: Mapping[Pair, tuple[Tensor, Tensor]],
        pairs: Mapping[Pair, Sequence[int]],
        features: Mapping[str, int],
    ) -> None:
        self.cores, self.pairs, self.features = cores, pairs, features
        self.streams = {layer: pair for pair, layers in pairs.items() for layer in layers}
        self._roots: dict[tuple[Pair, int, int], Tensor] = {}
        self._known: dict[tuple[Pair, int, int], list[list[float]]] = {}

    def params(self, sizes: StreamSizes) -> int:
        """Entries of all bases and coefficients; of a stream that no layer uses none."""
        ranks, widths = sizes
        used = {stream for layer, width in enumerate(widths) if width for stream in self.streams[layer]}
        bases = sum(ranks[stream] * self.features[stream] for stream in used)
        return bases + sum(width * self._cost(ranks, layer) for layer, width in enumerate(widths))

    def kept(self, sizes: StreamSizes) -> float:
        """Squared norm of all ΔW that is kept."""
        return sum(sum(own[: sizes.widths[layer]]) for layer, own in enumerate(self._squares(sizes.ranks)))

    def best(self, sizes: StreamSizes, budget: int) -> StreamSizes:
        """:meth:`within`, and then a rank more here for less elsewhere, as long as that keeps more."""
        found = self.within(sizes, budget)
        for _ in range(_EXCHANGES):
            raised = [
                self.within(StreamSizes({**found.ranks, stream: rank + 1}, sizes.widths), budget, held=stream)
                for stream, rank in found.ranks.items()
                if rank < sizes.ranks[stream]
            ]
            better = max(raised, key=self.kept, default=found)
            if not self.kept(better) > _BETTER * self.kept(found):
                break
            found = better
        return found

    def within(self, sizes: StreamSizes, budget: int, *, held: str = "") -> StreamSizes:
        """Sizes of at most ``budget`` parameters: what keeps least for its parameters goes first.

        That is a few columns of one basis, or columns of single layers. What is left of the budget in the end
        buys columns of layers again.

        Args:
            sizes: Where to begin, no larger than the cores.
            budget: Parameters.
            held: A stream whose rank stays.
        """
        sizes = self._fitting(sizes)
        while self.params(sizes) > budget:
            price, lowered = self._cheapest(sizes, held)
            narrowed = self._narrowed(sizes, budget, price)
            if narrowed == sizes and lowered == sizes:
                return StreamSizes(sizes.ranks, (0,) * len(sizes.widths))
            sizes = lowered if narrowed == sizes else narrowed
        return self._filled(sizes, budget)

    def _cheapest(self, sizes: StreamSizes, held: str) -> tuple[float, StreamSizes]:
        """What a parameter keeps of the stream in which it keeps least, and that stream's rank lowered."""
        price, found, kept, spent = float("inf"), sizes, self.kept(sizes), self.params(sizes)
        for stream, rank in sizes.ranks.items():
            if rank == 1 or stream == held:
                continue
            lowered = self._fitting(
                StreamSizes({**sizes.ranks, stream: rank - max(1, rank // _STRIDE)}, sizes.widths)
            )
            saved = spent - self.params(lowered)
            each = (kept - self.kept(lowered)) / saved if saved else float("inf")
            if each < price:
                price, found = each, lowered
        return price, found

    def _narrowed(self, sizes: StreamSizes, budget: int, price: float) -> StreamSizes:
        """Without columns of layers that keep less than the price, down to the budget."""
        squares, widths = self._squares(sizes.ranks), list(sizes.widths)
        columns = sorted(
            (squares[layer][column] / self._cost(sizes.ranks, layer), layer, column)
            for layer, width in enumerate(widths)
            for column in range(width)
        )
        spent = self.params(sizes)
        for worth, layer, column in columns:
            if worth >= price or spent <= budget:
                break
            spent -= (widths[layer] - column) * self._cost(sizes.ranks, layer)
            widths[layer] = column
        return StreamSizes(sizes.ranks, tuple(widths))

    def _filled(self, sizes: StreamSizes, budget: int) -> StreamSizes:
        """With the columns of layers that keep most, as long as they fit."""
        squares, widths = self._squares(sizes.ranks), list(sizes.widths)
        columns = sorted(
            (-own[column] / self._cost(sizes.ranks, layer), layer, column)
            for layer, own in enumerate(squares)
            for column in range(widths[layer], len(own))
            if own[column] > 0
        )
        spent = self.params(sizes)
        for _, layer, column in columns:
            wider = [*widths[:layer], column + 1, *widths[layer + 1 :]]
            more = self._cost(sizes.ranks, layer)
            if not column:  # perhaps the first layer of its streams
                more = self.params(StreamSizes(sizes.ranks, tuple(wider))) - spent
            if widths[layer] == column and spent + more <= budget:
                widths, spent = wider, spent + more
        return StreamSizes(sizes.ranks, tuple(widths))

    def _fitting(self, sizes: StreamSizes) -> StreamSizes:
        """No layer wider than its streams' ranks."""
        widths = (
            min(width, len(own)) for width, own in zip(sizes.widths, self._squares(sizes.ranks), strict=True)
        )
        return StreamSizes(sizes.ranks, tuple(widths))

    def _cost(self, ranks: Mapping[str, int], layer: int) -> int:
        """Parameters of one column of a layer."""
        first, second = self.streams[layer]
        return ranks[first] + ranks[second]

    def _squares(self, ranks: Mapping[str, int]) -> list[list[float]]:
        """Of each layer what each column keeps between bases of these ranks, falling."""
        found: dict[int, list[float]] = {}
        for pair, layers in self.pairs.items():
            key = (pair, ranks[pair[0]], ranks[pair[1]])
            if key not in self._known:
                core = self._root(pair, 1, key[2]) @ self._root(pair, 0, key[1]).mT
                self._known[key] = torch.linalg.svdvals(core).square().tolist()
            found |= zip(layers, self._known[key], strict=True)
        return [found[layer] for layer in range(len(found))]

    def _root(self, pair: Pair, side: int, rank: int) -> Tensor:
        """R of a thin QR of the leading rows of a factor: no more rows than ΔW has ranks."""
        key = (pair, side, rank)
        if key not in self._roots:
            self._roots[key] = torch.linalg.qr(self.cores[pair][side][:, :rank], mode="r").R
        return self._roots[key]
