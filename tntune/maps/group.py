"""Group: one map that serves several layers of a model, as a checkpoint stores it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tntune.errors import SpecError, TntuneError
from tntune.maps.activation import activation
from tntune.maps.base import Shapes, WeightMap
from tntune.maps.codec import decode_map, encode
from tntune.maps.site import FORMAT_VERSION, Site, check_version

__all__ = [
    "SHARED_KEY",
    "SHARED_PEFT_TYPE",
    "Group",
    "group_config",
    "group_key",
    "groups_from_config",
]

SHARED_KEY = "tensorguide_shared"
"""Name of the container that holds the maps of all groups, in models and in checkpoint keys."""

SHARED_PEFT_TYPE = "TENSORGUIDE_SHARED"
"""What ``adapter_config.json`` calls folders whose maps serve several layers."""


@dataclass(frozen=True)
class Group:
    """``y_i = base_i(x) + scales[i] * up_i σ(down_i x)``, with the factors of site i of one map.

    Attributes:
        map: The map; site i of it serves ``modules[i]``.
        modules: Paths of the modules.
        scales: s of each module.
        activation: Name of σ, one for all.

    Raises:
        SpecError: Where map, modules and scales disagree in number, a module is named twice, or a scale or
            σ is none of :class:`tntune.maps.Site`'s.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> group = Group(LoRA(4, 3, 2), ("h.0.attn",), (0.5,))
        >>> Group.from_json(group.to_json()) == group
        True
    """

    map: WeightMap
    modules: tuple[str, ...]
    scales: tuple[float, ...]
    activation: str = "identity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(self.modules))
        scales = tuple(Site(self.map, scale, self.activation).scale for scale in self.scales)
        object.__setattr__(self, "scales", scales)
        if not len(self.modules) == len(scales) == self.map.sites or len(set(self.modules)) < len(scales):
            raise SpecError(
                f"a map of {self.map.sites} sites needs as many modules, each once, and as many scales, "
                f"not {len(set(self.modules))} and {len(scales)}"
            )

    def tensor_shapes(self) -> Shapes:
        """Shapes of all tensors of the map by flat name."""
        return self.map.tensor_shapes

    def to_json(self) -> dict[str, object]:
        """What :meth:`from_json` reads."""
        return {
            "map": encode(self.map),
            "modules": list(self.modules),
            "scales": list(self.scales),
            "activation": self.activation,
        }

    @classmethod
    def from_json(cls, obj: object) -> "Group":
        """The group that ``obj`` describes; :class:`SpecError` names an unknown or missing key."""
        keys = {"map", "modules", "scales", "activation"}
        if not isinstance(obj, dict) or set(obj) != keys:
            raise SpecError(f"a group has the keys {', '.join(sorted(keys))}, not {obj!r:.120}")
        modules, scales = obj["modules"], obj["scales"]
        if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
            raise SpecError(f"modules must be a list of paths, not {modules!r:.80}")
        if not isinstance(scales, list):
            raise SpecError(f"scales must be a list of numbers, not {scales!r:.80}")
        activation(obj["activation"])
        map = decode_map(obj["map"], sites=len(modules))
        return cls(map, tuple(modules), tuple(scales), obj["activation"])


def group_key(group: str, name: str) -> str:
    """The checkpoint key of a map tensor of a group.

    Example:
        >>> group_key("768x768", "tt_core_1")
        'base_model.tensorguide_shared.768x768.tt_core_1'
    """
    return f"base_model.{SHARED_KEY}.{group}.{name}"


def group_config(groups: Mapping[str, Group]) -> dict[str, Any]:
    """The entries of ``adapter_config.json`` for these groups; :func:`groups_from_config` reads them.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> group_config({"4x3": Group(LoRA(4, 3, 2), ("h.0.attn",), (1.0,))})["target_modules"]
        ['h.0.attn']
    """
    return {
        "peft_type": SHARED_PEFT_TYPE,
        "format_version": FORMAT_VERSION,
        "target_modules": [name for group in groups.values() for name in group.modules],
        "groups": {name: group.to_json() for name, group in groups.items()},
    }


def groups_from_config(config: Mapping[str, Any], *, peft_type: str = SHARED_PEFT_TYPE) -> dict[str, Group]:
    """The groups of a configuration: ``groups_from_config(group_config(groups)) == groups``.

    Args:
        config: What is read.
        peft_type: What it must say that it is.

    Raises:
        SpecError: For another ``peft_type``, a newer format, no groups, a module in two groups, or a group
            that cannot be read.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> groups = {"4x3": Group(LoRA(4, 3, 2), ("h.0.attn",), (1.0,))}
        >>> groups_from_config(group_config(groups)) == groups
        True
    """
    if config.get("peft_type") != peft_type:
        raise SpecError(f"peft_type: must be {peft_type!r}, not {config.get('peft_type')!r:.80}")
    check_version(config.get("format_version"))
    described = config.get("groups")
    if not isinstance(described, dict) or not described:
        raise SpecError("groups: must be an object with at least one group")
    groups = {}
    for name, obj in described.items():
        try:
            groups[name] = Group.from_json(obj)
        except TntuneError as error:
            raise SpecError(f"groups: {name}: {error}") from error
    modules = Counter(module for group in groups.values() for module in group.modules)
    twice = sorted(module for module, count in modules.items() if count > 1)
    if twice:
        raise SpecError(f"groups: the modules {twice} are in two groups")
    return groups
