"""From a configuration and the sizes of the targets to maps: one for each target, or one for many."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from zlib import crc32

from peft.utils.other import get_pattern_key
from torch import nn

from tntune.adapters.spec import AUTO, HEADROOM, head_dim
from tntune.errors import ModeError, SpecError
from tntune.maps.base import WeightMap, positives
from tntune.maps.budget import largest_rank
from tntune.maps.build import (
    DEFAULT_RANK,
    SHARED_LAYOUT,
    build_map,
    capped_ranks,
    make_latent,
    shared_layout,
)
from tntune.maps.build_joint import HEAD_METHODS
from tntune.maps.grid import place
from tntune.maps.group import Group
from tntune.maps.layout import Geometry, Joined
from tntune.maps.member import Member
from tntune.maps.pattern import parse_pattern
from tntune.maps.recipe import Recipe, numbered
from tntune.maps.site import Site
from tntune.maps.tensorguide import TensorGuide
from tntune.peft.config import FROM_LORA, SharedTensorGuideConfig, TensorGuideConfig

__all__ = ["Sizes", "auto_budget", "check_sizes", "note_heads", "plan_groups", "plan_site"]

Sizes = tuple[int, int]
"""``(in_features, out_features)`` of a target."""

Map = TypeVar("Map", bound=WeightMap)


def plan_site(config: TensorGuideConfig, module: str, sizes: Sizes) -> Site:
    """The Site of one target: from the configuration's own ``sites``, or made from its other fields.

    Raises:
        SpecError: Where ``sites`` does not have the target.
        ModeError: Where it has one of another size.

    Example:
        >>> plan_site(TensorGuideConfig(r=4, ranks=3, alpha=8), "h.0.attn", (12, 8)).scale
        2.0
    """
    described = config.described()
    if not described:
        width, scale = _width(config, module), _scale(config, module)
        return Site(_fitted(config, Geometry(*sizes, width), module), scale, config.activation)
    if module not in described:
        raise SpecError(
            f"{module} is a target, but the configuration describes other ones: {sorted(described)[:4]}..; "
            "set its sites to None to choose maps anew"
        )
    site = Site.from_json(described[module])
    check_sizes(module, sizes, site.map)
    return site


def plan_groups(config: TensorGuideConfig, targets: Mapping[str, Sizes]) -> dict[str, Group]:
    """The groups of these targets: one map for each combination of sizes and width, by name.

    They are in the order of the model, however a stored configuration has them: an optimiser knows its
    parameters by their order alone.

    Raises:
        SpecError: Where the configuration's ``groups`` have other targets than the model.
        ModeError: Where they have a target of another size.

    Example:
        >>> targets = {f"h.{i}.{name}": (12, 12) for i in range(3) for name in ("q", "v")}
        >>> groups = plan_groups(TensorGuideConfig(r=4), targets)
        >>> {name: group.map.layout.legs["layer"] for name, group in groups.items()}
        {'12x12': 3}
    """
    described = config.described()
    if described:
        known = {name: Group.from_json(obj) for name, obj in described.items()}
        return _ordered(_described_groups(known, targets), targets)
    for name in getattr(config, "input_heads", ()):
        if not any(f".{module}".endswith(f".{name}") for module in targets):
            raise SpecError(f"input_heads: {name!r} matches none of the {len(targets)} targets")
    members: dict[tuple[Sizes, int], list[str]] = {}
    for module, sizes in targets.items():
        members.setdefault((sizes, _width(config, module)), []).append(module)
    found: dict[str, Group] = {}
    for (sizes, width), modules in members.items():
        geometry, name = Geometry(*sizes, width), _group_name(sizes, width, config)
        if config.method == "tensorguide":
            found[name] = _group(config, geometry, modules)
        else:
            found |= {numbered(name, k): made for k, made in enumerate(_stacks(config, geometry, modules))}
    return _ordered(found, targets)


def _ordered(groups: Mapping[str, Group], targets: Mapping[str, Sizes]) -> dict[str, Group]:
    """By the first target of each."""
    places = {module: place for place, module in enumerate(targets)}
    return dict(sorted(groups.items(), key=lambda item: min(places[module] for module in item[1].modules)))


def auto_budget(config: TensorGuideConfig, targets: Mapping[str, Sizes]) -> int:
    """Parameters that automatic ranks may have at the end of training, over all these targets.

    Raises:
        SpecError: For a configuration without ``ranks="auto"``.

    Example:
        >>> auto_budget(TensorGuideConfig(r=4, ranks="auto", params=0.5), {"fc": (12, 8)})
        40
    """
    if config.ranks != AUTO or config.params is None:
        raise SpecError(f"give a budget: the configuration has ranks={config.ranks!r}, not {AUTO!r}")
    whole = sum(_width(config, module) * sum(sizes) for module, sizes in targets.items())
    return int(config.params * whole)


def note_heads(config: TensorGuideConfig, model: nn.Module) -> None:
    """Set the size of a head, where the method needs it and was not told, as the model's configuration says.

    Example:
        >>> from types import SimpleNamespace
        >>> model = nn.Linear(4, 4)
        >>> model.config = SimpleNamespace(head_dim=2)
        >>> config = SharedTensorGuideConfig(method="lorta")
        >>> note_heads(config, model)
        >>> config.head_dim
        2
    """
    if isinstance(config, SharedTensorGuideConfig) and config.method in HEAD_METHODS and not config.head_dim:
        config.head_dim = head_dim(model)


def check_sizes(module: str, sizes: Sizes, map: WeightMap) -> None:
    """Raise :class:`ModeError` unless the map has the sizes of its target."""
    wanted = (map.in_features, map.out_features)
    if sizes != wanted:
        raise ModeError(f"{module} has (in, out) = {sizes}, but its map {wanted}")


def _fitted(config: TensorGuideConfig, geometry: Geometry, module: str) -> WeightMap:
    """The map of one target, at the given ranks or at the largest that the budget allows."""
    seed = config.seed + crc32(module.encode())  # no two targets share z, whatever else is a target
    if config.params is None or config.method == "lora":
        return _single(config, geometry, None if isinstance(config.ranks, str) else config.ranks, seed)
    budget = _budget(config, geometry)
    return _largest(budget, module, lambda rank: _single(config, geometry, rank, seed))


def _single(
    config: TensorGuideConfig, geometry: Geometry, ranks: int | Sequence[int] | None, seed: int
) -> WeightMap:
    """The map of one target at these ranks."""
    bound = ranks if ranks is None or isinstance(ranks, int) else max(ranks)
    made = build_map(
        config.method,
        geometry,
        rank=bound,
        layout=config.layout,
        latent=config.latent,
        seed=seed,
        start=_start(config),
    )
    if bound == ranks:
        return made
    if not isinstance(made, TensorGuide):
        raise SpecError(f"a list of ranks is for one train, and method {config.method!r} has none or two")
    return TensorGuide(*geometry, made.layout, _ends(ranks), made.latent, made.start)


def _group(config: TensorGuideConfig, geometry: Geometry, modules: Sequence[str]) -> Group:
    """One train over these modules, in the order of its layer and projection modes."""
    ordered, layers, projections = _grid(modules, config.layout or SHARED_LAYOUT)
    pattern = config.layout or shared_layout(layers, projections)
    layout = Joined.auto(pattern, geometry, layers=layers, projections=projections)
    latent = make_latent(config.latent, len(layout.modes), config.seed)

    def train(ranks: object) -> TensorGuide:
        given = capped_ranks(layout.modes, ranks) if isinstance(ranks, int) else _ends(ranks)
        return TensorGuide(*geometry, layout, given, latent, _start(config))

    if config.params is None:
        map = train(DEFAULT_RANK if config.ranks is None else config.ranks)
    else:
        map = _largest(_budget(config, geometry, len(ordered)), f"{len(ordered)} targets", train)
    return Group(map, ordered, tuple(_scale(config, module) for module in ordered), config.activation)


def _stacks(config: TensorGuideConfig, geometry: Geometry, modules: Sequence[str]) -> list[Group]:
    """A map of one tensor over named modes for each full grid of these modules."""
    assert isinstance(config, SharedTensorGuideConfig)
    known = [name for name in config.input_heads if any(f".{m}".endswith(f".{name}") for m in modules)]
    recipe = Recipe(
        method=config.method,
        rank=None if config.params is not None else geometry.width,
        params=None if config.params is None else _budget(config, geometry, len(modules)),
        start=_start(config),
        head_dim=config.head_dim,
        input_heads=tuple(known),
    )
    made = recipe.joint_maps(dict.fromkeys(modules, (geometry.in_features, geometry.out_features)))
    return [
        Group(map, grid.modules, tuple(_scale(config, module) for module in grid.modules), config.activation)
        for grid, map in made.values()
    ]


def _described_groups(groups: dict[str, Group], targets: Mapping[str, Sizes]) -> dict[str, Group]:
    """These groups, once they are known to have exactly the model's targets."""
    known = {
        module: Member(group.map, index)
        for group in groups.values()
        for index, module in enumerate(group.modules)
    }
    missing, unknown = sorted(known.keys() - targets.keys()), sorted(targets.keys() - known.keys())
    if missing or unknown:
        raise SpecError(
            f"the shared trains have {len(known)} targets, the model {len(targets)}: {missing[:3]} are not "
            f"in the model, {unknown[:3]} have no place in a train"
        )
    for module, map in known.items():
        check_sizes(module, targets[module], map)
    return groups


