"""Reading the LoRA folders that PEFT writes, one module at a time and without PEFT."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tntune.checkpoint.config import is_saved_module
from tntune.checkpoint.embedding import embedding_name
from tntune.checkpoint.lora_config import check_lora_config, target_rule
from tntune.checkpoint.scale import ScaleRule
from tntune.checkpoint.tensor_file import TensorFile, open_tensors
from tntune.errors import CheckpointError
from tntune.files import CONFIG_NAME, Json, read_json
from tntune.maps.site import KEY_PREFIX

__all__ = ["LoraFolder", "LoraSite", "LoraTensors", "open_lora"]

_FACTOR = re.compile(r"base_model\.model\.(?P<name>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_REFUSED = {
    "lora_magnitude_vector": "a DoRA magnitude rescales the updated weight; merge it into a plain LoRA first",
    "lora_B.bias": "a bias inside a LoRA layer is no part of a weight update",
    ".lora_": "an unknown part of a LoRA layer",
}


@dataclass(frozen=True, slots=True)
class LoraSite:
    """One adapted module: its weight update is ``scale * up @ down``, of shape (out_features, in_features).

    Attributes:
        name: Path of the module in the base model.
        in_features: Columns of ``down``.
        out_features: Rows of ``up``.
        width: Rows of ``down`` and columns of ``up``, the rank r of LoRA.
        scale: alpha / r, or alpha / sqrt(r) for rsLoRA.
        down_key: Name of the tensor ``down`` in the file.
        up_key: Name of the tensor ``up`` in the file.
        dtype: The wider of the two tensors' dtypes.
        fan_in_fan_out: What the configuration says of the base weights: stored as (in, out), as GPT-2's are.
            The factors are stored the same way in either case.

    Example:
        >>> LoraSite("h.0.fc", 4, 6, 2, 1.0, "a", "b", torch.float32).params
        20
    """

    name: str
    in_features: int
    out_features: int
    width: int
    scale: float
    down_key: str
    up_key: str
    dtype: torch.dtype
    fan_in_fan_out: bool = False

    @property
    def params(self) -> int:
        """Number of entries of both factors: r (in + out)."""
        return self.width * (self.in_features + self.out_features)


class LoraTensors:
    """What an opened LoRA says of its tensors, whether a folder or a single file holds them.

    Attributes:
        sites: The adapted modules.
        tensors: The tensors as stored.
    """

    sites: tuple[LoraSite, ...]
    tensors: TensorFile

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes that occur among the factors, each once."""
        keys = (key for site in self.sites for key in (site.down_key, site.up_key))
        return tuple(dict.fromkeys(self.tensors.entries[key].dtype for key in keys))

    @property
    def num_bytes(self) -> int:
        """Size of the weights file on disk."""
        return self.tensors.num_bytes

    @property
    def params(self) -> int:
        """Number of entries of all factors."""
        return sum(site.params for site in self.sites)

    @cached_property
    def by_name(self) -> Mapping[str, LoraSite]:
        """The adapted modules by their names."""
        return {site.name: site for site in self.sites}

    def tensor(self, name: str) -> Tensor:
        """A tensor by its name in the file, as stored; CheckpointError where there is none."""
        return self.tensors.load(name)


@dataclass(frozen=True)
class LoraFolder(LoraTensors):
    """An opened LoRA folder: names, shapes and scales are checked, values are read when asked for.

    Attributes:
        path: The folder.
        config: adapter_config.json as read.
        sites: The adapted modules, in the order of the file's key list.
        passthrough: Names of the tensors that are no factors and are carried along untouched: embeddings,
            modules saved whole, and with ``carry=True`` all that is outside LoRA.
        tensors: The tensors as stored.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.tensor_file import write_tensors
        >>> from tntune.files import write_json
        >>> key = "base_model.model.fc.lora_{}.weight"
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder)
        ...     write_json(path / "adapter_config.json", {"peft_type": "LORA", "r": 2, "lora_alpha": 4})
        ...     factors = {key.format("A"): torch.ones(2, 5), key.format("B"): torch.ones(3, 2)}
        ...     write_tensors(path / "adapter_model.safetensors", factors)
        ...     lora = open_lora(path)
        ...     down, up, scale = lora.load(lora.sites[0])
        >>> lora.sites[0].name, tuple(down.shape), tuple(up.shape), scale
        ('fc', (2, 5), (3, 2), 2.0)
    """

    path: Path
    config: Json
    sites: tuple[LoraSite, ...]
    passthrough: tuple[str, ...]
    tensors: TensorFile = field(repr=False)

    def load(self, site: LoraSite) -> tuple[Tensor, Tensor, float]:
        """``(down, up, scale)`` of one site, as stored: down (r, in), up (out, r), update scale * up @ down.

        Raises:
            NumericalError: Where an entry is NaN or infinite; names the file and the tensor.
        """
        return self.tensors.load_factor(site.down_key), self.tensors.load_factor(site.up_key), site.scale


