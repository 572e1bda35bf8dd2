"""Replacement: adapted layers that compute something else with the same factors."""

from collections.abc import Callable

from torch import Tensor, nn

from tntune.adapters.adapt import adapted_layers
from tntune.adapters.forward_pass import ForwardPass, drop_passes
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.errors import TargetError, UnsupportedError

__all__ = ["UnstoredGenerator", "is_owner", "refuse_storage", "replace_layers"]


class UnstoredGenerator(FactorGenerator):
    """A generator whose layer is more than a given base and a map: it has no place in an adapter folder.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> UnstoredGenerator.fresh(LoRA(4, 3, 2))().down.shape
        torch.Size([1, 2, 4])
    """

    def tensors(self) -> dict[str, Tensor]:
        """Refuse.

        Raises:
            UnsupportedError: Always; an adapter folder would drop a part of the function.
        """
        raise UnsupportedError(
            "an adapter folder holds maps alone, and this layer is more than its first base and a map: save "
            "the model's state_dict, or merge it and save the weights"
        )


def refuse_storage(layer: AdaptedLinear) -> None:
    """From now on the generator of the layer is an :class:`UnstoredGenerator`, and the same object.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> layer = AdaptedLinear(nn.Linear(4, 3), FactorGenerator.fresh(LoRA(4, 3, 2)))
        >>> refuse_storage(layer)
        >>> isinstance(layer.generator, UnstoredGenerator)
        True
    """
    layer.generator.__class__ = UnstoredGenerator


def is_owner(layer: AdaptedLinear) -> bool:
    """Whether the layer's generator is a part of it, and not of another that shares it.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> is_owner(AdaptedLinear(nn.Linear(4, 3), FactorGenerator.fresh(LoRA(4, 3, 2))))
        True
    """
    return "generator" in dict(layer.named_children())


def replace_layers(model: nn.Module, make: Callable[[AdaptedLinear], AdaptedLinear]) -> nn.Module:
    """Put ``make(layer)`` in place of every adapted layer, wherever the model holds it.

    Nothing is changed where one of them cannot be made. Adapter folders are refused from then on.

    Raises:
        TargetError: Where there are no adapted layers, or the model itself is one.
        UnsupportedError: Where a layer is merged, or computes something else already.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.adapters.spec import AdapterSpec
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), AdapterSpec())
        >>> replace_layers(model, lambda layer: layer) is model
        True
    """
    layers = dict(adapted_layers(model))
    if "" in layers:
        raise TargetError("the model itself is an adapted layer; put it into a container")
    for name, layer in layers.items():
        if layer.merged:
            raise UnsupportedError(f"{name}: is merged; unmerge the model first")
        if type(layer) is not AdaptedLinear:
            raise UnsupportedError(f"{name}: is a {type(layer).__name__} already; plug-ins do not stack")
    made = {layer: make(layer) for layer in layers.values()}
    for layer in made.values():
        refuse_storage(layer)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, AdaptedLinear) and module in made:
            model.set_submodule(name, made[module].train(module.training))
    drop_passes(model)
    ForwardPass(model, [layer for _, layer in adapted_layers(model)])
    return model
