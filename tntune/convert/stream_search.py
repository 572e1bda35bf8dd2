"""StreamSearch: which layers share which bases, and at which ranks, for an adapter of any shapes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.convert.candidate import Candidate, Layers, Piece, evened
from tntune.convert.encode import stored
from tntune.convert.norm import Norm
from tntune.convert.stream_choice import StreamChoice, StreamSizes
from tntune.convert.stream_problem import Pair, StreamFit, StreamProblem, StreamState
from tntune.maps.grid import place
from tntune.maps.group import Group
from tntune.maps.streams import Streams

__all__ = ["StreamPlan", "StreamSearch", "partitions", "stream_piece"]

_FIRST = 3.0  # times the budget: bases before any choice
_SHARES = (2.0, 1.5, 1.2, 1.0)  # of it, in turn: ranks are lowered as the bases settle
_SWEEPS = 4  # at the last of them; one before
_LARGEST = 128
_LEAST = 2  # layers that are worth sharing


class StreamPlan(NamedTuple):
    """Streams, their bases, and the widths of layers that a budget buys.

    Attributes:
        partition: How the sides of layers are made streams: a key of :func:`partitions`.
        streams: The streams of each layer.
        sizes: Ranks and widths.
        bases: ``(features, r)`` of each stream, from which a fit goes on.
        squared_error: What is left of all ΔW, in the norm of the search.

    Example:
        >>> StreamPlan._fields[0]
        'partition'
    """

    partition: str
    streams: tuple[Pair, ...]
    sizes: StreamSizes
    bases: dict[str, Tensor]
    squared_error: float


class StreamSearch:
    """Bases that all layers share, whatever their shapes, at ranks and widths that one budget buys.

    For each of the :func:`partitions` bases of three times the budget are fitted roughly. Then in a few
    stages what keeps least for its parameters is taken away, a few columns of a basis or of single layers,
    and the rest is fitted again. The partition of least error is chosen. The time is bounded: eight sweeps
    for each.

    Memory: the reduced problem of one partition, at most 2.4 MB a layer, and the bases of each plan.

    Args:
        layers: The layers.
        norm: What is fitted.

    Example:
        >>> from tntune.convert.gauge import balance
        >>> sizes = {"h.0.up": (9, 8), "h.0.down": (8, 9), "h.1.up": (9, 8), "h.1.down": (8, 9)}
        >>> made = {name: balance(torch.eye(2, n), torch.eye(m, 2)) for name, (m, n) in sizes.items()}
        >>> layers = Layers(made, dict.fromkeys(made, 2), torch.float32)
        >>> plan = StreamSearch(layers, Norm()).plan(100)
        >>> sorted(plan.sizes.ranks.values()), plan.squared_error < 1e-9
        ([2, 2, 2, 2], True)
    """

    def __init__(self, layers: Layers, norm: Norm) -> None:
        self.layers, self.norm = layers, norm
        self._plans: dict[int, StreamPlan | None] = {}

    def plan(self, budget: int) -> StreamPlan | None:
        """The best for a budget, made once; None where fewer than two layers find a place in it."""
        if budget not in self._plans:
            self._plans[budget] = self._planned(budget)
        return self._plans[budget]

    def _planned(self, budget: int) -> StreamPlan | None:
        if len(self.layers.balanced) < _LEAST:
            return None
        made = (self._made(name, pairs, budget) for name, pairs in partitions(self.layers).items())
        found = (plan for plan in made if sum(map(bool, plan.sizes.widths)) >= _LEAST)
        return min(found, key=lambda plan: plan.squared_error, default=None)

    def candidate(self, plan: StreamPlan, norm: Norm) -> Candidate:
        """The adapter of a plan, fitted to the end in a norm."""
        problem = self._problem(plan.streams, norm)
        starts = {stream: problem.sides[stream].reduce(basis) for stream, basis in plan.bases.items()}
        fit = StreamState(problem, starts, plan.sizes.widths).fit(sweeps=25)
        piece = stream_piece(self.layers, plan.streams, fit)
        return Candidate(f"joint by {plan.partition}, {norm.name}", (piece,))

    def _made(self, partition: str, streams: Sequence[Pair], budget: int) -> StreamPlan:
        """The plan of one partition."""
        problem = self._problem(streams, self.norm)
        state = self._first(problem, budget)
        fit = state.fit(sweeps=1)
        for share in _SHARES:
            state = state.sorted()
            choice = StreamChoice(state.cores(), problem.pairs, problem.features)
            choose, sweeps = (choice.best, _SWEEPS) if share == _SHARES[-1] else (choice.within, 1)
            state = state.cut(*choose(StreamSizes(state.ranks, state.widths), int(share * budget)))
            fit = state.fit(sweeps=sweeps)
        sizes, left = StreamSizes(state.ranks, state.widths), fit.history[-1] * problem.total
        return StreamPlan(partition, tuple(streams), sizes, fit.bases, left)

    def _first(self, problem: StreamProblem, budget: int) -> StreamState:
        """Spectral bases of more than the budget; of a larger stream fewer, as the root of its size."""
        roots = sum(size**0.5 for size in problem.features.values())
        ranks = {
            stream: max(1, min(_LARGEST, round(_FIRST * budget / (roots * size**0.5))))
            for stream, size in problem.features.items()
        }
        widths = (self.layers.widths[name] for name in self.layers.balanced)
        return StreamState(problem, problem.starts(ranks), tuple(widths))

    def _problem(self, streams: Sequence[Pair], norm: Norm) -> StreamProblem:
        norms = self.layers.norms(norm)
        factors = [self.layers.factors(name) for name in self.layers.balanced]
        return StreamProblem(factors, [norms[name] for name in self.layers.balanced], streams)


def partitions(layers: Layers) -> dict[str, list[Pair]]:
    """Ways to make streams of the sides of all layers, by name, each way once.

    ``"size"``: all inputs of one size are a stream, and all outputs; ``"shape"``: those of one shape;
    ``"role"``: those of one role in all blocks.

    Example:
        >>> from tntune.convert.gauge import balance
        >>> made = {name: balance(torch.eye(2, 9), torch.eye(8, 2)) for name in ("h.0.q", "h.0.v")}
        >>> partitions(Layers(made, dict.fromkeys(made, 2), torch.float32))["size"]
        [('in 9', 'out 8'), ('in 9', 'out 8')]
    """
    found: dict[str, list[Pair]] = {"size": [], "shape": [], "role": []}
    for name in layers.balanced:
        outside, inside = layers.shape(name)
        shape, role = f"{inside}x{outside}", f"{place(name)[1]} {inside}x{outside}"
        found["size"].append((f"in {inside}", f"out {outside}"))
        found["shape"].append((f"in of {shape}", f"out of {shape}"))
        found["role"].append((f"in of {role}", f"out of {role}"))
    return dict(_distinct(found))


def _distinct(found: dict[str, list[Pair]]) -> Iterator[tuple[str, list[Pair]]]:
    """Those that differ in more than the names of streams."""
    known = set()
    for name, pairs in found.items():
        every = [stream for pair in pairs for stream in pair]
        order = {stream: index for index, stream in enumerate(dict.fromkeys(every))}
        form = tuple(order[stream] for stream in every)
        if form not in known:
            known.add(form)
            yield name, pairs


def stream_piece(layers: Layers, streams: Sequence[Pair], fit: StreamFit) -> Piece:
    """Fitted bases and coefficients as the map of their layers; one of width 0 is left out.

    Example:
        >>> from tntune.convert.gauge import balance
        >>> layers = Layers({"fc": balance(torch.eye(2, 5), torch.eye(3, 2))}, {"fc": 2}, torch.float32)
        >>> bases, own = {"a": torch.ones(5, 2), "b": torch.ones(3, 1)}, (torch.ones(2, 1), torch.ones(1, 1))
        >>> fit = StreamFit(bases, (own,), ())
        >>> group, tensors = stream_piece(layers, [("a", "b")], fit)
        >>> group.map.sizes, group.map.ranks, [tuple(each.shape) for each in tensors.values()]
        ((5, 3), (2, 1), [(5, 2), (2, 1), (3, 1), (1, 1)])
    """
    kept = [index for index, (down, _) in enumerate(fit.layers) if down.shape[1]]
    names = list(dict.fromkeys(stream for index in kept for stream in streams[index]))
    columns: dict[str, list[Tensor]] = {stream: [] for stream in names}
    for index in kept:
        for stream, own in zip(streams[index], evened(*fit.layers[index], layers.dtype), strict=True):
            columns[stream].append(own)
    map = Streams(
        sizes=tuple(fit.bases[stream].shape[0] for stream in names),
        ranks=tuple(fit.bases[stream].shape[1] for stream in names),
        inputs=tuple(names.index(streams[index][0]) for index in kept),
        outputs=tuple(names.index(streams[index][1]) for index in kept),
        widths=tuple(fit.layers[index][0].shape[1] for index in kept),
        start="random",
    )
    cores = (core for stream in names for core in (fit.bases[stream], torch.cat(columns[stream], dim=1)))
    tensors = {name: stored(core, layers.dtype) for name, core in zip(map.param_shapes, cores, strict=True)}
    every = list(layers.balanced)
    return Group(map, tuple(every[index] for index in kept), (1.0,) * len(kept)), tensors
