"""AdapterSpec: what to adapt and with which map, as one value; it becomes a Site for every target."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from tntune.adapters.linear import AdaptedLinear, features
from tntune.errors import TargetError
from tntune.maps.base import WeightMap, positive
from tntune.maps.build import build_map
from tntune.maps.layout import Geometry
from tntune.maps.site import Site

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
        layout: ``"concat"`` or a pattern of :class:`tntune.maps.Joined`, by default ``"side f1 f2 w"``; for
            TensorGuide only.
        latent: Mode of the latent: ``"none"``, ``"fixed"``, ``"resample"`` or ``"mean"``.
        seed: Seed of the first target's latent; each further target adds one, so that no two share z.
        activation: Name of σ.
        alpha: The scale is ``alpha / width``; None means ``alpha = width``.
        start: How maps start (``"zero"``, ``"random"``, ``"paper"``, ``"published"``).

    Example:
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> sites = AdapterSpec(width=4, rank=3).sites_for(model)
        >>> [(name, site.map.num_parameters) for name, site in sites.items()]
        [('0', 75), ('2', 63)]
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
    model: nn.Module, targets: str | Sequence[str], exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """Module paths that ``targets`` names and that can be adapted, in the model's order.

    With ``"all-linear"`` every nn.Linear and Conv1D is taken, except those whose forward is never called
    (the output projection of ``nn.MultiheadAttention``); what is named explicitly must be adaptable.

    Raises:
        TargetError: Where nothing matches, a name matches nothing, or a named module cannot be adapted.
    """
    modules = dict(model.named_modules())
    found = [name for name in modules if name and _matches(name, targets, modules)]
    found = [name for name in found if not any(_ends_with(name, ending) for ending in exclude)]
    if not isinstance(targets, str):
        unused = [target for target in targets if not any(_ends_with(name, target) for name in modules)]
        if unused:
            raise TargetError(f"targets {unused} match no module of {type(model).__name__}")
    if not found:
        raise TargetError(
            f"targets {targets!r} (without {list(exclude)}) match no module of {type(model).__name__}"
        )
    for name in found:
        check_target(name, modules)
    return tuple(found)


def _matches(name: str, targets: str | Sequence[str], modules: dict[str, nn.Module]) -> bool:
    if targets == ALL_LINEAR:
        return _is_adaptable(name, modules)
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(_ends_with(name, target) for target in targets)


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _is_adaptable(name: str, modules: dict[str, nn.Module]) -> bool:
    try:
        check_target(name, modules)
    except TargetError:
        return False
    return True


def check_target(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise :class:`TargetError` unless the module is linear, floating-point, and called by its parent."""
    parent = modules[name.rpartition(".")[0]]
    if isinstance(parent, nn.MultiheadAttention):
        raise TargetError(
            f"{name}: nn.MultiheadAttention never calls its out_proj, an adapter there would do nothing"
        )
    if isinstance(parent, AdaptedLinear):
        raise TargetError(f"{name}: is inside a layer that has an adapter already")
    try:
        features(modules[name])
    except TargetError as error:
        raise TargetError(f"{name}: {error}") from None
