"""What the configuration of a LoRA folder may say without being more, or other, than plain LoRA."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tntune.checkpoint.config import CARRIED_KEYS, check_carried, check_names, is_active
from tntune.checkpoint.expression import check_expression, matches
from tntune.errors import CheckpointError
from tntune.files import Json
from tntune.maps.group import SHARED_PEFT_TYPE
from tntune.maps.site import LIBRARY_PEFT_TYPE, PEFT_TYPE

__all__ = ["check_lora_config", "target_rule"]

_READ_BY = {
    PEFT_TYPE: "; tntune round and export read it",
    SHARED_PEFT_TYPE: "; tntune export makes a LoRA of it",
    LIBRARY_PEFT_TYPE: "; tntune export --member makes a LoRA of an adapter in it",
}
_PLAIN_KEYS = frozenset(CARRIED_KEYS) | {
    "alpha_pattern",
    "corda_config",
    "eva_config",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "runtime_config",
    "target_modules",
    "use_rslora",
}
_REFUSED_KEYS = {
    "alora_invocation_tokens": "an activated LoRA acts on some tokens only",
    "arrow_config": "routed adapters have no single weight update",
    "ensure_weight_tying": "tied adapters are not plain LoRA; train or save without tying",
    "kasa_config": "KaSA changes the base weights and adds a diagonal between the factors",
    "layer_replication": "the base model has replicated layers",
    "lora_bias": "biases inside LoRA layers are no part of a weight update",
    "megatron_config": "Megatron's parallel layers hold parts of the factors",
    "monteclora_config": "MonteCLoRA adds random samples to the factors",
    "target_parameters": "adapters of bare parameters (MoE experts) are not read",
    "use_bdlora": "block-diagonal factors are not read",
    "use_dora": "DoRA rescales the updated weight; merge it into a plain LoRA first",
    "use_qalora": "QA-LoRA pools the input in groups",
    "velora_config": "VeLoRA stores projections beside the factors",
}
_STARTS = ("gaussian", "eva", "orthogonal", "mica")


def check_lora_config(config: Json, file: Path, *, carry: bool) -> None:
    """Raise unless the update of every module is ``scale * up @ down`` and nothing else.

    Args:
        config: The content of adapter_config.json.
        file: Its path, for messages.
        carry: Let trained biases and embedding rows pass, which are kept as tensors beside the factors.

    Raises:
        CheckpointError: Naming the key: another method than LoRA, a variant of LoRA, an initialisation that
            changed the base weights, or an unknown key that is set.

    Example:
        >>> check_lora_config({"peft_type": "LORA", "use_qalora": True}, Path("c.json"), carry=False)
        Traceback (most recent call last):
        tntune.errors.CheckpointError: c.json: use_qalora: QA-LoRA pools the input in groups
    """
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        hint = next((text for name, text in _READ_BY.items() if name == kind), "")
        raise CheckpointError(f"{file}: peft_type: must be 'LORA', not {kind!r}{hint}")
    for key, value in config.items():
        if key in _PLAIN_KEYS or not is_active(value):
            continue
        reason = _REFUSED_KEYS.get(key, f"unknown option {value!r} may change the weights")
        raise CheckpointError(f"{file}: {key}: {reason}")
    _check_start(config.get("init_lora_weights"), file)
    check_carried(config, file, carry=carry)
    targets = config.get("target_modules")
    if isinstance(targets, str):
        check_expression(targets, f"{file}: target_modules")
    else:
        check_names(targets, f"{file}: target_modules")


def target_rule(config: Json) -> Callable[[str], bool]:
    """Whether the module of a path is one that ``target_modules`` asks for, by PEFT's rule.

    A question costs the length of the path, however many names the list has.

    Example:
        >>> wanted = target_rule({"target_modules": ["fc"]})
        >>> [wanted(name) for name in ("h.0.fc", "fc", "h.0.xfc")]
        [True, True, False]
    """
    targets = config.get("target_modules")
    if targets is None or targets == "all-linear":
        return lambda name: True
    if isinstance(targets, str):
        return partial(matches, targets)
    ends = frozenset(f".{target}" for target in targets)
    return lambda name: any(end in ends for end in _ends(f".{name}"))


def _ends(path: str) -> Iterator[str]:
    """What of a path follows each of its dots, dot included."""
    return (path[at:] for at, character in enumerate(path) if character == ".")


def _check_start(start: Any, file: Path) -> None:
    """Raise where the adapter was trained on base weights that its initialisation had changed."""
    if not isinstance(start, bool | None) and str(start).lower() not in _STARTS:
        raise CheckpointError(
            f"{file}: init_lora_weights: {start!r} changed the base weights; "
            "save with PEFT's path_initial_model_for_weight_conversion to get a plain LoRA"
        )
