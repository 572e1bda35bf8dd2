"""AdapterSpec: what to adapt and with which map, as one value; it becomes a Site for every target."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from tntune.adapters.linear import AdaptedLinear, features
from tntune.errors import SpecError, TargetError
from tntune.maps.activation import activation
from tntune.maps.base import WeightMap, positive
from tntune.maps.build import build_map
from tntune.maps.layout import Geometry
from tntune.maps.site import Site, finite

__all__ = ["ALL_LINEAR", "AdapterSpec", "check_target", "target_names"]

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AdapterSpec:
    """One specification for many layers: every target gets a map of its own size.

    Attributes:
        targets: ``"all-linear"``, a regular expression that must match the whole module path, or a tuple
            of names that a path must end with (as PEFT's ``target_modules``).
        exclude: Names or paths, matched like a tuple of targets, that are left alone.
        method: ``"tensorguide"``, ``"tt_lora"`` or ``"lora"``.
        width: M, the inner size of every adapter.
        rank: Upper bound of every TT-rank, by default 8; each is lowered to what its modes allow. A LoRA
            has none.
        layout: ``"concat"`` or a pattern of :class:`tntune.maps.Joined`, by default ``"f1 f2 (side w)"``; for
            TensorGuide only.
        latent: Mode of the latent: ``"none"``, ``"fixed"``, ``"resample"`` or ``"mean"``.
        seed: Seed of the first target's latent; each further target adds one, so that no two share z.
        activation: Name of σ.
        alpha: The scale is ``alpha / width``, not zero; None means ``alpha = width``.
        start: How maps start (``"zero"``, ``"random"``, ``"paper"``, ``"published"``).

    Raises:
        SpecError: For a value that no target could use; methods, layouts and starts are checked by
            :meth:`sites_for`.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> sites = AdapterSpec(width=4, rank=3).sites_for(model)
        >>> [(name, site.map.num_parameters) for name, site in sites.items()]
        [('0', 63), ('2', 54)]
    """

    targets: str | tuple[str, ...] = ALL_LINEAR
    exclude: tuple[str, ...] = ()
    method: str = "tensorguide"
    width: int = 8
    rank: int | None = None
    layout: str | None = None
    latent: str = "none"
    seed: int = 0
    activation: str = "identity"
    alpha: float | None = None
    start: str = "zero"

    def __post_init__(self) -> None:
        positive("width", self.width)
        if self.rank is not None:
            positive("rank", self.rank)
        if self.alpha is not None and finite("alpha", self.alpha) == 0:
            raise SpecError("alpha is 0, so that no adapter would do anything; give another number")
        activation(self.activation)
        if isinstance(self.exclude, str):
            raise SpecError(f"exclude is a list of names, not one string {self.exclude!r}")
        object.__setattr__(self, "exclude", tuple(self.exclude))
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))

    def map_for(self, in_features: int, out_features: int, *, index: int = 0) -> WeightMap:
        """The map of one layer of this size; ``index`` makes its latent differ from its neighbours'."""
        return build_map(
            self.method,
            Geometry(in_features, out_features, self.width),
            rank=self.rank,
            layout=self.layout,
            latent=self.latent,
            seed=self.seed + index,
            start=self.start,
        )

    def sites_for(self, model: nn.Module) -> dict[str, Site]:
        """The Site of every target of ``model``, by module path in the model's order.

        Raises:
            TargetError: Where nothing matches, or a named target cannot be adapted; says why.
        """
        names = target_names(model, self.targets, self.exclude)
        modules = dict(model.named_modules())
        scale = 1.0 if self.alpha is None else self.alpha / self.width
        return {
            name: Site(self.map_for(*features(modules[name]), index=i), scale, self.activation)
            for i, name in enumerate(names)
        }


def target_names(
    model: nn.Module, targets: str | tuple[str, ...], exclude: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Module paths that ``targets`` names and that can be adapted, in the model's order.

    With ``"all-linear"`` every nn.Linear and Conv1D is taken, except those whose forward is never called
    (the output projection of ``nn.MultiheadAttention``); what is named explicitly must be adaptable.

    Raises:
        TargetError: Where nothing matches, a name matches nothing, or a named module cannot be adapted.
        SpecError: For a regular expression that cannot be read.

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> target_names(model, "all-linear", ("2",))
        ('0',)
    """
    modules = dict(model.named_modules())
    names = [name for name in modules if name]
    listed = () if isinstance(targets, str) else targets
    unused = [ending for ending in (*listed, *exclude) if not any(_ends_with(n, ending) for n in names)]
    if unused:
        raise TargetError(f"{unused} match no module of {type(model).__name__}")
    if targets == ALL_LINEAR:
        found = [name for name in names if _is_adaptable(name, modules)]
    else:
        found = [name for name in names if _matches(name, targets)]
    found = [name for name in found if not any(_ends_with(name, ending) for ending in exclude)]
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
