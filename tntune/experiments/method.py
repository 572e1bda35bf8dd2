"""Method: how the frozen base model of a task becomes a trainable one, at a number of parameters."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tntune.errors import SpecError
from tntune.maps.activation import activation
from tntune.maps.base import WeightMap, finite
from tntune.maps.codec import decode_map
from tntune.maps.group import Group
from tntune.maps.loretta import LoRETTA
from tntune.maps.recipe import METHODS, Recipe, Sizes
from tntune.maps.tt_lora import TTLoRA

__all__ = ["EXACT", "HEAD", "Method", "Targets", "size_of"]

HEAD = "head"
"""The method that trains the targets themselves, without any map."""

EXACT = "exact"
"""The method whose map is given as it is, for rows of a published table."""

Targets = Mapping[str, Sizes]
"""``(in_features, out_features)`` of every target by its path."""

_OWN = ("label", "activation", "scale", "per_width", "spread", "map")


@dataclass(frozen=True)
class Method:
    """One contender of a comparison, with the same options for all targets.

    Attributes:
        label: Its name in tables and records; members of one series have the same text before ``" @ "``.
        recipe: How maps are made; None for :data:`HEAD` and :data:`EXACT`. Where it gives neither rank nor,
            for a LoRA, width, a budget chooses.
        map: The JSON of the one exact map.
        activation: Name of σ; for a nonlinear one units start in opposite pairs.
        scale: s in ``y = base(x) + s up σ(down x)``.
        per_width: Whether s is divided by the width of the map, as where a source has ``alpha / r``.
        spread: Standard deviation of normal entries that replace the maps' own start; None keeps it.

    Raises:
        SpecError: For a recipe together with a map, or options without either.

    Example:
        >>> lora = Method.from_table({"label": "LoRA", "method": "lora"})
        >>> [group.map.width for group in lora.groups({"fc": (512, 2)}, 2100)], lora.least({"fc": (512, 2)})
        ([4], 514)
    """

    label: str
    recipe: Recipe | None = None
    map: dict[str, Any] | None = None
    activation: str = "identity"
    scale: float = 1.0
    per_width: bool = False
    spread: float | None = None

    def __post_init__(self) -> None:
        activation(self.activation)
        finite("scale", self.scale)
        if self.recipe is not None and self.map is not None:
            raise SpecError(f"{self.label}: a map is given as it is, or made by a recipe, not both")
        if self.recipe is not None and self.recipe.params is not None:
            raise SpecError(f"{self.label}: budgets are the experiment's, not params={self.recipe.params}")
        own = (self.activation, self.scale, self.per_width, self.spread)
        if not self.has_maps and own != ("identity", 1.0, False, None):
            raise SpecError(f"{self.label}: method {HEAD!r} has no activation, scale, per_width or spread")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Method":
        """The method of a flat table with a label and a method; :meth:`to_table` undoes it.

        Raises:
            SpecError: For a key that the method does not have, or one that is missing.
        """
        missing = sorted({"label", "method"} - set(table))
        name = table.get("method")
        recipe = {key: value for key, value in table.items() if key not in _OWN}
        unknown = sorted(set(recipe) - ({"method"} if name in (HEAD, EXACT) else _recipe_keys()))
        if missing or unknown or (name == EXACT) != ("map" in table):
            raise SpecError(
                f"{table.get('label', 'a method')}: missing {missing}, unknown {unknown}; "
                f"a map is for method {EXACT!r} alone"
            )
        if name not in (HEAD, EXACT, *METHODS):
            raise SpecError(f"method must be one of {', '.join((HEAD, EXACT, *METHODS))}, not {name!r:.80}")
        own = {key: table[key] for key in _OWN if key in table}
        return cls(**own, recipe=None if name in (HEAD, EXACT) else Recipe(**recipe))

    def to_table(self) -> dict[str, Any]:
        """All that is not as in a method of defaults, flat: what settings and records hold."""
        own = {key: getattr(self, key) for key in _OWN if getattr(self, key) != _DEFAULTS.get(key)}
        if self.recipe is None:
            return {**own, "method": self.name}
        made = asdict(self.recipe)
        given = {key: value for key, value in made.items() if value != asdict(Recipe())[key]}
        return {**own, **given, "method": self.name}

    @property
    def name(self) -> str:
        """Of the method, as settings have it."""
        if self.recipe is not None:
            return self.recipe.method
        return HEAD if self.map is None else EXACT

    @property
    def has_maps(self) -> bool:
        """Whether there are maps at all, so that there is a scale to tune."""
        return self.recipe is not None or self.map is not None

    @property
    def is_sized(self) -> bool:
        """Whether a budget chooses the size."""
        if self.recipe is None or self.recipe.rank is not None:
            return False
        return self.recipe.method != "lora" or self.recipe.width is None

    def least(self, targets: Targets) -> int:
        """Parameters of all maps at rank 1, or of a LoRA of width 1: the least budget."""
        assert self.recipe is not None
        is_lora = self.recipe.method == "lora"
        one = replace(self.recipe, width=1) if is_lora else replace(self.recipe, rank=1)
        groups = replace(self, recipe=one).groups(targets, None)
        return sum(group.map.num_parameters for group in groups)

    def groups(self, targets: Targets, budget: int | None) -> tuple[Group, ...]:
        """The maps with the targets that each serves; all together have at most ``budget`` parameters.

        Raises:
            SpecError: Where the budget is below the least size, or a recipe or map does not fit the targets.
        """
        if self.recipe is None:
            made: list[tuple[tuple[str, ...], WeightMap]] = [((x,), decode_map(self.map)) for x in targets]
        else:
            recipe = self.recipe if budget is None else replace(self.recipe, params=budget)
            if recipe.is_joint:
                made = [(grid.modules, found) for grid, found in recipe.joint_maps(targets).values()]
            else:
                made = [((path,), found) for path, found in recipe.layer_maps(targets).items()]
        return tuple(
            Group(found, paths, (self._scale(found),) * len(paths), self.activation) for paths, found in made
        )

    def _scale(self, map: WeightMap) -> float:
        return self.scale / map.width if self.per_width else self.scale


def size_of(map: WeightMap) -> int:
    """What a budget chooses: the width of a LoRA, the largest rank of other maps.

    Example:
        >>> size_of(Recipe(rank=5).layer_map((24, 24)))
        5
    """
    if isinstance(map, TTLoRA):
        return max(*map.down_train.ranks, *map.up_train.ranks)
    if isinstance(map, LoRETTA):
        return map.rank
    return max(getattr(map, "ranks", (map.width,)))


_DEFAULTS = {f.name: f.default for f in fields(Method)}


def _recipe_keys() -> set[str]:
    return {f.name for f in fields(Recipe)}
