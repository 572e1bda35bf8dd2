"""The tuner layer: a frozen linear layer with one map for each adapter beside it."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from tntune.adapters.generator import FactorGenerator, without_autocast
from tntune.errors import MergeError, TargetTypeError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.peft.config import TensorGuideConfig
from tntune.peft.recomputation import check_recomputation

__all__ = ["Linear", "TensorGuideLayer", "is_linear", "linear_sizes"]

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

    def factors(self, adapter: str) -> Factors:
        """Down ``(width, in)`` and up ``(out, width)`` of one adapter, as this call applies them.

        Raises:
            UnsupportedError: For shared trains, as :func:`tntune.peft.recomputation.check_recomputation`.
        """
        group, site = self.tensorguide_site[adapter]
        if group:
            check_recomputation()
        down, up = self.generator(adapter)(site)
        return Factors(down.squeeze(0), up.squeeze(0))

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


class Linear(nn.Module, TensorGuideLayer):
    """``base(x) + Σ scale * up σ(down x)`` on ``nn.Linear``, transformers' ``Conv1D`` or a quantised layer.

    Args:
        base_layer: The target, or the tuner layer around it.
        adapter_name: Name of the first adapter.
        shared: The tuner's generators by adapter; without them the layer holds its own.
        **kwargs: Of PEFT's quantisation backends.

    Raises:
        TargetTypeError: Where the target is no linear layer.

    Example:
        >>> from peft import get_peft_model
        >>> config = TensorGuideConfig(target_modules=["0"], init_weights=False)
        >>> layer = get_peft_model(nn.Sequential(nn.Linear(12, 8)), config).base_model.model[0]
        >>> x = torch.ones(1, 12)
        >>> before = layer(x)
        >>> layer.merge()
        >>> torch.allclose(layer.base_layer(x), before, atol=1e-5)
        True
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, *, shared: nn.ModuleDict | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        TensorGuideLayer.__init__(self, base_layer, **kwargs)
        self.in_features, self.out_features = linear_sizes(self.get_base_layer())
        self._active_adapter = adapter_name
        if shared is not None:
            del self.tensorguide_gen
            object.__setattr__(self, "tensorguide_gen", shared)  # known to the layer, but no part of it

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base's output with the active adapters on top of it, in the base's dtype."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self._base(x, *args, **kwargs)
        result = self._base(x, *args, **kwargs)
        if self.merged:
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for adapter in self.active_adapters:
            if adapter in self.tensorguide_site:
                result = result + self._adapted(adapter, x)
        return result.to(dtype)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``ΔW = scale * up @ down`` as the base stores its weight, in the dtype of the cores.

        Raises:
            UnsupportedError: Where σ is not linear, so that no matrix equals the adapter.
        """
        return self._delta(adapter).to(self.generator(adapter).weight.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """``base(x)`` becomes the adapted output, up to rounding; :meth:`unmerge` restores the weight.

        The base gets a new weight parameter, so that a module with which it was tied keeps its own, and the
        old one is kept for :meth:`unmerge`. A quantised base is dequantised, changed and quantised again.

        Args:
            safe_merge: Check that the new weight is finite before anything is changed.
            adapter_names: Adapters to merge; the active ones by default.

        Raises:
            UnsupportedError: Where σ is not linear, or the base's weight cannot be changed.
            MergeError: Where ``safe_merge`` finds an entry that is not finite.
        """
        named = check_adapters_to_merge(self, adapter_names)
        adapters = [adapter for adapter in named if adapter in self.tensorguide_site]
        self.check_mergeable(adapters)
        for adapter in adapters:
            self._shift_weight(self._delta(adapter), adapter if safe_merge else None)
            self.merged_adapters.append(adapter)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Undo :meth:`merge`: bit for bit; from a quantised base the deltas are subtracted."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        if self._unmerged:
            self.get_base_layer().weight = self._unmerged.pop()
            self.merged_adapters.clear()
        while self.merged_adapters:
            self._shift_weight(-self._delta(self.merged_adapters.pop()), None)

    def __repr__(self) -> str:
        return "tensorguide." + super().__repr__()

    def extra_repr(self) -> str:
        """The quantisation of the base, if there is one."""
        return str(quantization_extra_repr(self))

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return result

    def _adapted(self, adapter: str, x: Tensor) -> Tensor:
        """What one adapter adds."""
        down, up = self.factors(adapter)
        x = self._cast_input_dtype(x, down.dtype)
        if self.training:
            x = self.tensorguide_dropout[adapter](x)
        hidden = functional.linear(x, down.to(x))  # (..., r)
        hidden = activation(self.activation[adapter]).function(hidden)
        if self.scaling[adapter] != 1.0:
            hidden = hidden * self.scaling[adapter]
        return functional.linear(hidden, up.to(x))

    def _delta(self, adapter: str) -> Tensor:
        """ΔW in float32 at least: what is added to the base."""
        self.check_linear(adapter)
        down, up = self.stored_factors(adapter)
        wide = torch.promote_types(up.dtype, torch.float32)
        with without_autocast(up.device):
            delta = up.to(wide) @ down.to(wide)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def _shift_weight(self, delta: Tensor, checked: str | None) -> None:
        """Add to the base's weight; where an adapter is named, only if the sum is finite."""
        old = self.get_base_weight()
        new = (old.to(delta.dtype) + delta.to(old.device)).to(old.dtype)
        if checked is not None and not bool(torch.isfinite(new).all()):
            raise MergeError(
                f"NaNs detected in the merged weights. The adapter {checked} seems to be broken: "
                f"{int((~torch.isfinite(new)).sum())} entries are not finite"
            )
        if self.quantization_backend is not None:
            self.set_base_weight(new)
            return
        base: Any = self.get_base_layer()
        if not self._unmerged:
            self._unmerged = [base.weight]
        base.weight = nn.Parameter(new, requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear":
        """Move and cast the weight that waits for :meth:`unmerge` as well."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for weight in self._unmerged:
            weight.data = fn(weight.data)
        return self


def linear_sizes(module: nn.Module, name: str = "") -> tuple[int, int]:
    """``(in_features, out_features)`` of a linear layer of torch, transformers or a quantisation backend.

    Raises:
        TargetTypeError: For any other module, by name and type.

    Example:
        >>> linear_sizes(nn.Linear(4, 3))
        (4, 3)
    """
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if not is_linear(base):
        place = f"{name} ({type(base).__name__})" if name else type(base).__name__
        raise TargetTypeError(
            f"Target module {place} is not supported. Currently, only `torch.nn.Linear` (optionally "
            "quantized) and `transformers.pytorch_utils.Conv1D` are supported."
        )
    inputs, outputs = _get_in_out_features(base)
    assert inputs is not None  # a linear layer has both
    assert outputs is not None
    return inputs, outputs


def is_linear(base: nn.Module) -> bool:
    """Whether a module, not wrapped by a tuner layer, can be adapted.

    Example:
        >>> is_linear(nn.Linear(4, 3)), is_linear(nn.Embedding(4, 3))
        (True, False)
    """
    if isinstance(base, nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(base, get_apply_tensor_subclass=_no_subclass)
    return backend is not None and backend.layer_type == "linear"


def _no_subclass() -> None:
    """Stands for torchao's quantisation settings where only the type of a layer is asked for."""
