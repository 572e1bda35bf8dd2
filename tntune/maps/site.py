"""Site: all that is known of one adapted layer without its tensors, as a checkpoint stores it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tntune.errors import SpecError, TntuneError
from tntune.maps.activation import activation
from tntune.maps.base import Factors, Shapes, Tensors, WeightMap, finite
from tntune.maps.codec import decode_map, encode

__all__ = [
    "FORMAT_VERSION",
    "GENERATOR_KEY",
    "KEY_PREFIX",
    "LIBRARY_PEFT_TYPE",
    "PEFT_TYPE",
    "Site",
    "check_version",
    "site_config",
    "site_key",
    "sites_from_config",
]

GENERATOR_KEY = "tensorguide_gen"
"""Name of the container that holds a layer's map tensors, in modules and in checkpoint keys."""

KEY_PREFIX = "base_model.model."
"""What PEFT puts before the path of every module in a checkpoint."""

PEFT_TYPE = "TENSORGUIDE"
"""What ``adapter_config.json`` calls folders of ours."""

LIBRARY_PEFT_TYPE = "TENSORGUIDE_LIBRARY"
"""What it calls libraries of several adapters."""

_READ_BY = {
    "LORA": "; tntune convert reads it, and PEFT",
    LIBRARY_PEFT_TYPE: "; tntune export --member takes an adapter out of it",
}

FORMAT_VERSION = 1
"""Version of the folder format; a reader refuses newer ones."""


@dataclass(frozen=True)
class Site:
    """``y = base(x) + scale * up σ(down x)`` with the factors of ``map``.

    Attributes:
        map: The map of one layer.
        scale: s, finite.
        activation: Name of σ.

    Raises:
        SpecError: For something that is no map, an unknown activation, a scale that is not finite, or a
            latent mean under a nonlinear σ, where it does not exist.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> site = Site(LoRA(4, 3, 2), scale=0.5)
        >>> Site.from_json(site.to_json()) == site
        True
    """

    map: WeightMap
    scale: float = 1.0
    activation: str = "identity"

    def __post_init__(self) -> None:
        sigma = activation(self.activation)
        if not isinstance(self.map, WeightMap):
            raise SpecError(f"a site needs a map, not {self.map!r:.80}")
        object.__setattr__(self, "scale", finite("scale", self.scale))
        if self.map.factor_width != self.map.width and not sigma.linear:
            raise SpecError(
                f"the mean over a latent is exact only for a linear activation, not {self.activation!r}"
            )

    def tensor_shapes(self) -> Shapes:
        """Shapes of all tensors of the map by flat name."""
        return self.map.tensor_shapes

    def factors(self, tensors: Tensors) -> Factors:
        """The factors from params and fixed in one dictionary."""
        return self.map.factors(tensors, tensors)

    def to_json(self) -> dict[str, object]:
        """What :meth:`from_json` reads."""
        return {"map": encode(self.map), "scale": self.scale, "activation": self.activation}

    @classmethod
    def from_json(cls, obj: object, *, sites: int | None = None) -> "Site":
        """The site that ``obj`` describes; :class:`SpecError` names an unknown or missing key.

        Args:
            obj: What :meth:`to_json` gives.
            sites: As in :func:`tntune.maps.decode_map`.
        """
        if not isinstance(obj, dict) or set(obj) != {"map", "scale", "activation"}:
            raise SpecError(f"a site has the keys map, scale, activation, not {obj!r:.120}")
        return cls(decode_map(obj["map"], sites=sites), obj["scale"], obj["activation"])


def site_key(module: str, name: str) -> str:
    """The checkpoint key of a module's map tensor.

    Example:
        >>> site_key("h.0.attn", "tt_core_1")
        'base_model.model.h.0.attn.tensorguide_gen.tt_core_1'
    """
    return f"{KEY_PREFIX}{module}.{GENERATOR_KEY}.{name}"


def site_config(sites: Mapping[str, Site]) -> dict[str, Any]:
    """The entries of ``adapter_config.json`` for these sites; :func:`sites_from_config` reads them.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> site_config({"h.0.attn": Site(LoRA(4, 3, 2))})["target_modules"]
        ['h.0.attn']
    """
    return {
        "peft_type": PEFT_TYPE,
        "format_version": FORMAT_VERSION,
        "target_modules": list(sites),
        "sites": {name: site.to_json() for name, site in sites.items()},
    }


def sites_from_config(config: Mapping[str, Any]) -> dict[str, Site]:
    """The sites of a configuration: ``sites_from_config(site_config(sites)) == sites``.

    Raises:
        SpecError: For another ``peft_type``, a newer format, no sites, or a site that cannot be read.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> sites = {"h.0.attn": Site(LoRA(4, 3, 2))}
        >>> sites_from_config(site_config(sites)) == sites
        True
    """
    if config.get("peft_type") != PEFT_TYPE:
        kind = config.get("peft_type")
        hint = next((text for name, text in _READ_BY.items() if name == kind), "")
        raise SpecError(f"peft_type: must be {PEFT_TYPE!r}, not {kind!r:.80}{hint}")
    check_version(config.get("format_version"))
    described = config.get("sites")
    if not isinstance(described, dict) or not described:
        raise SpecError("sites: must be an object with at least one module")
    sites = {}
    for name, obj in described.items():
        try:
            sites[name] = Site.from_json(obj, sites=1)
        except TntuneError as error:
            raise SpecError(f"sites: {name}: {error}") from error
    return sites


def check_version(version: object) -> None:
    """Raise :class:`SpecError` unless this is a version of the folder format that we read.

    Example:
        >>> check_version(FORMAT_VERSION)
    """
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise SpecError(f"format_version: this tntune reads 1 to {FORMAT_VERSION}, not {version!r:.80}")
