"""Reading single LoRA files, as kohya's scripts and diffusers write them, one module at a time."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tntune.checkpoint.lora import LoraSite, LoraTensors
from tntune.checkpoint.lora_keys import factor_key, refusal
from tntune.checkpoint.lora_metadata import METADATA_KEY, metadata_rules
from tntune.checkpoint.scale import ScaleRule
from tntune.checkpoint.tensor_file import TensorFile, open_safetensors
from tntune.errors import CheckpointError
from tntune.maps.site import KEY_PREFIX

__all__ = ["LoraFile", "open_lora_file"]

_LARGEST = 1e38


@dataclass(frozen=True)
class LoraFile(LoraTensors):
    """An opened LoRA file: names, shapes and scales are checked, values are read when asked for.

    Attributes:
        path: The file.
        style: ``"kohya"`` or ``"diffusers"``.
        metadata: Texts in the header of the file.
        sites: The adapted modules, named as in the file. A convolution counts as the matrix over its patches,
            ``in_features`` being input channels times kernel size.
        alphas: The alpha tensor of each site that has one, by the site's name.
        passthrough: Names of the tensors that are carried along untouched.
        tensors: The tensors as stored.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> key = "lora_unet_mid_block_conv"
        >>> tensors = {f"{key}.lora_down.weight": torch.ones(2, 5, 3, 3), f"{key}.alpha": torch.tensor(1.0)}
        >>> tensors[f"{key}.lora_up.weight"] = torch.ones(4, 2, 1, 1)
        >>> with TemporaryDirectory() as folder:
        ...     save_file(tensors, Path(folder) / "mine.safetensors")
        ...     lora = open_lora_file(Path(folder) / "mine.safetensors")
        ...     down, up, scale = lora.load(lora.sites[0])
        >>> lora.style, tuple(down.shape), tuple(up.shape), scale
        ('kohya', (2, 45), (4, 2), 0.5)
    """

    path: Path
    style: str
    metadata: Mapping[str, str]
    sites: tuple[LoraSite, ...]
    alphas: Mapping[str, Tensor] = field(repr=False)
    passthrough: tuple[str, ...]
    tensors: TensorFile = field(repr=False)

    def load(self, site: LoraSite) -> tuple[Tensor, Tensor, float]:
        """``(down, up, scale)`` of one site: down (r, in), up (out, r), update ``scale * up @ down``.

        Raises:
            NumericalError: Where an entry is NaN or infinite; names the file and the tensor.
        """
        down, up = self.tensors.load_factor(site.down_key), self.tensors.load_factor(site.up_key)
        return down.reshape(site.width, -1), up.reshape(-1, site.width), site.scale


def open_lora_file(path: str | os.PathLike[str], *, carry: bool = False) -> LoraFile:
    """Open a LoRA file so that every module's update is ``scale * up @ down``, or refuse it by name.

    The scale is alpha / r with the module's own ``alpha`` tensor, else what diffusers' metadata says, else 1.

    Args:
        path: A ``.safetensors`` file with factors named as by kohya's scripts (``lora_down``, ``lora_up``) or
            by any version of diffusers (``lora_A``, ``lora.down``, ``lora_linear_layer.down``,
            ``to_q_lora.down``, and their counterparts).
        carry: Keep unknown tensors as they are, instead of refusing the file. Parts of other methods (DoRA,
            LoHa, LoKr, OFT, GLoRA, (IA)^3, whole differences) are refused all the same.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.

    Example:
        >>> open_lora_file("nowhere.safetensors")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere.safetensors: not a whole safetensors file: ...

    Reference: sd-scripts, ``networks/lora.py``; diffusers, ``loaders`` and ``utils/state_dict_utils.py``.
    """
    path = Path(path)
    file, metadata = _opened(path)
    factors, style = _factors(file)
    rules = metadata_rules(metadata, (name.partition(".")[0] for name in factors), path)
    alphas = {name: file.load(f"{name}.alpha") for name in factors if f"{name}.alpha" in file.entries}
    if rules and alphas:
        raise CheckpointError(f"{path}: {METADATA_KEY}: stands beside alpha tensors; diffusers refuses both")
    scales = _Scales(path, alphas, rules)
    sites = tuple(_site(file, name, keys, scales) for name, keys in factors.items())
    used = {key for keys in factors.values() for key in keys.values()} | {f"{name}.alpha" for name in alphas}
    others = tuple(key for key in file.entries if key not in used)
    for key in others:
        _check_passthrough(path, key, carry)
    return LoraFile(path, style, metadata, sites, alphas, others, file)


@dataclass(frozen=True)
class _Scales:
    """Where the scale of a site may be stated."""

    path: Path
    alphas: Mapping[str, Tensor]
    rules: Mapping[str, ScaleRule]

    def of(self, name: str, width: int) -> float:
        """The scale alpha / r of one site."""
        if name in self.alphas:
            return self._alpha(name) / width
        component, _, module = name.partition(".")
        if component not in self.rules:
            return 1.0
        stated, scale = self.rules[component].of(module)
        if stated != width:
            raise CheckpointError(
                f"{self.path}: {METADATA_KEY}: says rank {stated} of {name}, its factors have {width}"
            )
        return scale

    def _alpha(self, name: str) -> float:
        value, key = self.alphas[name], f"{name}.alpha"
        if value.numel() != 1 or value.dtype == torch.bool or value.is_complex():
            raise CheckpointError(
                f"{self.path}: {key}: must be one real number, not {tuple(value.shape)} of {value.dtype}"
            )
        alpha = float(value)
        if not 0 < abs(alpha) < _LARGEST:
            raise CheckpointError(f"{self.path}: {key}: must be a finite number other than 0, not {alpha}")
        return alpha


def _opened(path: Path) -> tuple[TensorFile, dict[str, str]]:
    """The tensors and the texts of a file."""
    tensors = open_safetensors(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: changed on disk since it was opened: {error}") from error
    return tensors, metadata


def _factors(file: TensorFile) -> tuple[dict[str, dict[str, str]], str]:
    """For each module its two keys, by side; and the style of the file."""
    factors: dict[str, dict[str, str]] = {}
    styles: dict[str, str] = {}
    for key in file.entries:
        found = factor_key(key)
        if found is None:
            continue
        if key.startswith(KEY_PREFIX):
            raise CheckpointError(f"{file.path}: {key}: is PEFT's; give its folder, which has the scale")
        sides = factors.setdefault(found.name, {})
        if found.side in sides:
            raise CheckpointError(f"{file.path}: {key}: is the same factor as {sides[found.side]}")
        sides[found.side] = key
        styles.setdefault(found.style, key)
    if not factors:
        raise CheckpointError(f"{file.path}: {_nothing(file)}")
    if len(styles) > 1:
        raise CheckpointError(
            f"{file.path}: {styles['kohya']}: kohya's style beside diffusers' ({styles['diffusers']})"
        )
    return factors, next(iter(styles))


def _nothing(file: TensorFile) -> str:
    """What a file without LoRA factors holds instead."""
    found: Iterator[str] = (f"{key}: {reason}" for key in file.entries if (reason := refusal(key)))
    return next(found, "has no LoRA factors (lora_down/lora_up, lora_A/lora_B, lora.down/lora.up)")


def _site(file: TensorFile, name: str, keys: Mapping[str, str], scales: _Scales) -> LoraSite:
    """The site of two tensors, once their shapes agree."""
    key = next(iter(keys.values()))
    if len(keys) < 2:
        raise CheckpointError(f"{file.path}: {key}: its {'up' if 'down' in keys else 'down'} is missing")
    order = max(2, len(file.entries[keys["down"]].shape))
    down, up = file.check_factor(keys["down"], order), file.check_factor(keys["up"], order)
    if any(size != 1 for size in up.shape[2:]):
        raise CheckpointError(f"{file.path}: {keys['up']}: shape {up.shape} must have a kernel of size 1")
    width = down.shape[0]
    if up.shape[1] != width:
        raise CheckpointError(f"{file.path}: {keys['up']}: has rank {up.shape[1]}, down has {width}")
    return LoraSite(
        name=name,
        in_features=math.prod(down.shape[1:]),
        out_features=up.shape[0],
        width=width,
        scale=scales.of(name, width),
        down_key=keys["down"],
        up_key=keys["up"],
        dtype=torch.promote_types(down.dtype, up.dtype),
    )


def _check_passthrough(path: Path, key: str, carry: bool) -> None:
    """Raise where a tensor is part of another method, or is unknown and not to be carried."""
    reason = refusal(key)
    if reason is None and key.endswith(".alpha"):
        reason = "an alpha without factors"
    if reason is None and not carry:
        reason = "unknown tensor; carry=True keeps it as it is"
    if reason is not None:
        raise CheckpointError(f"{path}: {key}: {reason}")
