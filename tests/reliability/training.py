"""Faults within training: steps that are not finite, mixed dtypes, gradients in parts."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.reliability.campaign import Campaign, Tally, drawn
from tests.reliability.operation import digest
from tests.reliability.trainee import (
    METHODS,
    batch,
    evaluated,
    identical,
    look,
    loss_of,
    tower,
    trained,
)
from tests.support.tolerance import close
from tntune.adapters import merge, save_adapters
from tntune.adapters.adapt import adapted_layers
from tntune.errors import NumericalError, UnsupportedError

__all__ = ["CAMPAIGNS", "each"]

LOW = (torch.float16, torch.bfloat16)
STEPS = 5


# Steps that are not finite.


class _Loop:
    """A model in training, with an optimiser and perhaps a scaler of gradients."""

    def __init__(self, method: str, scaled: bool) -> None:
        self.model = tower(method)
        self.optimizer = torch.optim.Adam(trained(self.model).values(), lr=0.02)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000, enabled=scaled)

    def step(self, seed: int) -> None:
        torch.manual_seed(seed)  # resampled latents
        self.optimizer.zero_grad()
        self.scaler.scale(loss_of(self.model, batch(seed))).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def _poisoned(loop: _Loop, draw: Random) -> None:
    """A backward after which gradients are not finite, or a forward that ends in an exception."""
    value = draw.choice([math.nan, math.inf, -math.inf, 3e38])
    x = batch(draw.randrange(100))
    torch.manual_seed(draw.randrange(100))
    way = draw.choice(["input", "loss", "gradient", "exception"])
    loop.optimizer.zero_grad()
    if way == "exception":
        handle = loop.model[1].down.register_forward_hook(_interrupted)
        try:
            loop.model(x)
        except KeyboardInterrupt:
            handle.remove()
    if way == "input":
        x[draw.randrange(5), draw.randrange(6)] = value
    loss = loss_of(loop.model, x)
    loop.scaler.scale(loss * value if way == "loss" else loss).backward()
    if way in ("gradient", "exception") or not _broken(loop.model):
        next(iter(trained(loop.model).values())).grad.fill_(math.nan)


def _interrupted(module: nn.Module, inputs: object, output: object) -> None:
    raise KeyboardInterrupt


def _broken(model: nn.Module) -> bool:
    return any(not p.grad.isfinite().all() for p in trained(model).values() if p.grad is not None)


def _skip(loop: _Loop, draw: Random, folder: Path) -> None:
    """What a loop does that looks at its gradients: the step is left out, by hand or by the scaler."""
    if loop.scaler.is_enabled():
        scale = loop.scaler.get_scale()
        loop.scaler.step(loop.optimizer)
        loop.scaler.update()
        assert loop.scaler.get_scale() == scale / 2
    loop.optimizer.zero_grad()


def _take_back(loop: _Loop, draw: Random, folder: Path) -> None:
    """The step is taken, and the model has no finite value any more, until its state is put back."""
    state, moments = deepcopy(loop.model.state_dict()), deepcopy(loop.optimizer.state_dict())
    save_adapters(loop.model, folder / "kept", overwrite=True)
    kept = digest(folder / "kept")
    loop.optimizer.step()
    x = batch(3)
    assert not evaluated(loop.model, x).isfinite().all()
    layers = [layer for _, layer in adapted_layers(loop.model)]
    weights = [layer.base.weight.clone() for layer in layers]
    saving = partial(save_adapters, loop.model, folder / "kept", overwrite=True)
    for refused in (saving, partial(merge, loop.model)):
        try:
            refused()
        except (NumericalError, UnsupportedError):  # a mean or a nonlinear adapter is not merged at all
            continue
        raise AssertionError("an adapter that is not finite was saved or merged")
    assert digest(folder / "kept") == kept
    assert all(torch.equal(w, layer.base.weight) for w, layer in zip(weights, layers, strict=True))
    _put_back(loop.model, state, draw)
    loop.optimizer.load_state_dict(moments)


def _put_back(model: nn.Module, state: dict[str, Tensor], draw: Random) -> None:
    """As a loop may do it."""
    way = draw.choice(["load", "assign", "copy", "data"])
    if way in ("load", "assign"):
        model.load_state_dict(state)
        return
    for name, parameter in trained(model).items():
        if way == "data":
            parameter.data = state[name].clone()
        else:
            parameter.data.copy_(state[name])


def _gradient_case(number: int) -> str:
    """A training with faults ends as one without."""
    draw = drawn("gradients", number)
    method, after = draw.choice(sorted(METHODS)), draw.choice([_skip, _take_back])
    scaled = after is _skip and draw.random() < 0.5
    steady, faulty = _Loop(method, scaled), _Loop(method, scaled)
    faults = draw.sample(range(STEPS), 2)
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        for step in range(STEPS):
            if step in faults:
                _poisoned(faulty, draw)
                look(faulty.model, draw)
                after(faulty, draw, Path(folder))
                look(faulty.model, draw)
            steady.step(step)
            faulty.step(step)
        assert identical(faulty.model, steady.model), f"{method}: another training"
    assert all(tensor.isfinite().all() for tensor in faulty.model.state_dict().values())
    return "skipped by GradScaler" if scaled else "skipped" if after is _skip else "taken back"


# Dtypes.


def _dtype_case(number: int) -> str:
    """Outputs and gradients in mixed dtypes are those of float64, up to the coarser dtype."""
    draw = drawn("dtypes", number)
    method = draw.choice(sorted(METHODS))
    base = draw.choice([torch.float16, torch.bfloat16, torch.float32, torch.float64])
    cores = draw.choice([torch.float32, torch.float32, base])
    cast = draw.choice([None, *LOW]) if base == torch.float32 else None
    model = tower(method, dtype=base, cores=cores)
    wide = deepcopy(model).double()
    x = batch(number, dtype=base)
    for mode in (False, True):
        torch.manual_seed(number)
        with torch.autocast("cpu", cast) if cast else nullcontext():
            found = model.train(mode)(x)
        torch.manual_seed(number)
        wanted = wide.train(mode)(x.double())
        assert found.dtype == base
        coarse = min((base, cores, cast or base), key=lambda dtype: -torch.finfo(dtype).eps)
        assert close(found.to(coarse), wanted, factor=4)
    (found.double() - 1).square().mean().backward()
    (wanted - 1).square().mean().backward()
    for name, parameter in trained(model).items():
        assert parameter.grad.dtype == parameter.dtype == cores
        assert close(parameter.grad.to(coarse), trained(wide)[name].grad, factor=8)
    return f"{str(cast or base).removeprefix('torch.')}{' by autocast' if cast else ''}"


# Accumulation.


def _accumulation_case(number: int) -> str:
    """Gradients of parts of a batch add up to that of the whole, whatever is done between the parts."""
    draw = drawn("accumulation", number)
    method = draw.choice(sorted(set(METHODS) - {"resample"}))  # it draws a latent for each part
    whole, parts = (tower(method, dtype=torch.float64, cores=torch.float64) for _ in range(2))
    x = batch(number, 12, torch.float64)
    cuts = sorted(draw.sample(range(1, 12), draw.randint(1, 5)))
    kind = draw.choice(["plain", "reentrant", "recomputed"])
    for _ in range(2):
        (whole(x) - 1).square().sum().backward()
        for part in torch.tensor_split(x, cuts):
            (_run(parts, part, kind) - 1).square().sum().backward()
            look(parts, draw)
        for name, parameter in trained(whole).items():
            assert close(trained(parts)[name].grad, parameter.grad), name
        for model in (whole, parts):
            torch.optim.SGD(trained(model).values(), lr=0.01).step()
            model.zero_grad()
    return kind


def _run(model: nn.Module, x: Tensor, kind: str) -> Tensor:
    if kind == "plain":
        return model(x)  # type: ignore[no-any-return]
    x = x.clone().requires_grad_()
    for block in model:
        x = checkpoint(block, x, use_reentrant=kind == "reentrant")
    return x


def each(name: str, case: Callable[[int], str], cases: int) -> Tally:
    """The tally of a case of each number."""
    tally = Tally()
    for number in range(cases):
        tally.attempt(f"{name} {number}", partial(case, number))
    return tally


CAMPAIGNS = (
    Campaign(
        "gradients",
        "a step with NaN or infinite gradients, or a forward that is interrupted, skipped by hand or by "
        "GradScaler, or taken and taken back: the training ends with the bits of one that never saw it, and "
        "nothing that is not finite is saved or merged",
        partial(each, "gradients", _gradient_case),
        240,
        30,
    ),
    Campaign(
        "dtypes",
        "bases of float16, bfloat16, float32, float64, with cores of float32 or their own, under autocast: "
        "outputs and gradients are those of float64 up to the coarser dtype, cores keep theirs",
        partial(each, "dtypes", _dtype_case),
        400,
        30,
    ),
    Campaign(
        "accumulation",
        "gradients of the parts of a batch add up to that of the whole, recomputed or not, with evaluations, "
        "copies and forwards without gradient in between",
        partial(each, "accumulation", _accumulation_case),
        200,
        20,
    ),
)
