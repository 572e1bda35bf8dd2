"""Numbers at their limits: what is returned is within its tolerance, or the error says why not."""

import math
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from tests.convert.sample import errors, lora_folder
from tests.reliability.campaign import Campaign, Tally, drawn
from tests.support.tolerance import TOLERANCE
from tntune.convert import (
    ConversionSettings,
    ResizeSettings,
    Target,
    compare_adapters,
    convert_lora,
    resize_lora,
    round_adapter,
)
from tntune.errors import NumericalError, RankError, TntuneError
from tntune.tt import RankRule, dense, gaussian, round_tt, tt_svd
from tntune.tt.linalg import safe_svd

__all__ = ["CAMPAIGNS"]

MODES = (1, 1, 2, 3, 4, 5, 7, 11, 13)
LAYERS = 20
"""Layers of one drawn adapter; each counts as a case, since each must meet the tolerance."""


def tensor(draw: Random) -> Tensor:
    """A tensor of drawn modes and structure, in float64."""
    modes = [draw.choice(MODES) for _ in range(draw.randrange(1, 6))]
    made = _normal(draw, modes)
    kind = draw.randrange(8)
    if kind == 0:
        made = torch.zeros_like(made)
    elif kind == 1:  # low rank at every bond
        low = gaussian(modes, draw.randrange(1, 4), generator=_torch(draw), dtype=torch.float64)
        made = dense(low)
    elif kind == 2:  # duplicated slices
        made = made[:1].expand_as(made).clone()
    elif kind == 3:  # repeated singular values at the first bond
        made = torch.eye(modes[0], made[0].numel(), dtype=torch.float64).reshape(modes)
    elif kind == 4:  # entries of very different size
        made = made * 10.0 ** torch.randint(-12, 1, made.shape, generator=_torch(draw))
    elif kind == 5:
        made = made.round()
    return made * 10.0 ** draw.uniform(-30, 30)


def _torch(draw: Random) -> torch.Generator:
    return torch.Generator().manual_seed(draw.randrange(2**31))


def _normal(draw: Random, shape: list[int]) -> Tensor:
    return torch.randn(shape, generator=_torch(draw), dtype=torch.float64)


def relative(gap: Tensor, whole: Tensor) -> float:
    """‖gap‖ / ‖whole‖, both scaled so that no square overflows."""
    largest = float(whole.abs().max())
    if not largest:
        return 0.0 if not bool(gap.any()) else math.inf
    return float((gap / largest).norm() / (whole / largest).norm())


def drawn_rule(draw: Random) -> RankRule:
    """A tolerance, and sometimes a cap far above all limits."""
    tolerance = draw.choice((0.0, 1e-8, 1e-3, 0.05, 0.3, 0.9, draw.random()))
    return RankRule(tolerance=tolerance, max_rank=draw.choice((None, None, 10**6)))


def rounding(draw: Random) -> str:
    """A TT-SVD, then a rounding of it, against the dense tensor in float64."""
    dtype = draw.choice((torch.float64, torch.float64, torch.float32, torch.bfloat16))
    exact = tensor(draw).to(dtype)
    if not bool(torch.isfinite(exact).all()):
        exact = torch.ones_like(exact)
    rule = drawn_rule(draw)
    try:
        decomposed = tt_svd(exact, rule)
        rounded = round_tt(decomposed.value, RankRule(tolerance=0.1))
    except NumericalError as error:
        return f"refused: {_kind(error)}"
    own, less = dense(decomposed.value).double(), dense(rounded.value).double()
    slack = TOLERANCE[dtype] * exact.ndim
    found = relative(own - exact.double(), exact.double())
    assert found <= rule.tolerance + slack, f"tt_svd: {found} for {rule.tolerance}, {exact.shape} {dtype}"
    assert abs(found - decomposed.error) <= slack, f"tt_svd: says {decomposed.error}, is {found}"
    again = relative(less - own, own)
    assert again <= 0.1 + slack, f"round_tt: {again} for 0.1, {exact.shape} {dtype}"
    assert all(r <= s for r, s in zip(rounded.value.rank, decomposed.value.rank, strict=True))
    return "right"


