"""The tuner layer on a linear module: what it adds to the output, and how it is merged."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tntune.adapters.generator import without_autocast
from tntune.adapters.linear import through
from tntune.errors import MergeError, TargetTypeError
from tntune.maps.activation import activation
from tntune.peft.layer import TensorGuideLayer

__all__ = ["Linear", "is_linear", "linear_sizes"]


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
        >>> from tntune.peft.config import TensorGuideConfig
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
        down, up = self.chains(adapter)
        x = self._cast_input_dtype(x, down[0].dtype)
        if self.training:
            x = self.tensorguide_dropout[adapter](x)
        hidden = activation(self.activation[adapter]).function(through(x, down))  # (..., r)
        if self.scaling[adapter] != 1.0:
            hidden = hidden * self.scaling[adapter]
        return through(hidden, up)

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