def _grid(modules: Sequence[str], pattern: str) -> tuple[tuple[str, ...], int, int]:
    """``(ordered modules, layers, projections)``: blocks times roles where they fill a grid, else a list."""
    legs = [leg for group in parse_pattern(pattern) for leg in group]
    blocks: dict[str, dict[str, str]] = {}
    for module in modules:
        block, role = place(module)
        blocks.setdefault(block, {})[role] = module
    roles = list(next(iter(blocks.values())))
    if "proj" in legs and all(set(block) == set(roles) for block in blocks.values()):
        return tuple(block[role] for block in blocks.values() for role in roles), len(blocks), len(roles)
    return tuple(modules), len(modules), 1


def _largest(budget: int, what: str, make: Callable[[int], Map]) -> Map:
    """The map of the largest bound of the ranks that has at most ``budget`` parameters."""
    return make(largest_rank(lambda rank: make(rank).num_parameters, budget, what))


def _budget(config: TensorGuideConfig, geometry: Geometry, targets: int = 1) -> int:
    """Parameters at the start."""
    assert config.params is not None
    share = config.params * (HEADROOM if config.ranks == AUTO else 1)
    return int(share * targets * geometry.width * (geometry.in_features + geometry.out_features))


def _group_name(sizes: Sizes, width: int, config: TensorGuideConfig) -> str:
    """Such as ``768x3072``, and with the width where a pattern gave it another."""
    return f"{sizes[0]}x{sizes[1]}" + ("" if width == config.r else f"r{width}")


def _ends(ranks: object) -> tuple[int, ...]:
    return (1, *positives("ranks", ranks), 1)


def _start(config: TensorGuideConfig) -> str:
    if isinstance(config.init_weights, str):
        return "random" if config.init_weights.startswith(FROM_LORA) else config.init_weights
    return "zero" if config.init_weights else "random"


def _width(config: TensorGuideConfig, module: str) -> int:
    return config.rank_pattern.get(get_pattern_key(list(config.rank_pattern), module), config.r)


def _scale(config: TensorGuideConfig, module: str) -> float:
    width = _width(config, module)
    default = config.alpha if config.alpha is not None else width
    return config.alpha_pattern.get(get_pattern_key(list(config.alpha_pattern), module), default) / width
