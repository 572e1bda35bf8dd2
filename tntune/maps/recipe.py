"""Recipe: how the maps of many layers are made, by the name of a method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tntune.errors import ModeError, SpecError, TntuneError
from tntune.maps.base import WeightMap, positive
from tntune.maps.budget import largest_rank
from tntune.maps.build import DEFAULT_RANK, LAYER_METHODS, build_map, capped_ranks, make_latent, shared_layout
from tntune.maps.build_joint import HEAD_METHODS, STACK_METHODS, TUCKER_METHODS, build_joint
from tntune.maps.grid import Grid, grids
from tntune.maps.layout import Geometry, Joined
from tntune.maps.stack import Stack
from tntune.maps.tensorguide import TensorGuide

__all__ = ["DEFAULT_WIDTH", "JOINT_METHODS", "METHODS", "Recipe", "Sizes", "group_name", "numbered"]

Sizes = tuple[int, int]
"""``(in_features, out_features)`` of a layer."""

DEFAULT_WIDTH = 8
_JOINT = "joint"  # the TensorGuide of a stack

JOINT_METHODS = (_JOINT, *STACK_METHODS)
"""Methods whose maps each serve all layers of a shape."""

METHODS = (*LAYER_METHODS, *JOINT_METHODS)
"""Every method by name."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method and its sizes: what is not given is chosen, and what the method does not have is refused.

    Attributes:
        method: One of :data:`METHODS`. ``"joint"`` is a TensorGuide with modes for layer and projection.
        width: M, the inner size of every adapter, by default 8. Maps with one rank for all bonds have no
            width of their own: there it may only repeat the rank.
        rank: Upper bound of every rank, by default 8, or the width where that is given and is the rank. A
            LoRA has none.
        params: In place of ``rank`` (for a LoRA of ``width``), a budget: at most so many parameters over all
            layers together. In and out modes of a Tucker TensLoRA then have the rank, and the others all
            that they allow.
        layout: ``"concat"`` or a pattern of :class:`tntune.maps.Joined`; for TensorGuide and joint only.
        latent: ``"none"``, ``"fixed"``, ``"resample"`` or ``"mean"``, for maps with a latent.
        seed: Seed of the first map's latent; each further map adds one, so that no two share z.
        start: How maps start (``"zero"``, ``"random"``, ``"paper"``, ``"published"``).
        head_dim: Size of an attention head, for methods with a mode for heads; layers of any output size
            have as many heads as it makes, so that grouped queries need nothing more.
        input_heads: Endings of the paths of layers whose heads split the input, as attention's output
            projection does.

    Raises:
        SpecError: For an unknown method or an option that it does not have.

    Example:
        >>> layers = {f"h.{i}.{role}": (768, 768) for i in range(12) for role in ("q", "v")}
        >>> (grid, map), *others = Recipe(method="lotr").joint_maps(layers).values()
        >>> map.sites, map.num_parameters, grid.roles
        (24, 13824, ('h.*.q', 'h.*.v'))
    """

    method: str = "tensorguide"
    width: int | None = None
    rank: int | None = None
    params: int | None = None
    layout: str | None = None
    latent: str = "none"
    seed: int = 0
    start: str = "zero"
    head_dim: int | None = None
    input_heads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpecError(f"method must be one of {', '.join(METHODS)}, not {self.method!r:.80}")
        for name in ("width", "rank", "params", "head_dim"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        if isinstance(self.input_heads, str):
            raise SpecError(f"input_heads is a list of names, not one string {self.input_heads!r}")
        object.__setattr__(self, "input_heads", tuple(self.input_heads))
        self._check_sizes()
        self._check_options()

    @property
    def is_joint(self) -> bool:
        """Whether one map serves all layers of a shape."""
        return self.method in JOINT_METHODS

    @property
    def has_heads(self) -> bool:
        """Whether its maps have a mode for attention heads."""
        return self.method in HEAD_METHODS

    def layer_map(self, sizes: Sizes, *, index: int = 0, rank: int | None = None) -> WeightMap:
        """The map of one layer; ``index`` makes its latent differ from its neighbours'.

        Raises:
            SpecError: For a method whose maps serve many layers, an option that the method does not have, or
                a budget without a rank: how far it reaches depends on all layers.
        """
        if self.is_joint:
            raise SpecError(f"a map of method {self.method!r} serves many layers; joint_maps makes it")
        if self.params is not None and rank is None:
            raise SpecError(f"params={self.params} is a budget of all layers together; layer_maps makes them")
        width = self.width or DEFAULT_WIDTH
        bound = self.rank if rank is None else rank
        if self.method == "lora" and rank is not None:
            width, bound = rank, None
        if self.method == "delta_train" and self.width is None:
            width = bound or DEFAULT_RANK
        return build_map(
            self.method,
            Geometry(*sizes, width),
            rank=bound,
            layout=self.layout,
            latent=self.latent,
            seed=self.seed + index,
            start=self.start,
        )

    def layer_maps(self, layers: Mapping[str, Sizes]) -> dict[str, WeightMap]:
        """The map of each layer, by name in the order given; raises as :meth:`layer_map`, or for the budget.

        Example:
            >>> maps = Recipe(method="lora", params=600).layer_maps({"a": (12, 8), "b": (8, 4)})
            >>> [map.width for map in maps.values()], sum(map.num_parameters for map in maps.values())
            ([18, 18], 576)
        """

        def count(rank: int) -> int:
            each = {sizes: self.layer_map(sizes, rank=rank).num_parameters for sizes in set(layers.values())}
            return sum(each[sizes] for sizes in layers.values())

        rank = self._fitted(count, len(layers))
        return {
            name: self.layer_map(sizes, index=i, rank=rank) for i, (name, sizes) in enumerate(layers.items())
        }

    def joint_maps(self, layers: Mapping[str, Sizes]) -> dict[str, tuple[Grid, WeightMap]]:
        """A map and the layers of its sites, for each shape and each set of blocks, by name.

        Raises:
            SpecError: For a method whose maps serve one layer, an option that the method does not have, or a
                name of ``input_heads`` that no layer has.
            ModeError: Where heads do not divide the features; names the layers.
        """
        if not self.is_joint:
            raise SpecError(f"a map of method {self.method!r} serves one layer; layer_maps makes it")
        unused = [name for name in self.input_heads if not any(f".{x}".endswith(f".{name}") for x in layers)]
        if unused:
            raise SpecError(f"input_heads: {unused} match none of the {len(layers)} layers")
        shapes: dict[Sizes, list[str]] = {}
        for name, sizes in layers.items():
            shapes.setdefault(sizes, []).append(name)
        found = [(sizes, grid) for sizes, names in shapes.items() for grid in grids(names)]
        rank = self._fitted(
            lambda r: sum(self._joint(*each, 0, r).num_parameters for each in found), len(layers)
        )
        named: dict[str, tuple[Grid, WeightMap]] = {}
        for index, (sizes, grid) in enumerate(found):
            named[group_name(sizes, named)] = grid, self._joint(sizes, grid, index, rank)
        return named

    def _joint(self, sizes: Sizes, grid: Grid, index: int, rank: int | None) -> WeightMap:
        """The map of one grid; names its layers on an error."""
        stack = Stack(*sizes, layers=len(grid.blocks), projections=len(grid.roles))
        try:
            return (
                self._guide(stack, index, rank) if self.method == _JOINT else self._stack(stack, grid, rank)
            )
        except TntuneError as error:
            raise type(error)(f"{', '.join(grid.roles)}: {error}") from error

    def _guide(self, stack: Stack, index: int, rank: int | None) -> TensorGuide:
        geometry = Geometry(stack.in_features, stack.out_features, self.width or DEFAULT_WIDTH)
        pattern = self.layout or shared_layout(stack.layers, stack.projections)
        layout = Joined.auto(pattern, geometry, layers=stack.layers, projections=stack.projections)
        latent = make_latent(self.latent, len(layout.modes), self.seed + index)
        ranks = capped_ranks(layout.modes, rank or self.rank or DEFAULT_RANK)
        return TensorGuide(*geometry, layout, ranks, latent, self.start)

    def _stack(self, stack: Stack, grid: Grid, rank: int | None) -> WeightMap:
        heads, turned = 1, grid.named(self.input_heads)
        if self.has_heads:
            if self.head_dim is None:
                raise SpecError(f"method {self.method!r} has a mode for attention heads: give head_dim")
            heads, rest = divmod(stack.out_features, self.head_dim)
            if rest:
                raise ModeError(f"heads of {self.head_dim} do not divide {stack.out_features} features")
        own = rank or self.rank or self.width or DEFAULT_RANK
        index_rank = own if self.params is None and self.method in TUCKER_METHODS else None
        return build_joint(
            self.method,
            stack,
            rank=own,
            index_rank=index_rank,
            heads=heads,
            input_heads=turned,
            start=self.start,
        )

    def _fitted(self, count: Callable[[int], int], layers: int) -> int | None:
        """The rank that the budget allows; None without a budget."""
        return None if self.params is None else largest_rank(count, self.params, f"{layers} layers")

    def _check_sizes(self) -> None:
        """What sets the size, once."""
        if self.params is not None and self.rank is not None:
            raise SpecError(f"rank={self.rank} and params={self.params} both set the size; give one")
        if self.params is not None and self.width is not None and self._is_width_rank:
            raise SpecError(f"width={self.width} and params={self.params} both set the size; give one")
        if self.method in STACK_METHODS and None not in (self.width, self.rank) and self.width != self.rank:
            raise SpecError(
                f"method {self.method!r} has one rank for all bonds, and no width of its own, "
                f"but width={self.width}, rank={self.rank}"
            )

    def _check_options(self) -> None:
        """What only some methods have."""
        if not self.has_heads and (self.head_dim is not None or self.input_heads):
            raise SpecError(
                f"method {self.method!r} has no mode for heads, "
                f"but head_dim={self.head_dim}, input_heads={self.input_heads} were given"
            )
        if self.method in STACK_METHODS and (self.layout is not None or self.latent != "none"):
            raise SpecError(
                f"method {self.method!r} has neither layout nor latent, "
                f"but layout={self.layout!r}, latent={self.latent!r} were given"
            )
        if self.method == _JOINT and (self.layout == "concat" or self.latent == "resample"):
            raise SpecError(
                "a joint TensorGuide has named legs, and one z for all its layers: "
                f"not layout={self.layout!r}, latent={self.latent!r}"
            )

    @property
    def _is_width_rank(self) -> bool:
        return self.method == "lora" or self.method in STACK_METHODS


def group_name(sizes: Sizes, taken: Mapping[str, object]) -> str:
    """A name for a group of layers of these sizes: ``768x3072``, with a number where it is taken.

    Example:
        >>> group_name((12, 8), {}), group_name((12, 8), {"12x8": 0, "12x84": 0})
        ('12x8', '12x8-2')
    """
    name = f"{sizes[0]}x{sizes[1]}"
    return numbered(name, sum(other.partition("-")[0] == name for other in taken))


def numbered(name: str, index: int) -> str:
    """The name of the k-th group of that name: ``768x768``, then ``768x768-2``.

    Example:
        >>> numbered("12x8", 0), numbered("12x8", 1)
        ('12x8', '12x8-2')
    """
    return f"{name}-{index + 1}" if index else name
