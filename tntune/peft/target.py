"""Targets: which modules PEFT is going to adapt, and which cannot be."""

import warnings

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _ExcludedModule
from torch import nn
from transformers.pytorch_utils import Conv1D

from tntune.errors import TargetError
from tntune.peft.config import TensorGuideConfig
from tntune.peft.linear import linear_sizes
from tntune.peft.plan import Sizes

__all__ = ["check_alone", "check_target", "chosen_targets", "is_bypassed"]


def chosen_targets(tuner: BaseTuner, config: TensorGuideConfig, model: nn.Module) -> dict[str, Sizes]:
    """Sizes of all modules that PEFT is going to adapt, by path, in its order.

    Raises:
        TargetTypeError: Where one of them is no linear layer.

    Example:
        >>> from peft import get_peft_model
        >>> config, base = TensorGuideConfig(target_modules=["0"]), nn.Sequential(nn.Linear(4, 3))
        >>> tuner = get_peft_model(nn.Sequential(nn.Linear(4, 3)), config).base_model
        >>> chosen_targets(tuner, config, base)
        {'0': (4, 3)}
    """
    wrapped = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    found = {}
    for name, module in model.named_modules():
        if not name or name.startswith(wrapped):
            continue
        chosen = tuner._check_target_module_exists(config, name)
        if chosen and not isinstance(chosen, _ExcludedModule):
            found[name] = linear_sizes(module, name)
    return found


def check_target(config: TensorGuideConfig, name: str, target: nn.Module, parent: nn.Module) -> None:
    """Raise where the target cannot be adapted; warn where ``fan_in_fan_out`` is not what it is.

    Raises:
        TargetTypeError: Where it is no linear layer.
        TargetError: Where its parent never calls it.

    Example:
        >>> check_target(TensorGuideConfig(), "fc", nn.Linear(4, 3), nn.Sequential())
    """
    linear_sizes(target, name)
    if isinstance(parent, nn.MultiheadAttention):
        raise TargetError(f"{name}: nn.MultiheadAttention never calls it, an adapter there would do nothing")
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    transposed = isinstance(base, Conv1D)
    if config.fan_in_fan_out not in (None, transposed):
        warnings.warn(
            f"{name} is a {type(base).__name__}; fan_in_fan_out={config.fan_in_fan_out} is not used for it",
            stacklevel=2,
        )


def check_alone(model: nn.Module, name: str, target: nn.Module) -> None:
    """Raise where the model holds the target at several places, of which PEFT would adapt one.

    Raises:
        TargetError: Naming the places.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> check_alone(model, "0", model[0])
    """
    places = [
        f"{path}.{child}".lstrip(".")
        for path, owner in model.named_modules()
        for child, module in owner._modules.items()
        if module is target
    ]
    if len(places) > 1:
        raise TargetError(
            f"{name}: is one module at {places}, and PEFT would adapt it at the first alone; give each "
            "place a module of its own, or adapt the model with tntune.adapt"
        )


def is_bypassed(model: nn.Module, name: str) -> bool:
    """Whether a module's forward is never called by its parent.

    Example:
        >>> is_bypassed(nn.Sequential(nn.MultiheadAttention(4, 2)), "0.out_proj")
        True
    """
    return isinstance(model.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
