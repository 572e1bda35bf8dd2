"""Method: how the frozen base model of a task becomes a trainable one, at a number of parameters."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tntune.errors import RankError, SpecError
from tntune.experiments.form import Form
from tntune.experiments.kinds import KINDS, Kind
from tntune.experiments.target import Targets, stacks
from tntune.maps.activation import activation
from tntune.maps.base import positive
from tntune.maps.group import Group
from tntune.maps.site import finite

__all__ = ["HEAD", "Method"]

HEAD = "head"
"""The kind that trains the targets themselves, without any map."""


@dataclass(frozen=True)
class Method:
    """One contender of a comparison: a kind of map with its options, the same for all targets.

    Attributes:
        label: Its name in tables and records.
        kind: ``"head"``, or a name in :data:`tntune.experiments.KINDS`.
        size: Width or rank of the maps; None where a budget chooses it.
        form: Options of the maps.
        activation: Name of σ; for a nonlinear one units start in opposite pairs.
        scale: s in ``y = base(x) + s up σ(down x)``.
        spread: Standard deviation of normal entries that replace the maps' own start; None keeps it.

    Raises:
        SpecError: For an unknown kind, an option that the kind does not have, or a size where none is
            chosen.

    Example:
        >>> lora = Method.from_table({"label": "LoRA", "kind": "lora"})
        >>> lora.size_for({"fc": (512, 2)}, 2100), lora.count({"fc": (512, 2)}, 4)
        (4, 2056)
    """

    label: str
    kind: str
    size: int | None = None
    form: Form = field(default=Form())
    activation: str = "identity"
    scale: float = 1.0
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in (HEAD, *KINDS):
            raise SpecError(f"kind must be one of {', '.join((HEAD, *KINDS))}, not {self.kind!r:.80}")
        if self.size is not None:
            positive("size", self.size)
        activation(self.activation)
        finite("scale", self.scale)
        known = {"label", "kind"} | (set() if self.kind == HEAD else set(_COMMON) | set(self._kind.options))
        if self.kind != HEAD and self._kind.size == "none":
            known.discard("size")
        unused = sorted(set(self.to_table()) - known)
        if unused:
            raise SpecError(f"{self.label}: the kind {self.kind!r} has no {', '.join(unused)}")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Method":
        """The method of a flat table: :meth:`to_table` undoes it.

        Raises:
            SpecError: Where the table has unknown keys, or lacks label or kind.
        """
        form = {f.name for f in fields(Form)}
        unknown = sorted(set(table) - form - {"label", "kind", *_COMMON})
        if unknown or not {"label", "kind"} <= set(table):
            raise SpecError(f"a method has a label and a kind, and no {', '.join(unknown) or 'other key'}")
        own = {key: value for key, value in table.items() if key not in form}
        return cls(**own, form=Form(**{key: value for key, value in table.items() if key in form}))

    def to_table(self) -> dict[str, Any]:
        """All that is not as in a method of defaults, flat: what settings and records hold."""
        default = asdict(Form()) | {f.name: f.default for f in fields(self) if f.name in _COMMON}
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "form"} | asdict(self.form)
        return {key: value for key, value in own.items() if key not in default or value != default[key]}

    @property
    def is_sized(self) -> bool:
        """Whether a budget chooses the size."""
        return self.kind != HEAD and self.size is None and self._kind.size != "none"

    @property
    def is_scaled(self) -> bool:
        """Whether there is a scale to tune."""
        return self.kind != HEAD

    def count(self, targets: Targets, size: int) -> int:
        """Parameters of all maps at a size, a shared one counted once."""
        alike = Counter(stack for stack, _ in stacks(targets, shared=self._kind.shared))
        return sum(
            n * self._kind.build(self.form, stack, size, 0).num_parameters for stack, n in alike.items()
        )

    def size_for(self, targets: Targets, budget: int) -> int:
        """The least size with the largest number of parameters that is at most the budget.

        Raises:
            RankError: Where size 1 has more; says how many.
        """
        least = self.count(targets, 1)
        if least > budget:
            raise RankError(
                f"{self.label}: a budget of {budget} is below the {least} parameters of the least size"
            )
        low, high = 1, 2
        while self.count(targets, low) < self.count(targets, high) <= budget:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.count(targets, low) < self.count(targets, middle) <= budget
            low, high = (middle, high) if fits else (low, middle)
        return low

    def groups(self, targets: Targets, size: int) -> tuple[Group, ...]:
        """The maps at this size with the targets that each serves; no two latents are alike."""
        found = stacks(targets, shared=self._kind.shared)
        return tuple(
            Group(
                self._kind.build(self.form, stack, size, seed),
                paths,
                (self.scale,) * stack.sites,
                self.activation,
            )
            for seed, (stack, paths) in enumerate(found)
        )

    @property
    def _kind(self) -> Kind:
        return KINDS[self.kind]


_COMMON = ("size", "activation", "scale", "spread")
