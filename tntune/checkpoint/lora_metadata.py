"""What diffusers keeps beside the tensors of a LoRA file: one LoRA configuration for each component."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tntune.checkpoint.lora_config import check_lora_config
from tntune.checkpoint.scale import ScaleRule
from tntune.errors import CheckpointError
from tntune.files import Json

__all__ = ["METADATA_KEY", "metadata_rules", "metadata_with_widths"]

METADATA_KEY = "lora_adapter_metadata"
"""Key of the file's metadata under which diffusers (from 0.34 on) keeps ``component.option`` as JSON."""

_COMPONENT = re.compile(r"(unet|transformer|text_encoder)(_\d+)?")
_TEXT_MODEL = "text_model."  # a level that newer CLIP classes have not


def metadata_rules(
    metadata: Mapping[str, str], components: Iterable[str], path: Path
) -> dict[str, ScaleRule]:
    """The rule of widths and scales of each component, by its name; empty where the file states none.

    Args:
        metadata: Texts in the header of the file.
        components: First parts of the names of all sites.
        path: The file, for messages.

    Raises:
        CheckpointError: Where the metadata is no JSON, says nothing of a component, or is no plain LoRA's.

    Example:
        >>> texts = {METADATA_KEY: '{"unet.r": 4, "unet.lora_alpha": 8}'}
        >>> metadata_rules(texts, ["unet"], Path("x"))["unet"].of("mid_block.proj_in")
        (4, 2.0)
    """
    if METADATA_KEY not in metadata:
        return {}
    place = f"{path}: {METADATA_KEY}"
    options = _options(metadata[METADATA_KEY], place)
    rules = {}
    for component in dict.fromkeys(components):
        config = _of(component, options)
        if not config:
            raise CheckpointError(f"{place}: says nothing of {component!r}, which has LoRA factors")
        named = Path(f"{place}: {component}")
        check_lora_config({"peft_type": "LORA", **config}, named, carry=False)
        rules[component] = ScaleRule.from_config(config, named)
    return rules


def metadata_with_widths(metadata: Mapping[str, str], widths: Mapping[str, int]) -> dict[str, str]:
    """The metadata of a file whose sites have these widths and scale 1, which is alpha = r.

    Where the file states no configuration one is added only if a component of diffusers has several widths,
    for which some versions would else take the first width as the alpha of all.

    Args:
        metadata: Texts in the header of the file that this one replaces.
        widths: Width of each site, by its full name.

    Example:
        >>> metadata_with_widths({}, {"unet.a": 4, "unet.b": 4})
        {}
        >>> made = metadata_with_widths({}, {"unet.a": 4, "unet.b": 2})
        >>> metadata_rules(made, ["unet"], Path("x"))["unet"].of("b")
        (2, 1.0)

    Reference: huggingface/diffusers, pull request 14409.
    """
    components: dict[str, dict[str, int]] = {}
    for name, width in widths.items():
        component, _, module = name.partition(".")
        components.setdefault(component, {})[module] = width
    known = all(_COMPONENT.fullmatch(component) for component in components)
    mixed = any(len(set(own.values())) > 1 for own in components.values())
    if METADATA_KEY not in metadata and not (known and mixed):
        return dict(metadata)
    options = _options(metadata.get(METADATA_KEY, "{}"), METADATA_KEY)
    made: Json = {}
    for component, own in components.items():
        config = _of(component, options) | _config(own)
        made |= {f"{component}.{key}": value for key, value in config.items()}
    return {**metadata, METADATA_KEY: json.dumps(made, indent=2, sort_keys=True)}


def _options(text: str, place: str) -> Json:
    """The JSON object of a text."""
    try:
        options = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place}: not JSON: {error}") from error
    if not isinstance(options, dict):
        raise CheckpointError(f"{place}: must hold an object, not {type(options).__name__}")
    return options


def _of(component: str, options: Json) -> Json:
    """The configuration of one component."""
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in options.items() if key.startswith(start)}


def _config(widths: Mapping[str, int]) -> Json:
    """The options that say of each module its width and alpha = r."""
    default = max(widths.values())
    pattern = {_exactly(name): width for name, width in widths.items() if width != default}
    return {
        "r": default,
        "lora_alpha": default,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": [name.removeprefix(_TEXT_MODEL) for name in widths],
        "use_rslora": False,
    }


def _exactly(name: str) -> str:
    """A pattern that matches the module of this path and no other, in whatever class of text model."""
    level = rf"({re.escape(_TEXT_MODEL)})?" if name.startswith(_TEXT_MODEL) else ""
    return f"^{level}{re.escape(name.removeprefix(_TEXT_MODEL))}"
