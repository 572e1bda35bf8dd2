"""AdapterSpec: what to adapt and with which map, as one value; it becomes Sites or Groups of the targets."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from tntune.adapters.linear import AdaptedLinear, features
from tntune.errors import SpecError, TargetError
from tntune.maps.activation import activation
from tntune.maps.base import WeightMap, finite, positive
from tntune.maps.build import CONCAT
from tntune.maps.group import Group
from tntune.maps.recipe import Recipe, Sizes
from tntune.maps.site import Site

__all__ = ["ALL_LINEAR", "AUTO", "BOND_METHODS", "HEADROOM", "AdapterSpec", "check_target", "target_names"]

ALL_LINEAR = "all-linear"

AUTO = "auto"
"""What ``ranks`` says where training is to find them."""

HEADROOM = 4
"""With automatic ranks, training starts at those that so many times the budget allows."""

BOND_METHODS = ("tensorguide", "tt_lora", "lora", "delta_train", "joint")
"""Methods with bonds whose ranks may differ, so that training can find them."""


@dataclass(frozen=True)
class AdapterSpec(Recipe):
    """One specification for many layers: every target gets a map of its own size, or a share in one.

    Attributes:
        targets: ``"all-linear"``, a regular expression that must match the whole module path, or a tuple
            of names that a path must end with (as PEFT's ``target_modules``).
        exclude: Names or paths, matched like a tuple of targets, that are left alone.
        activation: Name of σ.
        alpha: The scale is ``alpha / width``, not zero; None means ``alpha = width``. A map with one rank for
            all bonds has that for a width.
        ranks: ``"auto"``: every bond gets a rank of its own, found in training. ``params`` is then the budget
            at its end: maps start at ranks of four times as many, and
            :func:`tntune.plugins.auto_ranks` makes what shrinks them as it goes on.

    All else is keyword-only, and described at :class:`tntune.maps.Recipe`: method, width, rank, params,
    layout, latent, seed, start, head_dim (by default the model's configuration says it), input_heads.

    Raises:
        SpecError: For a value that no target could use; layouts and starts are checked by :meth:`plan_for`.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> sites = AdapterSpec(width=4, rank=3).sites_for(model)
        >>> [(name, site.map.num_parameters) for name, site in sites.items()]
        [('0', 63), ('2', 54)]
    """

    targets: str | tuple[str, ...] = ALL_LINEAR
    exclude: tuple[str, ...] = ()
    activation: str = "identity"
    alpha: float | None = None
    ranks: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ranks is not None:
            self._check_auto()
        if self.alpha is not None and finite("alpha", self.alpha) == 0:
            raise SpecError("alpha is 0, so that no adapter would do anything; give another number")
        activation(self.activation)
        if isinstance(self.exclude, str):
            raise SpecError(f"exclude is a list of names, not one string {self.exclude!r}")
        object.__setattr__(self, "exclude", tuple(self.exclude))
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))

    def plan_for(self, model: nn.Module) -> dict[str, Site | Group]:
        """The Site of every target by module path, or for methods that share the Groups of the targets.

        Raises:
            TargetError: Where nothing matches, or a named target cannot be adapted; says why.
            SpecError, ModeError: Where a target cannot have a map of this method.
        """
        return {**(self.groups_for(model) if self.is_joint else self.sites_for(model))}

    def sites_for(self, model: nn.Module) -> dict[str, Site]:
        """The Site of every target of ``model``, by module path in the model's order.

        Raises:
            TargetError: Where nothing matches, or a named target cannot be adapted; says why.
            SpecError: For a method whose maps serve many layers, or a map that no target can have.
        """
        maps = self.started.layer_maps(self._targets(model))
        return {name: Site(map, self._scale(map), self.activation) for name, map in maps.items()}

    def groups_for(self, model: nn.Module) -> dict[str, Group]:
        """The Groups of the targets, by name such as ``768x768``; each has one map and its scale.

        Raises:
            TargetError: Where nothing matches, or a named target cannot be adapted; says why.
            SpecError: For a method whose maps serve one layer, heads of unknown size, or an activation with
                which a target whose heads split the input would not start at zero.
            ModeError: Where heads do not divide the features, or layers with input heads are not square.

        Example:
            >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
            >>> {name: group.modules for name, group in AdapterSpec(method="lotr").groups_for(model).items()}
            {'8x8': ('0', '2'), '8x4': ('4',)}
        """
        spec = self.started
        if self.has_heads and self.head_dim is None:
            spec = replace(spec, head_dim=head_dim(model))
        if self.input_heads and activation(self.activation).function(torch.zeros(())) != 0:
            raise SpecError(
                f"with input_heads, down starts at zero, and ΔW only with σ(0) = 0: not {self.activation!r}"
            )
        made = spec.joint_maps(self._targets(model))
        return {
            name: Group(map, grid.modules, (self._scale(map),) * map.sites, self.activation)
            for name, (grid, map) in made.items()
        }

    def map_for(self, in_features: int, out_features: int, *, index: int = 0) -> WeightMap:
        """The map of one layer of this size; ``index`` makes its latent differ from its neighbours'."""
        return self.layer_map((in_features, out_features), index=index)

    @property
    def started(self) -> "AdapterSpec":
        """The specification of the start: this one, or with automatic ranks that of the larger budget.

        Example:
            >>> AdapterSpec(ranks="auto", params=100).started == AdapterSpec(params=400)
            True
        """
        if self.ranks is None or self.params is None:
            return self
        return replace(self, ranks=None, params=HEADROOM * self.params)

    def _check_auto(self) -> None:
        """What automatic ranks need."""
        if self.ranks != AUTO:
            raise SpecError(f"ranks may be {AUTO!r}, and rank is the bound of all; not ranks={self.ranks!r}")
        if self.params is None:
            raise SpecError(f"ranks={AUTO!r} are found within a budget: give params")
        if self.method not in BOND_METHODS:
            raise SpecError(
                f"method {self.method!r} has no bonds whose ranks may differ; "
                f"those that have are {', '.join(BOND_METHODS)}"
            )
        if self.layout == CONCAT and self.start == "zero":
            raise SpecError(
                "a flat layout with the zero start subtracts a frozen train of its own ranks, which cannot "
                'change; choose a layout with a side, or start="random"'
            )

    def _targets(self, model: nn.Module) -> dict[str, Sizes]:
        modules = dict(model.named_modules())
        return {name: features(modules[name]) for name in target_names(model, self.targets, self.exclude)}

    def _scale(self, map: WeightMap) -> float:
        return 1.0 if self.alpha is None else self.alpha / (self.width or map.width)


def head_dim(model: nn.Module) -> int:
    """Size of an attention head, as the model's configuration says it.

    Raises:
        SpecError: Where it does not.

    Example:
        >>> from types import SimpleNamespace
        >>> model = nn.Linear(4, 3)
        >>> model.config = SimpleNamespace(hidden_size=768, num_attention_heads=12)
        >>> head_dim(model)
        64
    """
    config = getattr(model, "config", None)
    for name in ("head_dim", "d_kv"):
        if isinstance(getattr(config, name, None), int):
            return positive(name, getattr(config, name))
    hidden, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    if not isinstance(hidden, int) or not isinstance(heads, int):
        raise SpecError(f"give head_dim: {type(model).__name__} has no configuration that says it")
    return hidden // positive("num_attention_heads", heads)


def target_names(
    model: nn.Module, targets: str | tuple[str, ...], exclude: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Module paths that ``targets`` names and that can be adapted, in the model's order.

    With ``"all-linear"`` every nn.Linear and Conv1D is taken, except those whose forward is never called
    (the output projection of ``nn.MultiheadAttention``); what is named explicitly must be adaptable. A module
    at several places goes by any of their names, and is returned by the first.

    Raises:
        TargetError: Where nothing matches, a name matches nothing, or a named module cannot be adapted.
        SpecError: For a regular expression that cannot be read.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> target_names(model, "all-linear", ("2",))
        ('0',)
    """
    modules = dict(model.named_modules())
    first = {module: name for name, module in reversed(modules.items())}
    places = {name: first[module] for name, module in model.named_modules(remove_duplicate=False) if name}
    names = list(places)
    listed = () if isinstance(targets, str) else targets
    unused = [ending for ending in (*listed, *exclude) if not any(_ends_with(n, ending) for n in names)]
    if unused:
        raise TargetError(f"{unused} match no module of {type(model).__name__}")
    spared = {places[name] for name in names if any(_ends_with(name, ending) for ending in exclude)}
    if targets == ALL_LINEAR:
        chosen = {name for name in modules if name and _is_adaptable(name, modules)}
    else:
        chosen = {places[name] for name in names if _matches(name, targets)}
    found = [name for name in modules if name in chosen - spared]
    if not found and not names:
        raise TargetError(
            f"the model is a single {type(model).__name__}; put it into a container to adapt it"
        )
    if not found and any(isinstance(module, AdaptedLinear) for module in modules.values()):
        raise TargetError(
            f"{type(model).__name__} has adapters already, and nothing else that {targets!r} is"
        )
    if not found:
        raise TargetError(
            f"targets {targets!r} (without {list(exclude)}) match no module of {type(model).__name__}"
        )
    for name in found:
        check_target(name, modules)
    return tuple(found)


def check_target(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise unless the module is linear, floating-point, and called by its parent.

    Raises:
        TargetError: Naming the module and the reason.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8))
        >>> check_target("0", dict(model.named_modules()))
    """
    if not name:
        raise TargetError("the model itself cannot be replaced by an adapted layer; put it into a container")
    parent = modules[name.rpartition(".")[0]]
    if isinstance(parent, nn.MultiheadAttention):
        raise TargetError(
            f"{name}: nn.MultiheadAttention never calls its out_proj, an adapter there would do nothing"
        )
    if isinstance(parent, AdaptedLinear) or isinstance(modules[name], AdaptedLinear):
        raise TargetError(f"{name}: has an adapter already; unload it first")
    try:
        features(modules[name])
    except TargetError as error:
        raise TargetError(f"{name}: {error}") from None


def _matches(name: str, targets: str | Iterable[str]) -> bool:
    if not isinstance(targets, str):
        return any(_ends_with(name, target) for target in targets)
    try:
        return re.fullmatch(targets, name) is not None
    except re.error as error:
        raise SpecError(f"targets {targets!r} is not a regular expression: {error}") from error


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _is_adaptable(name: str, modules: Mapping[str, nn.Module]) -> bool:
    try:
        check_target(name, modules)
    except TargetError:
        return False
    return True
