"""LoRA on embeddings: tensors that tntune carries along, and the scale that must come with them."""

import re
from collections.abc import Mapping
from pathlib import Path

from tntune.checkpoint.scale import ScaleRule
from tntune.errors import CheckpointError, SpecError
from tntune.files import Json

__all__ = ["EMBEDDINGS_KEY", "embedding_name", "embedding_scales"]

EMBEDDINGS_KEY = "embeddings"
"""Where a configuration that is not LoRA's keeps the scale of each carried embedding."""

_KEY = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")


def embedding_name(key: str) -> str | None:
    """Path of the embedding that a tensor adapts, or None where the tensor is no factor of an embedding.

    Example:
        >>> embedding_name("base_model.model.wte.lora_embedding_A")
        'wte'
    """
    match = _KEY.fullmatch(key)
    return match["name"] if match else None


def embedding_scales(config: Json, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, float]]:
    """Width and scale of each embedding whose factors are among the tensors.

    Args:
        config: Of the folder that the tensors come from; it has LoRA's rule of alpha and r, or the scales.
        shapes: Shape by full key; keys that are not factors of embeddings are left out.

    Raises:
        SpecError: Where the configuration does not tell the scale.

    Example:
        >>> config = {"r": 4, "lora_alpha": 8}
        >>> embedding_scales(config, {"base_model.model.wte.lora_embedding_A": (4, 100)})
        {'wte': (4, 2.0)}
    """
    matches = {key: _KEY.fullmatch(key) for key in shapes}
    widths = {
        match["name"]: shapes[key][0] for key, match in matches.items() if match and match["side"] == "A"
    }
    if not widths:
        return {}
    if EMBEDDINGS_KEY in config:
        return _known_scales(config[EMBEDDINGS_KEY], widths)
    try:
        rule = ScaleRule.from_config(config, Path(next(iter(widths))))
    except CheckpointError as error:
        raise SpecError(f"the configuration does not tell the scale of an embedding: {error}") from error
    for name, width in widths.items():
        if rule.of(name)[0] != width:
            raise SpecError(f"{name}: has rank {width}, the configuration says {rule.of(name)[0]}")
    return {name: rule.of(name) for name in widths}


def _known_scales(known: object, widths: Mapping[str, int]) -> dict[str, tuple[int, float]]:
    """Widths with the scales that a configuration lists."""
    scales: dict[str, tuple[int, float]] = {}
    for name, width in widths.items():
        scale = known.get(name) if isinstance(known, dict) else None
        if not isinstance(scale, int | float) or isinstance(scale, bool):
            raise SpecError(
                f"{name}: {EMBEDDINGS_KEY} of the configuration must have its scale, not {scale!r}"
            )
        scales[name] = (width, float(scale))
    return scales
