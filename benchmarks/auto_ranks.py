"""Do ranks chosen in training beat uniform ranks at an equal budget of parameters?

    python benchmarks/auto_ranks.py                  # both tasks, about ten minutes
    python benchmarks/auto_ranks.py --task teacher   # the regression only

`teacher`: a small network learns what adapters of unequal true ranks add to it; the score is the mean
squared error on held-out inputs, relative to that without an adapter. `docstrings`: MiniLM of the examples,
few steps on the openings of texts; the score is the loss on held-out ones. All methods take the same number
of steps on the same batches; where several learning rates are tried, each method has its best on seeds that
are not reported. Intervals are 95 % (Student's t over seeds), of the score and of the difference to uniform
ranks on the same seed. Lower is better.
"""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tntune.adapters import AdapterSpec, adapt, adapted_layers
from tntune.maps import Site
from tntune.plugins import AutoRanks, branches

TRUE_RANKS = (1, 12, 2, 1, 6, 1)  # of the teacher's adapters, layer by layer
SIZE, WIDTH = 64, 8
HELD, CHARACTERS = 192, 100  # texts to score on, and how much of a text is read


@dataclass(frozen=True)
class Method:
    """Ranks at the start, and the steps, as shares of all, after which they shrink to the budget.

    Where layers are ``apart``, each shrinks to its own share of the budget, that of uniform ranks: a control
    that starts large as well, and tells what is due to the sharing.
    """

    ranks: tuple[int, ...] | int
    at: tuple[float, ...] = ()
    apart: bool = False


@dataclass(frozen=True)
class Run:
    """What a method is given: a fresh model, its sites at some ranks, a loss of a step, and a score."""

    model: nn.Module
    sites: Callable[[tuple[int, ...] | int], dict[str, Site]]
    loss: Callable[[int], Tensor]
    score: Callable[[], float]
    extras: tuple[nn.Module, ...] = ()


def budgets_of(sites: dict[str, Site]) -> dict[str, int]:
    return {name: site.map.num_parameters for name, site in sites.items()}


def trained(
    run: Run, method: Method, *, steps: int, rate: float, budgets: dict[str, int], seed: int
) -> float:
    """The score after training within these budgets, layer by layer or all together."""
    total = sum(budgets.values())
    adapt(run.model, run.sites(method.ranks), generator=torch.Generator().manual_seed(seed))
    for module in run.extras:
        module.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in run.model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    at = [max(1, round(share * steps)) for share in method.at]
    parts = [[branch] for branch in branches(run.model)] if method.apart else [branches(run.model)]
    autos = [
        AutoRanks(p, optimizer, budget=budgets[p[0].name] if method.apart else total, at=at)
        for p in parts
        if at
    ]
    for step in range(steps):
        optimizer.zero_grad()
        run.loss(step).backward()
        optimizer.step()
        schedule.step()
        for auto in autos:
            auto.step()
    held = sum(layer.generator.map.num_parameters for _, layer in adapted_layers(run.model))
    assert held <= total, (held, total)
    return run.score()


# The regression.


class Network(nn.Module):
    """Residual layers with a nonlinearity between them."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in TRUE_RANKS)
        for layer in self.layers:
            layer.weight.data = torch.randn(SIZE, SIZE, generator=generator) / SIZE**0.5

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def teacher_sites(ranks: tuple[int, ...] | int, *, start: str = "zero") -> dict[str, Site]:
    """A train for each layer, of its own rank or all of one."""
    own = (ranks,) * len(TRUE_RANKS) if isinstance(ranks, int) else ranks
    spec = AdapterSpec(width=WIDTH, start=start)
    return {
        f"layers.{k}": Site(replace(spec, rank=rank).map_for(SIZE, SIZE), 1.0) for k, rank in enumerate(own)
    }


def teacher_run(seed: int) -> Run:
    generator = torch.Generator().manual_seed(1000 + seed)
    teacher, student = (Network(torch.Generator().manual_seed(seed)) for _ in range(2))
    adapt(teacher, teacher_sites(TRUE_RANKS, start="random"), generator=generator)
    for _, layer in adapted_layers(teacher):  # deltas of equal norm, whatever their ranks
        layer.spec = replace(layer.spec, scale=3.0 / float(layer.delta_weight().norm()))
    inputs, held = (torch.randn(n, SIZE, generator=generator) for n in (4096, 1024))
    with torch.no_grad():
        targets, wanted = teacher(inputs), teacher(held)
        before = float((student(held) - wanted).square().mean())
    order = torch.randint(len(inputs), (100_000,), generator=generator)

    def loss(step: int) -> Tensor:
        rows = order[64 * step % 99_936 :][:64]
        return (student(inputs[rows]) - targets[rows]).square().mean()

    @torch.no_grad()
    def score() -> float:
        return float((student(held) - wanted).square().mean()) / before

    return Run(student, teacher_sites, loss, score)


# The texts.


@cache
def texts() -> tuple[Any, dict[str, tuple[tuple[str, ...], Tensor]]]:
    """The module of the examples, and openings of texts with their labels."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    docstrings = importlib.import_module("docstrings")
    task = docstrings.load_task()
    stride = len(task.test) // HELD
    parts = {"train": task.train, "test": type(task.test)(*(x[::stride] for x in vars(task.test).values()))}
    return docstrings, {
        name: (tuple(text[:CHARACTERS] for text in part.texts), torch.tensor(part.targets))
        for name, part in parts.items()
    }


