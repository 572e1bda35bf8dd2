"""The tuners: what ``get_peft_model`` and ``PeftModel.from_pretrained`` make of a configuration."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate import init_empty_weights
from peft import LoraConfig, PeftConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, get_quantization_kwargs
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tntune.adapters.forward_pass import ForwardPass, drop_passes
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.storage import check_whole
from tntune.checkpoint.lora_writer import LoraEntry, lora_contents, write_lora
from tntune.errors import TargetError, UnsupportedError
from tntune.maps.base import Shape
from tntune.maps.group import SHARED_KEY
from tntune.maps.site import GENERATOR_KEY
from tntune.peft.config import TensorGuideConfig
from tntune.peft.layer import TensorGuideLayer
from tntune.peft.linear import Linear, linear_sizes
from tntune.peft.plan import note_heads, plan_groups, plan_site
from tntune.peft.start import start_of_group, start_tensors
from tntune.peft.target import check_alone, check_target, chosen_targets, is_bypassed

__all__ = ["SharedTensorGuideModel", "TensorGuideModel"]

_DEFAULT_TARGETS: dict[str, list[str]] = {
    name: list(targets) for name, targets in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.items()
}


class TensorGuideModel(BaseTuner):
    """A model in which every target is ``base(x) + scale * up σ(down x)``, each with a map of its own.

    Made by ``get_peft_model(model, TensorGuideConfig(...))``; PEFT's documentation of ``LoraModel`` holds
    for it: several adapters, merging, disabling, deleting, ``inject_adapter_in_model``, quantised bases.

    Example:
        >>> from peft import get_peft_model
        >>> model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> adapted = get_peft_model(model, TensorGuideConfig(r=4, ranks=3, target_modules=["0", "2"]))
        >>> adapted.get_nb_trainable_parameters()
        (117, 257)
        >>> config, tensors = adapted.to_lora()
        >>> config.r, sorted(tensors)[0]
        (4, 'base_model.model.0.lora_A.weight')
    """

    prefix = "tensorguide_"
    tuner_layer_cls = TensorGuideLayer
    target_module_mapping = _DEFAULT_TARGETS
    uses_shared_state = False

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT does; from then on a call of the model generates in one go what it can."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        drop_passes(model)
        ForwardPass(model, [module for module in model.modules() if isinstance(module, TensorGuideLayer)])

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:  # type: ignore[override]
        """As PEFT does; the base model that it gives back has no hooks of ours."""
        base: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        drop_passes(base)
        return base  # type: ignore[no-any-return]

    def _prepare_model(self, peft_config: TensorGuideConfig, model: nn.Module) -> None:  # type: ignore[override]
        """Expand ``all-linear`` to what can be adapted, and forget sites of an earlier model."""
        peft_config.describe({})
        if peft_config.target_modules != "all-linear":
            return
        _maybe_include_all_linear_layers(peft_config, model)
        found = set(peft_config.target_modules or ())
        dead = sorted(name for name in found if is_bypassed(model, name))
        if dead:
            warnings.warn(f"not adapted, for nn.MultiheadAttention never calls them: {dead}", stacklevel=2)
            peft_config.target_modules = found - set(dead)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: TensorGuideConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        check_target(peft_config, current_key, target, parent)
        check_alone(self.model, current_key, target)
        if isinstance(target, TensorGuideLayer):
            if target.held is not self._shared():
                raise UnsupportedError(
                    f"{current_key}: has an adapter of TensorGuide's other kind; unload() it first"
                )
            self._adapt(target, peft_config, adapter_name, current_key)
            return
        layer = Linear(target, adapter_name, shared=self._shared(), **get_quantization_kwargs(self))
        self._adapt(layer, peft_config, adapter_name, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: Any, child_name: str, new_module: Any, child: nn.Module) -> None:
        """As PEFT does for a layer; a module that is given back keeps its own weight."""
        if isinstance(new_module, TensorGuideLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse what PEFT would drop in silence."""
        if kwargs.get("adapter_names") is not None:
            raise UnsupportedError(
                "adapter_names: an adapter for each row of a batch is known to LoRA alone; export first"
            )
        yield

    def _adapt(self, layer: TensorGuideLayer, config: TensorGuideConfig, adapter: str, module: str) -> None:
        """Add the adapter to one layer, and its site to the configuration."""
        site = plan_site(config, module, linear_sizes(layer.get_base_layer()))
        config.describe({**(config.sites or {}), module: site.to_json()})
        generator = FactorGenerator(site.map, *start_tensors(config, module, site))
        layer.update_layer(adapter, generator, scale=site.scale, activation=site.activation, config=config)

    def _shared(self) -> nn.ModuleDict | None:
        """The generators that layers share; none here."""
        return None

    def _layers(self, adapter: str) -> Iterator[tuple[str, TensorGuideLayer]]:
        """``(module path, layer)`` of every layer that has this adapter."""
        for name, module in self.model.named_modules():
            if isinstance(module, TensorGuideLayer) and adapter in module.tensorguide_site:
                yield name, module

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cores in float32 on a half-precision base, or in its dtype where that was asked for."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for _, layer in self._layers(adapter_name):
            layer.cast_adapter(adapter_name, autocast_adapter_dtype)

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Ours by key: PEFT compares keys with paths of modules, and below a unit of FSDP1 they differ."""
        own = {key: tensor for key, tensor in state_dict.items() if _is_generated(key)}
        shapes = _shapes(model)
        for key, tensor in own.items():
            check_whole(key, tensor, shapes.get(key))
        return own

    def _check_merge_allowed(self) -> None:
        """Refuse before the first layer is changed."""
        super()._check_merge_allowed()  # type: ignore[no-untyped-call]
        for module in self.model.modules():
            if isinstance(module, TensorGuideLayer):
                module.check_mergeable([a for a in self.active_adapters if a in module.tensorguide_site])

    def to_lora(self, adapter_name: str = "default") -> tuple[LoraConfig, dict[str, Tensor]]:
        """``(configuration, tensors)`` of the LoRA with the same ΔW, without an SVD or a matrix of its size.

        Modules saved whole are carried along. Keys are those of a checkpoint.

        Raises:
            TargetError: Where no layer has this adapter.
            UnsupportedError: Where its activation is not linear.
        """
        config, tensors = lora_contents(**self._lora(adapter_name))
        return LoraConfig(**config), tensors

    def save_as_lora(self, path: str | os.PathLike[str], adapter_name: str = "default") -> None:
        """Write the LoRA of :meth:`to_lora` as a folder that stock PEFT loads, with tntune uninstalled.

        Raises:
            TargetError, UnsupportedError: As :meth:`to_lora` does.
            OutputError: Where the folder exists already or cannot be written.
        """
        write_lora(path, **self._lora(adapter_name))

    def _lora(self, adapter: str) -> dict[str, Any]:
        """Entries, configuration and other tensors of the LoRA with the same ΔW."""
        layers = dict(self._layers(adapter))
        if not layers:
            raise TargetError(f"no layer has an adapter {adapter!r}; there are {sorted(self.peft_config)}")
        for layer in layers.values():
            layer.check_linear(adapter)
        config = {key: _plain(value) for key, value in self.peft_config[adapter].to_dict().items()}
        config["fan_in_fan_out"] = any(isinstance(each.get_base_layer(), Conv1D) for each in layers.values())
        saved = get_peft_model_state_dict(self, adapter_name=adapter)
        others = {f"base_model.{key}": tensor for key, tensor in saved.items() if not _is_generated(key)}
        entries = [_entry(name, layer, adapter) for name, layer in layers.items()]
        return {"entries": entries, "base_config": config, "passthrough": others}


class SharedTensorGuideModel(TensorGuideModel):
    """A model in which every target is a slice of one map: layer and projection are modes of its tensor.

    The maps belong to the tuner (``tensorguide_shared``), so that they are stored, trained and counted
    once. A call of the model generates all slices in one go; a layer that is called without the model around
    it generates its own, and so does one that a checkpoint recomputes where the pass kept nothing. Made by
    ``get_peft_model(model, SharedTensorGuideConfig(...))``.

    With several processes, reentrant activation checkpointing would give wrong gradients (a core is marked
    as ready at the first layer's backward); it is found at the first step and refused. Ask for
    ``gradient_checkpointing_kwargs={"use_reentrant": False}``.

    Example:
        >>> from peft import get_peft_model
        >>> from tntune.peft.config import SharedTensorGuideConfig
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> adapted = get_peft_model(model, SharedTensorGuideConfig(r=4, ranks=3, target_modules=["0", "2"]))
        >>> [name for name, parameter in adapted.named_parameters() if parameter.requires_grad][0]
        'base_model.tensorguide_shared.default.8x8.tt_core_0'
    """

    prefix = SHARED_KEY
    uses_shared_state = True

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        """Take over the trains of a tuner that the model has had, whose layers hold them; else begin."""
        held = (each.held for each in model.modules() if isinstance(each, TensorGuideLayer))
        self.tensorguide_shared = next((trains for trains in held if trains is not None), nn.ModuleDict())

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT does; the trainability of the other adapters' trains stays as it is."""
        before = [(p, p.requires_grad) for p in self.tensorguide_shared.parameters()]
        earlier = dict(self.tensorguide_shared.items()).get(adapter_name)
        self._adapter_to_inject = adapter_name
        self._empty = kwargs.get("low_cpu_mem_usage", False)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            if earlier is not None:
                self.tensorguide_shared[adapter_name] = earlier
            elif adapter_name in self.tensorguide_shared:
                del self.tensorguide_shared[adapter_name]
            raise
        for parameter, trains in before:
            parameter.requires_grad_(trains)

    def _prepare_model(self, peft_config: TensorGuideConfig, model: nn.Module) -> None:  # type: ignore[override]
        """Make the trains of all targets before any layer is made."""
        super()._prepare_model(peft_config, model)
        note_heads(peft_config, model)
        groups = plan_groups(peft_config, chosen_targets(self, peft_config, model))
        peft_config.describe({name: group.to_json() for name, group in groups.items()})
        with init_empty_weights() if self._empty else nullcontext():
            trains = {
                name: FactorGenerator(group.map, *start_of_group(peft_config, group))
                for name, group in groups.items()
            }
            self.tensorguide_shared[self._adapter_to_inject] = nn.ModuleDict(trains)
        places = {name: enumerate(group.modules) for name, group in groups.items()}
        self._places = {
            module: (name, index, groups[name]) for name, own in places.items() for index, module in own
        }

    def _adapt(self, layer: TensorGuideLayer, config: TensorGuideConfig, adapter: str, module: str) -> None:
        name, index, group = self._places[module]
        layer.update_layer(
            adapter,
            None,
            scale=group.scales[index],
            activation=group.activation,
            site=(name, index),
            config=config,
        )

    def _shared(self) -> nn.ModuleDict | None:
        return self.tensorguide_shared

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        own = f"{SHARED_KEY}.{adapter_name}."
        if own in key:
            return key.replace(own, f"{SHARED_KEY}.", 1)
        return str(super()._remove_adapter_name_from_key(key, adapter_name))


def _shapes(model: nn.Module) -> dict[str, Shape]:
    """The whole shapes of all generators' tensors, by the keys of an unwrapped model's state."""
    return {
        f"{path}.{flat}".replace("_fsdp_wrapped_module.", ""): shape
        for path, module in model.named_modules()
        if isinstance(module, FactorGenerator)
        for flat, shape in module.map.tensor_shapes.items()
    }


def _entry(name: str, layer: TensorGuideLayer, adapter: str) -> LoraEntry:
    down, up = layer.stored_factors(adapter)
    return LoraEntry(name, down.detach().cpu().contiguous(), up.detach().cpu().contiguous())


def _plain(value: object) -> object:
    """A field as JSON has it."""
    return sorted(value) if isinstance(value, set) else value


def _is_generated(key: str) -> bool:
    """Whether a key of a model or a checkpoint is of a map's tensor."""
    return not {GENERATOR_KEY, SHARED_KEY}.isdisjoint(key.split("."))
