"""Collected: several LoRAs of one model in memory, each of norm 1, as one set of layers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.library import check_member_name, member_path
from tntune.checkpoint.lora import LoraFolder
from tntune.convert.candidate import Candidate, Layers
from tntune.convert.gauge import Balanced
from tntune.convert.norm import Norm
from tntune.convert.report import total_error
from tntune.errors import ModeError, NumericalError, SpecError

__all__ = ["Collected", "MemberErrors", "check_bases"]

MemberErrors = Mapping[str, float]
"""Relative error of each member."""


@dataclass(frozen=True)
class Collected:
    """The layers of all members, each member scaled to norm 1, so that all count alike.

    Attributes:
        layers: The trained layers, by ``member/module``.
        norm: The norm of all of them: each member's own task norm, or plain Frobenius.
        sizes: What each member's ΔW was divided by: its norm.

    Example:
        >>> Collected.__match_args__
        ('layers', 'norm', 'sizes')
    """

    layers: Layers
    norm: Norm
    sizes: Mapping[str, float]

    @classmethod
    def load(
        cls,
        folders: Mapping[str, LoraFolder],
        calibrations: Mapping[str, Calibration],
        dtype: torch.dtype | None,
    ) -> "Collected":
        """All members, in the order of their names.

        Raises:
            SpecError: For a bad name, or calibrations of some members but not of all.
            ModeError: Where a module has other sizes in another member.
            NumericalError: Where a member was never trained.
        """
        if calibrations and calibrations.keys() != folders.keys():
            raise SpecError(
                f"calibrations are of {', '.join(sorted(calibrations))}; members are "
                f"{', '.join(sorted(folders))}: each needs one, or none"
            )
        balanced: dict[str, Balanced] = {}
        widths: dict[str, int] = {}
        sizes, dtypes = {}, []
        for name in sorted(folders):
            check_member_name(name)
            own = Layers.load(folders[name], dtype)
            size = _norm(own, Norm(calibrations.get(name)))
            if not size:
                raise NumericalError(f"{name}: the task norm does not see any of its layers")
            sizes[name] = size
            for module, each in own.balanced.items():
                balanced[member_path(name, module)] = _scaled(each, size)
                widths[member_path(name, module)] = own.widths[module]
            dtypes.append(own.dtype)
        widest = max(dtypes, key=lambda each: torch.finfo(each).bits)
        layers = Layers(balanced, widths, widest)
        _check_shapes(layers)
        return cls(layers, Norm(_united(calibrations) if calibrations else None), sizes)

    def errors(self, candidate: Candidate, norm: Norm) -> MemberErrors:
        """Relative error of each member in a norm, as stored."""
        norms = self.layers.norms(norm)
        squares = candidate.squared_errors(self.layers, norms)
        found = {}
        for member in self.sizes:
            own = [name for name in squares if owner(name) == member]
            whole = [norms[name].squared(self.layers.factors(name)) ** 0.5 for name in own]
            found[member] = total_error((squares[name] for name in own), whole)
        return found

    def apart(self) -> Layers:
        """The same layers, of which no two members' share a train."""
        families = {name: owner(name) for name in self.layers.balanced}
        return Layers(self.layers.balanced, self.layers.widths, self.layers.dtype, families)


def owner(name: str) -> str:
    """The member of ``member/module``.

    Example:
        >>> owner("one/h.0.fc")
        'one'
    """
    return name.partition("/")[0]


def check_bases(bases: Mapping[str, object]) -> None:
    """Raise SpecError unless all members name the same base model; None names none.

    Example:
        >>> check_bases({"one": "gpt2", "two": "opt"})
        Traceback (most recent call last):
        tntune.errors.SpecError: members adapt different models: one 'gpt2', two 'opt'; mixed_bases allows it
    """
    named = {name: base for name, base in bases.items() if base is not None}
    if len(set(map(str, named.values()))) > 1:
        listed = ", ".join(f"{name} {base!r}" for name, base in named.items())
        raise SpecError(f"members adapt different models: {listed}; mixed_bases allows it")


def _norm(layers: Layers, norm: Norm) -> float:
    """Norm of all ΔW of one LoRA."""
    norms = layers.norms(norm)
    squares: Iterable[float] = (norms[name].squared(layers.factors(name)) for name in layers.balanced)
    return float(sum(squares) ** 0.5)


def _scaled(balanced: Balanced, size: float) -> Balanced:
    """The factors of ΔW / size."""
    root = size**0.5
    return Balanced(balanced.down / root, balanced.up / root, balanced.values / size)


def _check_shapes(layers: Layers) -> None:
    """Raise where members differ in the sizes of a module."""
    found: dict[str, str] = {}
    for name in layers.balanced:
        first = found.setdefault(name.partition("/")[2], name)
        if layers.shape(first) != layers.shape(name):
            raise ModeError(f"{name}: is {layers.shape(name)}, but {first} is {layers.shape(first)}")


def _united(calibrations: Mapping[str, Calibration]) -> Calibration:
    """The calibration of all members, by ``member/module``; moments stay shared."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    input_of: dict[str, str] = {}
    for member, own in calibrations.items():
        inputs |= {member_path(member, name): moment for name, moment in own.inputs.items()}
        outputs |= {member_path(member, name): moment for name, moment in own.outputs.items()}
        input_of |= {
            member_path(member, name): member_path(member, key) for name, key in own.input_of.items()
        }
    return Calibration(inputs, outputs, input_of)
