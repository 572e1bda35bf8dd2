"""Laws of shared bases of many shapes: monotone, exact where they can be, within the budget, and usable."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.convert.sample import lora_folder
from tests.support.tolerance import close
from tntune import load_adapters
from tntune.adapters import adapted_layers
from tntune.checkpoint import open_lora, open_tensorguide
from tntune.convert import ConversionSettings, Norm, Target, Task, calibrate, convert_lora, export_lora
from tntune.convert.candidate import Layers
from tntune.convert.form import Form
from tntune.convert.gauge import balance
from tntune.convert.norm import LayerNorm
from tntune.convert.stream_choice import StreamChoice, StreamSizes
from tntune.convert.stream_problem import StreamProblem, StreamState
from tntune.convert.stream_search import StreamSearch, partitions, stream_piece
from tntune.errors import SpecError
from tntune.maps import Streams
from tntune.maps.base import Factors

WIDE, INNER, BLOCKS, RANK = 12, 20, 4, 3
SHAPES = {"mix": (WIDE, WIDE), "up": (INNER, WIDE), "down": (WIDE, INNER)}
NAMES = [f"h.{block}.{role}" for block in range(BLOCKS) for role in SHAPES]


class Network(nn.Module):
    """Blocks of layers of three shapes around one residual stream."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.h = nn.ModuleList(
            nn.ModuleDict({role: nn.Linear(inside, out) for role, (out, inside) in SHAPES.items()})
            for _ in range(BLOCKS)
        )
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=draw) / WIDE**0.5

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for block in self.h:
            x = x + torch.tanh(block["mix"](x))
            x = x + block["down"](torch.tanh(block["up"](x))) / 4
        return x


