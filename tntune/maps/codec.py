"""Maps to JSON and back: ``decode(encode(value)) == value``, and nothing unknown passes."""

import dataclasses
from typing import Any

from tntune.errors import SpecError
from tntune.maps.base import WeightMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.fact import FacT
from tntune.maps.latent import Latent
from tntune.maps.latent_train import LatentTrain
from tntune.maps.layout import Concat, Joined
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.lorta import LoRTA
from tntune.maps.lotr import LoTR
from tntune.maps.metatt import MetaTT
from tntune.maps.stack import Stack
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


def decode_map(obj: object) -> WeightMap:
    """The map that ``obj`` describes: ``decode_map(encode(map)) == map``.

    Raises:
        SpecError: For an unknown kind, an unknown or missing key, or a value that does not fit; the
            message names it. Errors of the maps themselves (ModeError, RankError) pass through.

    Example:
        >>> decode_map({"kind": "lora", "in_features": 4, "out_features": 3, "width": 2}).num_parameters
        14
    """
    value = _decode(obj)
    if not isinstance(value, WeightMap):
        raise SpecError(
            f"a map must have one of the kinds {', '.join(cls.kind for cls in MAPS)}, not {obj!r:.80}"
        )
    return value


def _kind(cls: type) -> str:
    found = [kind for kind, known in _KINDS.items() if known is cls]
    if not found:
        raise SpecError(f"{cls.__name__} has no form in JSON; known are {', '.join(_KINDS)}")
    return found[0]


def _decode(obj: object) -> Any:
    if isinstance(obj, list):
        return tuple(_decode(item) for item in obj)
    if not isinstance(obj, dict):
        return obj
    cls = _KINDS.get(obj["kind"]) if isinstance(obj.get("kind"), str) else None
    if cls is None:
        raise SpecError(f"unknown kind {obj.get('kind')!r:.80}; known are {', '.join(_KINDS)}")
    values = {key: _decode(item) for key, item in obj.items() if key != "kind"}
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
