"""The tuner layer: a frozen linear layer with one map for each adapter beside it."""

from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import resolve_quantization_backend
from torch import nn

from tntune.adapters.generator import FactorGenerator
from tntune.errors import UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.maps.chain import Chains
from tntune.peft.config import TensorGuideConfig

__all__ = ["TensorGuideLayer"]

_CORE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class TensorGuideLayer(BaseTunerLayer):
    """``base(x) + Σ scale * up σ(down x)`` over the active adapters, with factors from generators.

    A generator of one target is a module of the layer; one that is shared belongs to the tuner, and the
    layer only knows where it is, so that it is stored, trained and counted once.

    Attributes:
        tensorguide_gen: The generator of each adapter, or its generators by group where they are shared.
        tensorguide_site: Group (empty for an own generator) and site of this layer, for each adapter.
        tensorguide_dropout: Dropout on the input, in training.
        scaling: s of each adapter.
        r: Width of each adapter.
        activation: Name of σ of each adapter.

    Example:
        >>> from peft import get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(12, 8)), TensorGuideConfig(target_modules=["0"]))
        >>> layer = model.base_model.model[0]
        >>> isinstance(layer, TensorGuideLayer), layer.scaling, layer.r
        (True, {'default': 1.0}, {'default': 8})
    """

    adapter_layer_names = ("tensorguide_gen",)
    other_param_names = ("tensorguide_site", "tensorguide_dropout", "scaling", "r", "activation")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self.tensorguide_gen = nn.ModuleDict()
        self.tensorguide_site: dict[str, tuple[str, int]] = {}
        self.tensorguide_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.r: dict[str, int] = {}
        self.activation: dict[str, str] = {}
        self._default_scaling: dict[str, float] = {}
        self.cast_input_dtype_enabled = True  # what peft.helpers.disable_input_dtype_casting switches
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: list[nn.Parameter] = []  # a list: nothing in it is registered
        self.kwargs = kwargs

    def update_layer(
        self,
        adapter: str,
        generator: FactorGenerator | None,
        *,
        scale: float,
        activation: str,
        site: tuple[str, int] = ("", 0),
        config: TensorGuideConfig,
    ) -> None:
        """Add an adapter, with a generator of its own or, for None, the shared one that ``site`` names."""
        if generator is not None:
            self.tensorguide_gen[adapter] = generator
        self.tensorguide_site[adapter] = site
        dropout = nn.Dropout(config.dropout) if config.dropout > 0 else nn.Identity()
        self.tensorguide_dropout[adapter] = dropout
        self.scaling[adapter] = self._default_scaling[adapter] = scale
        self.activation[adapter] = activation
        self.r[adapter] = self.generator(adapter).map.width
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def generator(self, adapter: str) -> FactorGenerator:
        """What makes the factors of an adapter; go through its call in a forward."""
        group, _ = self.tensorguide_site[adapter]
        held: Any = self.tensorguide_gen[adapter]
        found: FactorGenerator = held[group] if group else held
        return found

    def active_generators(self) -> tuple[FactorGenerator, ...]:
        """The generators that a forward calls now: none while adapters are merged or disabled.

        None either that FSDP1 has wrapped: it gathers params in the call of its wrapper, which a pass is not.
        """
        if self.merged or self.disable_adapters:
            return ()
        own = (self.generator(name) for name in self.active_adapters if name in self.tensorguide_site)
        return tuple(each for each in own if isinstance(each, FactorGenerator))

    @property
    def held(self) -> nn.ModuleDict | None:
        """The shared generators that this layer knows, which are its tuner's; None where it has its own."""
        own = "tensorguide_gen" in cast(nn.Module, self)._modules
        return None if own else self.tensorguide_gen

    @property
    def is_sharing(self) -> bool:
        """Whether the generator of an adapter serves other layers as well."""
        return any(group for group, _ in self.tensorguide_site.values())

    def chains(self, adapter: str) -> Chains:
        """The matrices of one adapter, as this call applies them.

        Raises:
            UnsupportedError: For shared maps, as :func:`tntune.adapters.recomputation.check_recomputation`.
        """
        _, site = self.tensorguide_site[adapter]
        found: Chains = self.generator(adapter)(site, Chains)
        return found

    def stored_factors(self, adapter: str) -> Factors:
        """The factors at the stored latent, with the scale in ``up``: what is merged and exported."""
        down, up = self.generator(adapter).stored(self.tensorguide_site[adapter][1])
        return Factors(down[0], self.scaling[adapter] * up[0])

    def check_linear(self, adapter: str) -> None:
        """Raise :class:`UnsupportedError` where the adapter is no matrix."""
        name = self.activation[adapter]
        if not activation(name).linear:
            raise UnsupportedError(
                f"adapter {adapter!r} has the activation {name!r}: it is no matrix, and can be neither "
                "merged nor converted to LoRA; keep it as a layer, or train with activation 'identity'"
            )

    def check_mergeable(self, adapters: list[str]) -> None:
        """Raise :class:`UnsupportedError` where an adapter is no matrix, or the base cannot take one."""
        for adapter in adapters:
            self.check_linear(adapter)
        backend = self.quantization_backend
        if adapters and backend is not None and not backend.supports_merge:
            raise UnsupportedError(
                f"weights of {backend.backend_name} cannot be changed, so nothing is merged"
            )

    def cast_adapter(self, adapter: str, upcast: bool) -> None:
        """Half-precision cores to float32, or all cores to the dtype of the base."""
        generator = self.generator(adapter)
        _, base_dtype = self._base_state()
        if upcast and generator.weight.dtype in (torch.float16, torch.bfloat16):
            generator.to(torch.float32)
        if not upcast and base_dtype in _CORE_DTYPES:
            generator.to(base_dtype)

    def scale_layer(self, scale: float) -> None:
        """Multiply the scale of the active adapters."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                self.scaling[adapter] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the scale of the active adapters, or restore the configuration's for None."""
        for adapter in self.active_adapters:
            if adapter in self.scaling:
                restored = self._default_scaling[adapter] if scale is None else self.scaling[adapter] / scale
                self.scaling[adapter] = restored

    def set_scale(self, adapter: str, scale: float) -> None:
        """Make the scale of one adapter ``scale`` times the configuration's."""
        if adapter in self.scaling:
            self.scaling[adapter] = scale * self._default_scaling[adapter]

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._default_scaling.pop(adapter_name, None)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move the cores to the base; they are widened to its float64, and never narrowed to its dtype."""
        if adapter_name not in self.tensorguide_site:
            return
        own, dtype = self._base_state()
        generator, target = self.generator(adapter_name), own if device is None else device
        if target is None or generator.weight.is_meta:
            return
        generator.to(target, torch.float64 if dtype == torch.float64 else None)

    def _base_state(self) -> tuple[torch.device | None, torch.dtype | None]:
        """Device and dtype of the base, as PEFT reads them; a quantised base has the dtype it computes in."""
        state: tuple[torch.device | None, torch.dtype | None] = self._get_base_layer_device_and_dtype(  # type: ignore[no-untyped-call]
            self.get_base_layer()
        )
        return state

    def _get_available_adapters(self) -> set[str]:
        return set(self.tensorguide_site)  # shared generators are of adapters on other layers too

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.tensorguide_site)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter is a matrix."""
        return activation(self.activation.get(adapter_name, "identity")).linear
