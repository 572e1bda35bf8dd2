"""Writing LoRA folders that stock PEFT loads, with tntune uninstalled."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tntune.checkpoint.config import carried
from tntune.checkpoint.embedding import embedding_scales
from tntune.checkpoint.tensor_file import TENSORS_NAME, check_values, write_tensors
from tntune.errors import ModeError, SpecError
from tntune.files import CARD_NAME, CONFIG_NAME, Json, new_folder, write_json, write_text
from tntune.maps.site import KEY_PREFIX

__all__ = ["LoraEntry", "lora_contents", "write_lora"]


@dataclass(frozen=True, slots=True, eq=False)
class LoraEntry:
    """One module to write: its weight update is ``scale * up @ down``.

    Attributes:
        name: Path of the module in the base model.
        down: (width, in_features), any float dtype, which is kept.
        up: (out_features, width).
        scale: Multiplied into ``up``, so that a reader who ignores patterns of alpha is right too.

    Example:
        >>> LoraEntry("h.0.fc", torch.ones(2, 5), torch.ones(3, 2), scale=0.5).folded()[1][0, 0].item()
        0.5
    """

    name: str
    down: Tensor
    up: Tensor
    scale: float = 1.0

    def folded(self) -> tuple[Tensor, Tensor]:
        """``(down, scale * up)``, rounded once, in the dtypes given."""
        if self.scale == 1.0:
            return self.down, self.up
        return self.down, (self.up.to(torch.float64) * self.scale).to(self.up.dtype)


def write_lora(
    path: str | os.PathLike[str],
    entries: Iterable[LoraEntry],
    *,
    base_config: Json,
    passthrough: Mapping[str, Tensor] | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a LoRA folder: ``open_lora(path)`` has the update ``scale * up @ down`` for each entry.

    Every module has alpha = r, hence scale 1, and is named by its whole path. The largest width is the
    default r; others are set by patterns that match one path exactly, which PEFT reads from 0.15 on. PEFT
    takes a target for the end of a path, so a module that was not adapted but whose path ends like an adapted
    one gets an adapter too, one that is zero.

    Args:
        path: The folder to make.
        entries: The modules, each name once.
        base_config: Configuration of the adapter that this one replaces; what concerns the base model, the
            task and modules saved whole is carried along.
        passthrough: Other tensors of that adapter, by their full keys, kept untouched.
        card: Text of README.md; none is written without.
        overwrite: As in :func:`tntune.files.new_folder`.

    Raises:
        SpecError: For no entry, a name twice, or a passthrough key that is a factor's.
        ModeError: Where factors do not fit each other; names the module.
        DtypeError: Where a factor does not hold floats of 16, 32 or 64 bits.
        NumericalError: Where a factor is not finite after its scale is multiplied in.
        OutputError: Where the folder cannot be written; nothing was changed.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora import open_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("h.0.fc", torch.ones(2, 5), torch.ones(3, 2), scale=0.5)
        ...     write_lora(Path(parent) / "lora", [entry], base_config={"task_type": "CAUSAL_LM"})
        ...     lora = open_lora(Path(parent) / "lora")
        >>> lora.config["task_type"], lora.sites[0].scale
        ('CAUSAL_LM', 1.0)
    """
    config, tensors = lora_contents(entries, base_config=base_config, passthrough=passthrough)
    with new_folder(path, overwrite=overwrite) as folder:
        write_json(folder / CONFIG_NAME, config)
        write_tensors(folder / TENSORS_NAME, tensors)
        if card is not None:
            write_text(folder / CARD_NAME, card)


def lora_contents(
    entries: Iterable[LoraEntry], *, base_config: Json, passthrough: Mapping[str, Tensor] | None = None
) -> tuple[Json, dict[str, Tensor]]:
    """``(configuration, tensors by key)`` of the folder that :func:`write_lora` writes; raises as it does.

    Example:
        >>> entry = LoraEntry("h.0.fc", torch.ones(2, 5), torch.ones(3, 2))
        >>> config, tensors = lora_contents([entry], base_config={})
        >>> config["r"], config["lora_alpha"], len(tensors)
        (2, 2, 2)
    """
    others = dict(passthrough or {})
    widths: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for entry in entries:
        if entry.name in widths:
            raise SpecError(f"{entry.name}: two entries have this name")
        widths[entry.name] = _check_entry(entry)
        for side, value in zip("AB", entry.folded(), strict=True):
            key = f"{KEY_PREFIX}{entry.name}.lora_{side}.weight"
            check_values(key, value)
            tensors[key] = value
    if not widths:
        raise SpecError("there is no LoRA entry to write")
    clash = sorted(tensors.keys() & others.keys())
    if clash:
        raise SpecError(f"{clash[0]}: is a factor and cannot be passed through")
    return _config(widths, others, base_config), {**tensors, **others}


def _check_entry(entry: LoraEntry) -> int:
    """The width of an entry whose factors fit each other."""
    down, up = tuple(entry.down.shape), tuple(entry.up.shape)
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        raise ModeError(f"{entry.name}: down {down} and up {up} must be (width, in) and (out, width)")
    return down[0]


def _config(widths: Mapping[str, int], others: Mapping[str, Tensor], base_config: Json) -> Json:
    """The adapter_config.json of modules of these widths."""
    default = max(widths.values())
    ranks: dict[str, int] = {name: width for name, width in widths.items() if width != default}
    alphas: dict[str, float] = dict(ranks)
    embeddings = embedding_scales(base_config, {key: tuple(value.shape) for key, value in others.items()})
    for name, (width, scale) in embeddings.items():
        ranks[name], alphas[name] = width, scale * width
    return {
        **carried(base_config),
        "peft_type": "LORA",
        "r": default,
        "lora_alpha": default,
        "rank_pattern": {_exactly(name): width for name, width in ranks.items()},
        "alpha_pattern": {_exactly(name): alpha for name, alpha in alphas.items()},
        "target_modules": [*widths, *embeddings],
        "lora_dropout": 0.0,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
    }


def _exactly(name: str) -> str:
    """A pattern that matches the module of this path and no other."""
    return "^" + re.escape(name)
