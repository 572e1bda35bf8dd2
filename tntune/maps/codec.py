"""Maps to JSON and back: ``decode(encode(value)) == value``, and nothing unknown passes."""

import dataclasses
from typing import Any

from tntune.errors import SpecError
from tntune.maps.base import WeightMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.fact import FacT
from tntune.maps.gated import Gated
from tntune.maps.joint import JointMap
from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain
from tntune.maps.layout import Concat, Joined
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.lorta import LoRTA
from tntune.maps.lotr import LoTR
from tntune.maps.metatt import MetaTT
from tntune.maps.norm_bounded import NormBounded
from tntune.maps.stack import Stack
from tntune.maps.streams import Streams
from tntune.maps.tenslora import TensLoRA
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["MAPS", "decode_map", "encode"]

MAPS: tuple[type[WeightMap], ...] = (
    LoRA,
    TTLoRA,
    TensorGuide,
    TensLoRA,
    LoTR,
    LoRTA,
    FacT,
    MetaTT,
    LoRETTA,
    DeltaTrain,
    Streams,
    Gated,
    NormBounded,
)
_KINDS: dict[str, type[Any]] = {
    **{cls.kind: cls for cls in MAPS},
    **{cls.kind: cls for cls in (Latent, LatentTrain)},
    **{cls.kind: cls for cls in (Concat, Joined)},
    Stack.kind: Stack,
}


def encode(value: Any) -> Any:
    """A map, or a value inside one, as what ``json.dumps`` takes: each dataclass names its kind.

    Example:
        >>> encode(LoRA(4, 3, 2))
        {'kind': 'lora', 'in_features': 4, 'out_features': 3, 'width': 2, 'start': 'zero'}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"kind": _kind(type(value)), **fields}
    return list(value) if isinstance(value, tuple) else value


def decode_map(obj: object, *, sites: int | None = None) -> WeightMap:
    """The map that ``obj`` describes: ``decode_map(encode(map)) == map``.

    A map of your own, a final of :class:`tntune.maps.JointMap` with a kind of its own, is known by that kind
    wherever its module has been imported.

    Args:
        obj: What ``json.loads`` gives.
        sites: How many sites the map may serve at most; any number by default. A map of more is refused
            before it is made, which may take a millisecond for each of its sites.

    Raises:
        SpecError: For an unknown kind, an unknown or missing key, a value that does not fit, or a map of too
            many sites; the message names it. Errors of the maps themselves (ModeError, RankError) pass.

    Example:
        >>> decode_map({"kind": "lora", "in_features": 4, "out_features": 3, "width": 2}).num_parameters
        14
    """
    value = _decode(obj, sites)
    if not isinstance(value, WeightMap):
        raise SpecError(
            f"a map must have one of the kinds {', '.join(cls.kind for cls in MAPS)}, not {obj!r:.80}"
        )
    return value


def _kinds() -> dict[str, type[Any]]:
    """All kinds; a final of JointMap that is defined elsewhere is known while its class is."""
    own, waiting = {}, JointMap.__subclasses__()
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "kind" in vars(cls):
            own[cls.kind] = cls
    return {**own, **_KINDS}


def _kind(cls: type) -> str:
    found = [kind for kind, known in _kinds().items() if known is cls]
    if not found:
        raise SpecError(f"{cls.__name__} has no form in JSON; known are {', '.join(_KINDS)}")
    return found[0]


def _decode(obj: object, sites: int | None) -> Any:
    if isinstance(obj, list):
        return tuple(_decode(item, sites) for item in obj)
    if not isinstance(obj, dict):
        return obj
    cls = _kinds().get(obj["kind"]) if isinstance(obj.get("kind"), str) else None
    if cls is None:
        raise SpecError(f"unknown kind {obj.get('kind')!r:.80}; known are {', '.join(_KINDS)}")
    values = {key: _decode(item, sites) for key, item in obj.items() if key != "kind"}
    served = max(getattr(value, "sites", 1) for value in (None, *values.values()))
    if sites is not None and served > sites:
        raise SpecError(f"a map that serves {served} modules, where {sites} are named")
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    missing = [
        name
        for name, f in known.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    unknown = sorted(set(values) - set(known))
    if missing or unknown:
        raise SpecError(f"kind {cls.kind!r}: missing keys {missing}, unknown keys {unknown}")
    return cls(**values)