def open_lora(folder: str | os.PathLike[str], *, carry: bool = False) -> LoraFolder:
    """Open a LoRA folder so that every module's update is ``scale * up @ down``, or refuse it by name.

    Only names, shapes and dtypes are read here; :meth:`LoraFolder.load` reads one module's factors. The scale
    honours ``lora_alpha``, ``use_rslora``, ``rank_pattern`` and ``alpha_pattern`` as PEFT does.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors, or adapter_model.bin.
        carry: Keep unknown tensors outside LoRA, trained biases and trained token rows as they are, instead
            of refusing the folder. Variants of LoRA itself, whose update differs, are refused all the same.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.

    Example:
        >>> open_lora("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    path = Path(folder)
    config = read_json(path / CONFIG_NAME)
    check_lora_config(config, path / CONFIG_NAME, carry=carry)
    rule = ScaleRule.from_config(config, path / CONFIG_NAME)
    file = open_tensors(path)
    factors = _factor_keys(file)
    if not factors:
        raise CheckpointError(f"{file.path}: has no LoRA factors ({KEY_PREFIX}<module>.lora_A.weight)")
    wanted = target_rule(config)
    sites = tuple(_site(file, name, keys, rule, config, wanted) for name, keys in factors.items())
    used = {key for keys in factors.values() for key in keys.values()}
    others = tuple(key for key in file.entries if key not in used)
    for key in others:
        _check_passthrough(file, key, config, carry)
    return LoraFolder(path, config, sites, others, file)


def _factor_keys(file: TensorFile) -> dict[str, dict[str, str]]:
    """For each module its two keys, by side; at most one adapter name in the whole file."""
    keys: dict[str, dict[str, str]] = {}
    adapters: dict[str | None, str] = {}
    for key in file.entries:
        match = _FACTOR.fullmatch(key)
        if not match:
            continue
        adapters.setdefault(match["adapter"], key)
        if len(adapters) > 1:
            first, second = adapters
            raise CheckpointError(
                f"{file.path}: {key}: adapter name {second!r} beside {first!r}; one is read"
            )
        keys.setdefault(match["name"], {})[match["side"]] = key
    return keys


def _site(
    file: TensorFile,
    name: str,
    keys: Mapping[str, str],
    rule: ScaleRule,
    config: Json,
    wanted: Callable[[str], bool],
) -> LoraSite:
    """The site of two tensors, once their shapes, the configuration and each other agree."""
    key = next(iter(keys.values()))
    if len(keys) < 2:
        raise CheckpointError(f"{file.path}: {key}: lora_{'B' if 'A' in keys else 'A'} is missing")
    if ".base_layer" in name:
        raise CheckpointError(f"{file.path}: {key}: a LoRA inside a wrapped layer is not supported")
    if not wanted(name):
        raise CheckpointError(f"{file.path}: {key}: target_modules of {CONFIG_NAME} do not name this module")
    for side in keys.values():
        if len(file.entries[side].shape) > 2:
            raise CheckpointError(f"{file.path}: {side}: shape {file.entries[side].shape} is a convolution's")
    down, up = file.check_factor(keys["A"], 2), file.check_factor(keys["B"], 2)
    width, scale = rule.of(name)
    if down.shape[0] != width:
        raise CheckpointError(
            f"{file.path}: {keys['A']}: has rank {down.shape[0]}, {CONFIG_NAME} says {width}"
        )
    if up.shape[1] != width:
        raise CheckpointError(f"{file.path}: {keys['B']}: has rank {up.shape[1]}, lora_A has {width}")
    return LoraSite(
        name=name,
        in_features=down.shape[1],
        out_features=up.shape[0],
        width=width,
        scale=scale,
        down_key=keys["A"],
        up_key=keys["B"],
        dtype=torch.promote_types(down.dtype, up.dtype),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
    )


def _check_passthrough(file: TensorFile, key: str, config: Json, carry: bool) -> None:
    """Raise where a tensor changes a LoRA layer, or is unknown and not to be carried."""
    if embedding_name(key):
        return
    for part, reason in _REFUSED.items():
        if part in key:
            raise CheckpointError(f"{file.path}: {key}: {reason}")
    if not (carry or is_saved_module(config, key)):
        raise CheckpointError(f"{file.path}: {key}: unknown tensor; carry=True keeps it as it is")
