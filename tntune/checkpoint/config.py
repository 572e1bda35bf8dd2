"""What a configuration says whatever the adapter: its base model, its task, modules saved whole."""

from pathlib import Path
from typing import Any

from tntune.errors import CheckpointError
from tntune.files import Json
from tntune.maps.site import KEY_PREFIX

__all__ = [
    "CARRIED_KEYS",
    "carried",
    "check_carried",
    "check_names",
    "is_active",
    "is_saved_module",
]

CARRIED_KEYS = (
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "modules_to_save",
    "revision",
    "task_type",
    "trainable_token_indices",
)
"""Keys that mean the same to whatever adapter the factors become, and are copied to it."""

_TRAINED_BESIDE = {
    "bias": "base biases were trained too",
    "trainable_token_indices": "embedding rows were trained too",
}
_EMBEDDING_NAMES = ("embed_tokens", "lm_head", "wte", "word_embeddings")


def carried(config: Json) -> Json:
    """What another adapter of the same base model takes over: the set ones of :data:`CARRIED_KEYS`.

    Example:
        >>> carried({"r": 8, "task_type": "CAUSAL_LM", "bias": "none"})
        {'task_type': 'CAUSAL_LM'}
    """
    return {key: config[key] for key in CARRIED_KEYS if is_active(config.get(key)) and config[key] != "none"}


def check_carried(config: Json, file: Path, *, carry: bool) -> None:
    """Raise where more than the adapter was trained, unless that is to be carried along as tensors.

    Raises:
        CheckpointError: Naming the option, or a ``modules_to_save`` that is no list of names.

    Example:
        >>> check_carried({"bias": "all"}, Path("c.json"), carry=True)
        >>> check_carried({"bias": "all"}, Path("c.json"), carry=False)
        Traceback (most recent call last):
        tntune.errors.CheckpointError: c.json: bias: base biases were trained too; carry=True keeps them
    """
    for key, reason in _TRAINED_BESIDE.items():
        if not carry and is_active(config.get(key)) and config[key] != "none":
            raise CheckpointError(f"{file}: {key}: {reason}; carry=True keeps them")
    check_names(config.get("modules_to_save"), f"{file}: modules_to_save")


def check_names(value: Any, place: str) -> None:
    """Raise CheckpointError unless the value is null or a list of texts; ``place`` begins the message.

    Example:
        >>> check_names("fc", "c.json: modules_to_save")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: c.json: modules_to_save: must be a list of module names, not 'fc'
    """
    if value is not None and not (isinstance(value, list) and all(isinstance(x, str) for x in value)):
        raise CheckpointError(f"{place}: must be a list of module names, not {value!r}")


def is_active(value: Any) -> bool:
    """Whether an option is set: not null, false or empty.

    Example:
        >>> [is_active(value) for value in (None, False, {}, "", 0, "x")]
        [False, False, False, False, True, True]
    """
    return not (value is None or value is False or (isinstance(value, str | list | dict) and not value))


def is_saved_module(config: Json, key: str) -> bool:
    """Whether a tensor belongs to a module saved whole: one of ``modules_to_save``, or an embedding.

    Example:
        >>> is_saved_module({"modules_to_save": ["score"]}, "base_model.model.score.weight")
        True
    """
    if not key.startswith(KEY_PREFIX):
        return False
    parts = key.removeprefix(KEY_PREFIX).split(".")[:-1]
    modules = [".".join(parts[: end + 1]) for end in range(len(parts))]
    saved = config.get("modules_to_save") or ()
    return any(module.endswith(name) for module in modules for name in saved) or any(
        part in _EMBEDDING_NAMES for part in parts
    )