def docstring_run(seed: int) -> Run:
    docstrings, parts = texts()
    model, tokenizer = docstrings.load_base()
    order = torch.randint(len(parts["train"][0]), (100_000,), generator=torch.Generator().manual_seed(seed))
    spec = AdapterSpec(targets=("query", "key", "value", "intermediate.dense", "output.dense"), width=8)

    def sites(ranks: tuple[int, ...] | int) -> dict[str, Site]:
        assert isinstance(ranks, int)
        return replace(spec, rank=ranks).sites_for(model)

    def entropy(own: tuple[str, ...], labels: Tensor) -> Tensor:
        return cross_entropy(model(**docstrings.encode(tokenizer, own)).logits, labels)

    def loss(step: int) -> Tensor:
        rows, (own, labels) = order[16 * step :][:16], parts["train"]
        return entropy(tuple(own[row] for row in rows.tolist()), labels[rows])

    @torch.no_grad()
    def score() -> float:
        return float(entropy(*parts["test"]))

    return Run(model, sites, loss, score, (model.classifier,))


@dataclass(frozen=True)
class Task:
    """Methods of one budget, that of uniform ranks, and how long and at what rates they train."""

    run: Callable[[int], Run]
    methods: dict[str, Method]
    steps: int
    rates: tuple[float, ...]
    tuning: int  # seeds that choose among several rates


TASKS = {
    "teacher": Task(
        teacher_run,
        {
            "uniform ranks 3": Method(3),
            "12 to uniform shares": Method(12, (0.2,), apart=True),
            "auto, 12 to the budget at once": Method(12, (0.2,)),
            "auto, 12 to the budget in three": Method(12, (0.1, 0.2, 0.3)),
            "ranks of the teacher, budget aside": Method(TRUE_RANKS),
        },
        steps=1500,
        rates=(3e-3, 1e-2, 3e-2),
        tuning=2,
    ),
    "docstrings": Task(
        docstring_run,
        {
            "uniform ranks 2": Method(2),
            "8 to uniform shares": Method(8, (0.3,), apart=True),
            "auto, 8 to the budget at once": Method(8, (0.3,)),
        },
        steps=50,
        rates=(3e-2,),
        tuning=0,
    ),
}


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % interval."""
    found = torch.tensor(values, dtype=torch.float64)
    half = float(stats.t.ppf(0.975, len(values) - 1) * found.std() / len(values) ** 0.5)
    return f"{float(found.mean()):.4f} ± {half:.4f}"


def report(name: str, seeds: int) -> None:
    """The rows of one task."""
    task = TASKS[name]
    uniform = next(iter(task.methods))
    budgets = budgets_of(task.run(0).sites(task.methods[uniform].ranks))
    scores: dict[str, list[float]] = {}
    for label, method in task.methods.items():
        own = budgets if method.at else budgets_of(task.run(0).sites(method.ranks))

        def score(seed: int, rate: float, method: Method = method, own: dict[str, int] = own) -> float:
            run = task.run(seed)
            return trained(run, method, steps=task.steps, rate=rate, budgets=own, seed=seed)

        tried = {rate: sum(score(100 + k, rate) for k in range(task.tuning)) for rate in task.rates}
        rate = min(tried, key=tried.__getitem__)
        scores[label] = [score(seed, rate) for seed in range(seeds)]
        gap = [a - b for a, b in zip(scores[label], scores[uniform], strict=True)]
        beside = "" if label == uniform else interval(gap)
        size = f"{sum(own.values()):,}"
        print(f"| {name} | {label} | {size} | {rate:g} | {interval(scores[label])} | {beside} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| task | ranks | parameters | learning rate | score | less uniform |\n|---|---|---|---|---|---|")
    for name in options.task:
        report(name, options.seeds)


if __name__ == "__main__":
    main()