def shared(seed: int = 0, own: float = 0.1) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) of layers that share what they read and write, with a little of their own."""
    draw = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    reads = {size: randn(RANK, size) for size in (WIDE, INNER)}
    writes = {size: randn(size, RANK) for size in (WIDE, INNER)}
    made = {}
    for name in NAMES:
        out, inside = SHAPES[name.rpartition(".")[2]]
        down = randn(RANK, RANK) @ reads[inside] + own * randn(RANK, inside)
        made[name] = down / 6, (writes[out] @ randn(RANK, RANK) + own * randn(out, RANK)) / 6
    return made


def folder(path: Path) -> Path:
    return lora_folder(path, made=shared(), target_modules=list(SHAPES), r=RANK, rank_pattern={})


def layers_of(made: dict[str, tuple[Tensor, Tensor]]) -> Layers:
    balanced = {name: balance(*pair) for name, pair in made.items()}
    return Layers(balanced, dict.fromkeys(made, RANK), torch.float64)


def batches(count: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    mix = torch.randn(WIDE, WIDE, generator=draw) * 0.6 ** torch.arange(WIDE)
    return [torch.randn(16, WIDE, generator=draw) @ mix.T for _ in range(count)]


def norms(seed: int = 0) -> list[LayerNorm]:
    draw = torch.Generator().manual_seed(seed)

    def form(size: int) -> Form:
        moment = torch.randn(size, size, generator=draw, dtype=torch.float64) * 0.7 ** torch.arange(size)
        return Form(size, moment @ moment.T, 0.05)

    return [
        LayerNorm(form(inside), form(out)) for out, inside in (SHAPES[n.rpartition(".")[2]] for n in NAMES)
    ]


def problem(given: list[LayerNorm]) -> StreamProblem:
    made = shared()
    pairs = partitions(layers_of(made))["size"]
    return StreamProblem([Factors(*made[name]) for name in NAMES], given, pairs)


WIDTHS = (2, 1, 3) * BLOCKS
RANKS = {"in 12": 4, "out 12": 3, "in 20": 2, "out 20": 3}


def test_the_error_never_rises_and_is_what_the_map_has() -> None:
    given = norms()
    own = problem(given)
    fit = StreamState(own, own.starts(RANKS), WIDTHS).fit(sweeps=5, tolerance=0.0)
    assert len(fit.history) == 6
    assert all(after <= before + 1e-11 for before, after in pairwise(fit.history))
    layers = layers_of(shared())
    group, tensors = stream_piece(layers, partitions(layers)["size"], fit)
    assert isinstance(group.map, Streams)
    lost = 0.0
    for index, (name, norm) in enumerate(zip(NAMES, given, strict=True)):
        down, up = group.map.site_factors(tensors, {}, index)
        lost += norm.squared_distance(Factors(*shared()[name]), Factors(down[0], up[0]))
    assert close(torch.tensor(1 + lost / own.total), torch.tensor(1 + fit.history[-1]), factor=100)


def test_sorting_keeps_the_spaces_and_puts_first_what_matters() -> None:
    own = problem(norms())
    state = StreamState(own, own.starts(RANKS), WIDTHS)
    state.fit(sweeps=2)
    ordered = state.sorted()
    assert close(torch.tensor(ordered.error), torch.tensor(state.error), factor=100)
    for stream, basis in ordered.bases.items():
        assert close(basis @ basis.mT @ state.bases[stream], state.bases[stream])
        reversed_order = {**ordered.bases, stream: basis.flip(1)}
        fewer = {**RANKS, stream: RANKS[stream] - 1}
        last = StreamState(own, reversed_order, WIDTHS).cut(fewer, WIDTHS)
        assert ordered.cut(fewer, WIDTHS).error < last.error


def test_what_the_choice_foresees_is_what_the_cut_has() -> None:
    own = problem(norms())
    state = StreamState(own, own.starts(RANKS), (RANK,) * len(NAMES)).sorted()
    choice = StreamChoice(state.cores(), own.pairs, own.features)
    full = StreamSizes(state.ranks, state.widths)
    for budget in (60, 120, 200, 400):
        for found in (choice.within(full, budget), choice.best(full, budget)):
            assert choice.params(found) <= budget
            cut = state.cut(*found)
            kept = torch.tensor(choice.kept(found) / own.total)
            assert close(1 - torch.tensor(cut.error), kept, factor=100)
        assert choice.kept(choice.best(full, budget)) >= choice.kept(choice.within(full, budget))


FEATURES = {"in": 5, "out": 4}


def test_a_rank_goes_before_a_layer_does() -> None:
    """One layer, of which one direction keeps most: every budget that buys one, buys one of full use."""
    cores = {("in", "out"): (torch.eye(2)[None], torch.diag(torch.tensor([3.0, 1.0]))[None])}
    choice = StreamChoice(cores, {("in", "out"): [0]}, FEATURES)
    full = StreamSizes({"in": 2, "out": 2}, (2,))
    assert choice.within(full, 26) == full
    for budget in range(11, 26):
        found = choice.within(full, budget)
        assert choice.kept(found) == 9.0
        assert choice.params(found) <= budget
    for nothing in (10, -1):
        assert choice.within(full, nothing).widths == (0,)


def test_where_no_rank_can_go_the_layer_that_keeps_least_does() -> None:
    """Bases of one column each, 9 numbers, and two layers of 2."""
    weights = torch.tensor([1.0, 3.0])[:, None, None]
    choice = StreamChoice({("in", "out"): (torch.ones(2, 1, 1), weights)}, {("in", "out"): [0, 1]}, FEATURES)
    full = StreamSizes({"in": 1, "out": 1}, (1, 1))
    assert choice.within(full, 13) == full
    assert choice.within(full, 12).widths == (0, 1)
    assert choice.within(full, 10).widths == (0, 0)


def test_layers_that_share_what_they_read_and_write_are_stored_exactly() -> None:
    layers = layers_of(shared(own=0.0))
    search = StreamSearch(layers, Norm())
    exact = 2 * RANK * (WIDE + INNER) + len(NAMES) * 2 * RANK * RANK
    plan = search.plan(exact)
    assert plan is not None
    candidate = search.candidate(plan, Norm())
    assert candidate.params <= exact
    made = candidate.factors()
    for name, (down, up) in shared(own=0.0).items():
        assert close(made[name].up @ made[name].down, up @ down, factor=1e4)


def test_a_plan_keeps_its_budget_and_more_is_better() -> None:
    layers = layers_of(shared())
    search = StreamSearch(layers, Norm())
    errors = []
    for budget in (80, 160, 320, 640):
        plan = search.plan(budget)
        assert plan is not None
        candidate = search.candidate(plan, Norm())
        assert candidate.params <= budget
        squares = candidate.squared_errors(layers, layers.norms(Norm()))
        errors.append(sum(squares.values()))
        assert errors[-1] <= plan.squared_error * (1 + 1e-9)
    assert all(more < less for less, more in pairwise(errors))


def test_too_small_a_budget_has_no_plan() -> None:
    assert StreamSearch(layers_of(shared()), Norm()).plan(WIDE) is None
    assert StreamSearch(layers_of(dict([*shared().items()][:1])), Norm()).plan(999) is None


def test_one_layer_shares_nothing(tmp_path: Path) -> None:
    """Where one of two layers takes the whole budget, there is no plan, and what is made is no joint map."""
    made = shared()
    names = list(made)[:2]
    two = {names[0]: made[names[0]], names[1]: tuple(1e-6 * part for part in made[names[1]])}
    search = StreamSearch(layers_of(two), Norm())
    for budget in range(40, 200, 10):
        plan = search.plan(budget)
        assert plan is None or sum(map(bool, plan.sizes.widths)) > 1


def test_each_way_to_make_streams_is_there_once() -> None:
    found = partitions(layers_of(shared()))
    assert list(found) == ["size", "shape"]  # one role of each shape
    assert found["size"][0] == ("in 12", "out 12")
    assert found["size"][1] == ("in 12", "out 20")


def test_a_stream_that_a_layer_reads_and_writes_is_refused() -> None:
    made = [Factors(*shared()[NAMES[0]])]
    with pytest.raises(SpecError, match="a layer reads and writes the stream 'residual'"):
        StreamProblem(made, norms()[:1], [("residual", "residual")])


def test_the_folder_adapts_a_model_as_its_lora_does(tmp_path: Path) -> None:
    source = folder(tmp_path / "lora")
    task = Task(calibrate(Network(), batches(), source))
    report = convert_lora(source, tmp_path / "out", ConversionSettings(Target(params=0.4), "auto"), task=task)
    assert report.chosen.startswith("joint by ")
    opened = open_tensorguide(tmp_path / "out")
    (group,) = opened.groups.values()
    assert isinstance(group.map, Streams)
    assert report.params_after == opened.params == sum(layer.params_after for layer in report.layers)
    assert {layer.layout for layer in report.layers if layer.method == "joint"} == {"streams"}
    export_lora(tmp_path / "out", tmp_path / "again", dtype=torch.float64)
    again = open_lora(tmp_path / "again")
    wanted = {site.name: again.load(site) for site in again.sites}
    model = load_adapters(Network().double(), tmp_path / "out")
    found = dict(adapted_layers(model))
    assert found.keys() == wanted.keys()
    for name, (down, up, scale) in wanted.items():
        assert close(found[name].delta_weight().float(), (scale * up @ down).float(), factor=10)
    x = batches(1)[0].double()
    before = model(x)
    before.square().sum().backward()
    owner = next(layer for layer in found.values() if list(layer.generator.parameters()))
    assert all(param.grad is not None and param.grad.any() for param in owner.generator.parameters())
    model.eval()
    with torch.no_grad():
        assert close(model(x), before, factor=10)
