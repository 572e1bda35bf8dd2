"""Modules at several places, and tensors of which this process has a part."""

from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from tests.reliability.campaign import Campaign, Tally, drawn
from tests.reliability.operation import digest
from tests.reliability.trainee import METHODS, batch, drawn_start, evaluated, tower, trained
from tests.reliability.training import each
from tests.support.models import Block, Tower
from tests.support.tolerance import close
from tntune.adapters import AdaptedLinear, adapt, load_adapters, merge, save_adapters, unload, unmerge
from tntune.errors import UnsupportedError

__all__ = ["CAMPAIGNS"]


class Chain(nn.Module):
    """Parts one after the other; one of them may come twice."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def _chain(draw: Random) -> Chain:
    """Linear layers and blocks, some of them at several places."""
    torch.manual_seed(draw.randrange(10**6))
    some = [nn.Linear(6, 6), Block(6, 8), nn.Linear(6, 6), Block(6, 8)]
    some[2].weight = some[0].weight if draw.random() < 0.5 else some[2].weight
    return Chain([*some, *(draw.choice(some) for _ in range(3))]).double()


def _sharing_case(number: int) -> str:
    """A module at several places is adapted at all of them, by one adapter."""
    draw, seed = drawn("sharing", number), drawn("chain", number)
    method = draw.choice(sorted(set(METHODS) - {"resample"}))
    with torch.random.fork_rng(devices=[]):
        plain, model = _chain(drawn("chain", number)), _chain(seed)
        bases = dict(model.named_modules(remove_duplicate=False))
        drawn_start(adapt(model, METHODS[method], dtype=torch.float64))
    x = batch(number, dtype=torch.float64)
    apart = Chain([deepcopy(part) for part in model.parts])
    (model(x) - 1).square().mean().backward()
    (apart(x) - 1).square().mean().backward()
    assert close(model(x), apart(x))
    for part, copy in zip(model.parts, apart.parts, strict=True):
        assert len(_adapted(part)) == len(_adapted(copy)) > 0
    sums: dict[nn.Parameter, Tensor] = {}
    pairs = {
        (id(copied.generator), own): other
        for part, copy in zip(model.parts, apart.parts, strict=True)
        for layer, copied in zip(_adapted(part), _adapted(copy), strict=True)
        for own, other in zip(layer.generator.parameters(), copied.generator.parameters(), strict=True)
    }
    for (_, own), other in pairs.items():
        sums[own] = sums.get(own, torch.zeros_like(own)) + (0 if other.grad is None else other.grad)
    assert set(sums) == set(trained(model).values())
    assert all(close(own.grad, total) for own, total in sums.items())
    _check_stored(model, _chain(drawn("chain", number)), x)
    unload(model)
    assert torch.equal(model(x), plain(x))
    assert dict(model.named_modules(remove_duplicate=False)) == bases
    return "at several places"


def _adapted(part: nn.Module) -> list[AdaptedLinear]:
    return [module for module in part.modules() if isinstance(module, AdaptedLinear)]


def _check_stored(model: nn.Module, fresh: nn.Module, x: Tensor) -> None:
    """Saved and loaded, merged and unmerged it is the same function."""
    before = evaluated(model, x)
    with TemporaryDirectory() as folder:
        save_adapters(model, Path(folder) / "a")
        assert torch.equal(evaluated(load_adapters(fresh, Path(folder) / "a"), x), before)
    try:
        merge(model)
    except UnsupportedError:
        return  # a nonlinear one
    assert close(evaluated(model, x), before)
    unmerge(model)
    assert torch.equal(evaluated(model, x), before)


def _tied_case(number: int) -> str:
    """A head whose weight is the embedding's: the adapter is the head's alone, merged too."""
    draw = drawn("tied", number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        model = Tower().double()
        tokens = torch.randint(0, 10, (3, 4))
        before, embedded = model(tokens), model.embed.weight.clone()
        adapt(model, METHODS[draw.choice(["lora", "tensorguide", "joint", "concat"])], dtype=torch.float64)
    assert close(model(tokens), before)
    assert model.head.base.weight is model.embed.weight
    drawn_start(model)
    moved = model(tokens)
    assert not torch.equal(moved, before)
    merge(model)
    assert close(model(tokens), moved)
    assert torch.equal(model.embed.weight, embedded)
    unmerge(model)
    assert model.head.base.weight is model.embed.weight
    assert torch.equal(model(tokens), moved)
    return "tied embeddings"


def _empty_case(number: int) -> str:
    """Nothing is written, and what was there stays."""
    draw = drawn("partial", number)
    model = tower(draw.choice(sorted(METHODS)))
    head = nn.Sequential(model, nn.Linear(6, 3))
    name, parameter = draw.choice([*trained(model).items(), ("head", head[1].weight)])
    saved = ["1"] if name == "head" or draw.random() < 0.5 else []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        if draw.random() < 0.5:
            save_adapters(head, path, modules_to_save=saved)
        before = digest(path)
        way = draw.choice(["no entries", "a flat part", "meta"] if name != "head" else ["no entries", "meta"])
        if way == "meta":
            head.to("meta")
        else:
            flat = parameter.detach().flatten()
            parameter.data = flat[: 0 if way == "no entries" else draw.randint(1, flat.numel())].clone()
        try:
            save_adapters(head, path, modules_to_save=saved, overwrite=True)
        except UnsupportedError as error:
            told = str(error).endswith("gather the whole tensors before saving")
        else:
            told = False
        assert told, f"{name}: {way} was saved"
        assert digest(path) == before
        assert len(list(Path(folder).iterdir())) == (before is not None)
    return f"refused: {way}"


def _shared(cases: int) -> Tally:
    tally = each("sharing", _sharing_case, cases - cases // 4)
    for number in range(cases // 4):
        tally.attempt(f"tied {number}", partial(_tied_case, number))
    return tally


CAMPAIGNS = (
    Campaign(
        "sharing",
        "a module at several places, tied weights and tied embeddings: one adapter, adapted at all places, "
        "its gradient the sum of theirs; saved, merged, unmerged and unloaded as any other",
        _shared,
        240,
        24,
        (
            "a target that is named by its second place was said to match nothing: now it is found",
            "PEFT adapts such a module at its first place alone: now refused by name in `tntune.peft`",
        ),
    ),
    Campaign(
        "partial",
        "tensors without entries, flat parts of them or the meta device, as ZeRO and FSDP leave them: saving "
        "is refused by name, nothing is written and an older folder stays",
        partial(each, "partial", _empty_case),
        300,
        30,
        (
            "a core without entries, or a flat part of it, was saved: now refused, by PEFT's "
            "`save_pretrained` too",
            "a model on the meta device was a RuntimeError of torch: now refused",
        ),
    ),
)