def factors(draw: Random) -> tuple[Tensor, Tensor]:
    """Down and up of one layer of drawn sizes and structure, in float64."""
    inside, outside = (draw.choice((1, 2, 5, 7, 12, 13, 24, 31)) for _ in range(2))
    rank = draw.choice((1, 2, 3, 4, 8, 16))
    down, up = _normal(draw, [rank, inside]), _normal(draw, [outside, rank])
    kind = draw.randrange(9)
    if kind == 0:
        up = torch.zeros_like(up)
    elif kind == 1:  # duplicated columns
        down, up = down[:1].expand_as(down), up[:, :1].expand_as(up)
    elif kind == 2:  # rank deficient
        up[:, rank // 2 :] = 0
    elif kind == 3:  # repeated singular values
        down, up = torch.eye(rank, inside).double(), torch.eye(outside, rank).double()
    elif kind == 4:  # badly conditioned
        up = up * 10.0 ** -torch.arange(rank, dtype=torch.float64)
    elif kind == 5:  # factors of opposite size
        down, up = down * 1e12, up * 1e-12
    return down.contiguous() * 10.0 ** draw.uniform(-15, 15), up.contiguous() * 10.0 ** draw.uniform(-15, 15)


def converting(draw: Random, folder: Path) -> list[str]:
    """A conversion, a rounding or a resizing of many layers, each within its tolerance."""
    made = {f"h.{i}.fc": factors(draw) for i in range(LAYERS)}
    source, output = lora_folder(folder / "lora", made=made, target_modules=["fc"]), folder / "out"
    tolerance = draw.choice((0.001, 0.02, 0.1, 0.3, 0.7))
    kind = draw.randrange(5)
    if kind < 3:
        method = ("tensorguide", "svd", "auto")[kind]
        convert_lora(source, output, ConversionSettings(Target(tolerance=tolerance), method))
        found = errors(source, output)[1]
    elif kind == 3:
        convert_lora(source, folder / "whole", ConversionSettings(Target(tolerance=0.01)))
        round_adapter(folder / "whole", output, Target(tolerance=tolerance))
        found = {
            layer.name: layer.relative_error for layer in compare_adapters(folder / "whole", output).layers
        }
    else:
        resize_lora(source, output, ResizeSettings(tolerance=tolerance, uniform=True))
        found = {layer.name: layer.relative_error for layer in compare_adapters(source, output).layers}
    limit = tolerance + TOLERANCE[torch.float32]
    wrong = {name: gap for name, gap in found.items() if not gap <= limit}
    assert not wrong, f"kind {kind}: tolerance {tolerance}, found {wrong}"
    return ["right"] * len(found)


def _kind(error: Exception) -> str:
    """An error without its numbers."""
    text = str(error)
    for words in ("not finite", "NaN or infinite", "overflow", "zero", "converged"):
        if words in text:
            return words
    return type(error).__name__


def extremes(draw: Random, folder: Path) -> str:
    """NaN, infinities, overflow of the dtype, all zero: never a wrong number, never a silent one."""
    made = {f"h.{i}.fc": factors(draw) for i in range(2)}
    kind = draw.randrange(6)
    dtype = draw.choice((torch.float16, torch.bfloat16, torch.float32, torch.float64))
    down, up = made["h.0.fc"]
    if kind == 0:
        up.view(-1)[draw.randrange(up.numel())] = draw.choice((math.nan, math.inf, -math.inf))
    elif kind == 1:
        made = {name: (down, torch.zeros_like(up)) for name, (down, up) in made.items()}
    elif kind == 2:
        made["h.0.fc"] = (down / down.abs().max() * 6e4, up / up.abs().max().clamp(min=1e-300) * 6e4)
    elif kind == 3:
        made["h.0.fc"] = (down / down.abs().max() * 5e-324, up)
    elif kind == 4:
        made["h.0.fc"] = (down / down.abs().max() * 1e200, up / up.abs().max().clamp(min=1e-300) * 1e200)
    source = lora_folder(folder / "lora", made=made, dtype=dtype, target_modules=["fc"])
    target: dict[str, Any] = draw.choice(
        ({"tolerance": 0.1}, {"max_rank": 1}, {"max_rank": 10**9}, {"params": 0.5}, {"max_params": 1})
    )
    work = draw.choice((_convert, _resize))
    try:
        error = work(source, folder / "out", target)
    except (NumericalError, RankError) as refusal:
        assert not (folder / "out").exists(), "an output beside an error"
        return f"refused: {_kind(refusal)}"
    assert 0 <= error < math.inf, f"reports an error of {error}"
    assert kind != 0, "read what is not finite"
    assert kind != 1, "converted what was never trained"
    found = compare_adapters(source, folder / "out").relative_error
    assert abs(found - error) <= TOLERANCE[torch.float32] * max(1.0, found), f"says {error}, is {found}"
    return "right"


def _convert(source: Path, output: Path, target: dict[str, Any]) -> float:
    return convert_lora(source, output, ConversionSettings(Target(**target), "auto")).relative_error


def _resize(source: Path, output: Path, target: dict[str, Any]) -> float:
    named = {"rank" if name == "max_rank" else name: value for name, value in target.items()}
    return resize_lora(source, output, ResizeSettings(**named)).relative_error


def unconverged(draw: Random) -> str:
    """An SVD whose fast driver gives up: the sure one, in float64, gives the same."""
    shape = [draw.choice((1, 2, 5, 12, 40)) for _ in range(2)]
    dtype = draw.choice((torch.float32, torch.float64))
    exact = (_normal(draw, shape) * 10.0 ** draw.uniform(-20, 20)).to(dtype)

    def fail(*arguments: object, **named: object) -> object:
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    with patch.object(torch.linalg, "svd", fail):
        u, s, vh = safe_svd(exact)
    assert (u.dtype, s.dtype, vh.dtype) == (dtype, dtype, dtype)
    gap = relative((u * s @ vh - exact).double(), exact.double())
    assert gap <= TOLERANCE[dtype], f"off by {gap}"
    assert np.all(np.diff(s.numpy()) <= 0)
    return "right"


def run_rounding(cases: int) -> Tally:
    tally = Tally()
    for number in range(cases):
        tally.attempt(f"rounding {number}", lambda n=number: rounding(drawn("rounding", n)))
    return tally


def run_conversion(cases: int) -> Tally:
    """Adapters of many layers each; a layer is a case."""
    tally = Tally()
    for number in range(-(-cases // LAYERS)):
        with TemporaryDirectory() as folder:
            try:
                for end in converting(drawn("conversion", number), Path(folder)):
                    tally.passed(end)
            except Exception as error:
                kind = "" if isinstance(error, AssertionError | TntuneError) else type(error).__name__
                tally.failed(f"conversion {number}: {kind} {str(error)[:300]}")
    return tally


def run_extremes(cases: int) -> Tally:
    tally = Tally()
    for number in range(cases):
        draw = drawn("extremes", number)
        if number % 4 == 3:
            tally.attempt(f"unconverged {number}", lambda d=draw: unconverged(d))
            continue
        with TemporaryDirectory() as folder:
            tally.attempt(f"extremes {number}", lambda d=draw, f=folder: extremes(d, Path(f)))
    return tally


CAMPAIGNS = (
    Campaign(
        "rounding",
        "TT-SVD and rounding of drawn tensors (modes of 1 and primes, rank deficient, repeated singular "
        "values, scales 1e-30 to 1e30, four dtypes) keep their tolerance and report the error they make",
        run_rounding,
        8_000,
        400,
    ),
    Campaign(
        "conversion",
        "layers converted, rounded and resized (zero, rank deficient, duplicated, ill conditioned, scales "
        "1e-30 to 1e30) keep their tolerance, against dense ΔW in numpy",
        run_conversion,
        6_000,
        200,
    ),
    Campaign(
        "extremes",
        "NaN, infinities, denormals, overflow of the dtype, untrained adapters, impossible budgets, an SVD "
        "that does not converge: the reported error is the true one, or a clear error and no output",
        run_extremes,
        2_000,
        100,
    ),
)
