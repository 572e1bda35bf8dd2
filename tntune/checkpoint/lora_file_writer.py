"""Writing single LoRA files in the style of the file that they replace."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tntune.checkpoint.lora import LoraSite
from tntune.checkpoint.lora_file import LoraFile
from tntune.checkpoint.lora_metadata import metadata_with_widths
from tntune.checkpoint.lora_writer import LoraEntry
from tntune.checkpoint.tensor_file import check_values, write_tensors
from tntune.errors import ModeError, SpecError
from tntune.files import new_file

__all__ = ["write_lora_file"]

_HASHES = ("sshs_model_hash", "sshs_legacy_hash")  # of the old tensors; readers make them anew


def write_lora_file(
    path: str | os.PathLike[str],
    entries: Iterable[LoraEntry],
    *,
    like: LoraFile,
    notes: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a LoRA file: ``open_lora_file(path)`` has the update ``scale * up @ down`` for each entry.

    Names, shapes of kernels, alphas and metadata are those of ``like`` where widths and scales are, so what
    was read is written bit for bit. Else the scale is chosen so that all readers agree on it, and the rest of
    it multiplied into ``up``: kohya's files get one alpha for all modules (that of ``like`` where it has one,
    else the largest width), since diffusers loses those of attention layers that differ; diffusers' files
    get alpha = r, hence scale 1, which readers without alphas or metadata assume.

    Args:
        path: The file to make.
        entries: The modules, each name once; those of ``like`` that are missing are left out.
        like: The file whose style is kept, and whose other tensors are carried along.
        notes: Texts to add to the metadata.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        SpecError: For no entry, a name twice, or one that ``like`` does not have.
        ModeError: Where factors do not fit each other, or the module.
        DtypeError: Where a factor does not hold floats of 16, 32 or 64 bits.
        NumericalError: Where a factor is not finite after its scale is multiplied in.
        OutputError: Where the file cannot be written; nothing was changed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> from tntune.checkpoint.lora_file import open_lora_file
        >>> tensors = {f"unet.fc.lora_{side}.weight": torch.ones(3, 3) for side in "AB"}
        >>> with TemporaryDirectory() as folder:
        ...     source, output = Path(folder) / "one.safetensors", Path(folder) / "two.safetensors"
        ...     save_file(tensors, source)
        ...     entry = LoraEntry("unet.fc", torch.ones(1, 3), torch.ones(3, 1), scale=3.0)
        ...     write_lora_file(output, [entry], like=open_lora_file(source))
        ...     written = open_lora_file(output)
        ...     down, up, scale = written.load(written.sites[0])
        >>> list(written.tensors.entries), down.sum().item(), up.sum().item(), scale
        (['unet.fc.lora_A.weight', 'unet.fc.lora_B.weight'], 3.0, 9.0, 1.0)
    """
    made = _by_name(entries)
    sites = {site.name: site for site in like.sites}
    strange = [name for name in made if name not in sites]
    if strange:
        raise SpecError(f"{strange[0]}: {like.path} has no such module")
    widths = {name: _check_entry(entry, sites[name]) for name, entry in made.items()}
    scales, alphas, metadata = _scaling(like, made, widths)
    tensors = {key: like.tensor(key) for key in like.passthrough}
    tensors |= {f"{name}.alpha": alpha for name, alpha in alphas.items()}
    for name, entry in made.items():
        tensors |= _factors(replace(entry, scale=entry.scale / scales[name]), sites[name], like)
    kept = {key: text for key, text in metadata.items() if key not in _HASHES}
    _save(Path(path), tensors, {**kept, **(notes or {})}, overwrite)


def _by_name(entries: Iterable[LoraEntry]) -> dict[str, LoraEntry]:
    """The entries, each name once and at least one."""
    made: dict[str, LoraEntry] = {}
    for entry in entries:
        if entry.name in made:
            raise SpecError(f"{entry.name}: two entries have this name")
        made[entry.name] = entry
    if not made:
        raise SpecError("there is no LoRA entry to write")
    return made


def _check_entry(entry: LoraEntry, site: LoraSite) -> int:
    """The width of an entry whose factors fit each other and the module."""
    down, up = tuple(entry.down.shape), tuple(entry.up.shape)
    fits = len(down) == len(up) == 2 and down[0] == up[1] > 0
    if not fits or (up[0], down[1]) != (site.out_features, site.in_features):
        raise ModeError(
            f"{entry.name}: down {down} and up {up} must be (width, {site.in_features}) "
            f"and ({site.out_features}, width)"
        )
    return down[0]


def _scaling(
    like: LoraFile, made: Mapping[str, LoraEntry], widths: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, str]]:
    """Of each module the scale that readers will apply and the alpha that says so; and the metadata."""
    before = {site.name: (site.width, site.scale) for site in like.sites}
    if before == {name: (widths[name], entry.scale) for name, entry in made.items()}:
        return {name: scale for name, (_, scale) in before.items()}, dict(like.alphas), dict(like.metadata)
    if like.style == "kohya":
        alpha = _common_alpha(like, widths)
        alphas = {name: _alpha(alpha, like) for name in widths}
        return {name: alpha / width for name, width in widths.items()}, alphas, _retold(like, widths, alpha)
    alphas = {name: _alpha(width, like) for name, width in widths.items() if name in like.alphas}
    metadata = dict(like.metadata) if like.alphas else metadata_with_widths(like.metadata, widths)
    return dict.fromkeys(widths, 1.0), alphas, metadata


def _common_alpha(like: LoraFile, widths: Mapping[str, int]) -> float:
    """The alpha of all modules of the file, or the largest new width where theirs differ."""
    found = {float(like.alphas[site.name]) if site.name in like.alphas else site.width for site in like.sites}
    return found.pop() if len(found) == 1 else max(widths.values())


def _alpha(alpha: float, like: LoraFile) -> Tensor:
    """An alpha as the file has them, in float32 where its dtype cannot hold the number."""
    usual = next(iter(like.alphas.values()), torch.tensor(0.0))
    value = torch.full_like(usual, alpha)
    return value if float(value) == alpha else torch.full_like(usual, alpha, dtype=torch.float32)


def _retold(like: LoraFile, widths: Mapping[str, int], alpha: float) -> dict[str, str]:
    """The metadata with width and alpha brought up to date, in the words of sd-scripts."""
    found = set(widths.values())
    fresh = {
        "ss_network_dim": str(found.pop()) if len(found) == 1 else "Dynamic",
        "ss_network_alpha": str(alpha),
    }
    return {key: fresh.get(key, text) for key, text in like.metadata.items()}


def _factors(entry: LoraEntry, site: LoraSite, like: LoraFile) -> dict[str, Tensor]:
    """Both tensors of a module, convolutions with their kernels."""
    tensors = {}
    for key, value in zip((site.down_key, site.up_key), entry.folded(), strict=True):
        check_values(key, value)
        tensors[key] = value
    down, up = (like.tensors.entries[key].shape for key in tensors)
    tensors[site.down_key] = tensors[site.down_key].reshape(-1, *down[1:])
    tensors[site.up_key] = tensors[site.up_key].reshape(up[0], -1, *up[2:])
    return tensors


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], overwrite: bool) -> None:
    """Write the file beside its place and move it there."""
    with new_file(path, overwrite=overwrite) as draft:
        write_tensors(draft, tensors, metadata=metadata)
