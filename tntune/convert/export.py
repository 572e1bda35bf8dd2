"""Exports: any linear adapter as a plain LoRA, without an SVD, and one member of a library alone."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tntune.checkpoint.library import open_library
from tntune.checkpoint.lora_writer import LoraEntry, write_lora
from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.checkpoint.tensorguide import TensorGuideFolder, open_tensorguide
from tntune.checkpoint.tensorguide_writer import write_groups
from tntune.convert.encode import check_stored, stored
from tntune.convert.gauge import delta_distance, delta_norm
from tntune.convert.jobs import Jobs
from tntune.convert.option import Encoded, factors_of
from tntune.convert.output import check_output
from tntune.convert.report import total_error
from tntune.errors import NumericalError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors

__all__ = ["ExportReport", "export_lora", "export_member"]


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        source: Folder read.
        output: LoRA folder written.
        layers: Number of layers.
        rank: Largest rank.
        params_before: Trainable entries of the maps.
        params_after: Entries of all factors.
        bytes_before: Size of the weights file before.
        bytes_after: Size of the weights file after.
        dtypes: Dtypes of the factors.
        relative_error: ``‖ΔW − ΔW'‖ / ‖ΔW‖``: rounding of the factors to their dtype, nothing else.

    Example:
        >>> ExportReport("a", "b", 1, 2, 9, 18, 90, 120, ("torch.float32",), 0.0).to_json()["rank"]
        2
    """

    source: str
    output: str
    layers: int
    rank: int
    params_before: int
    params_after: int
    bytes_before: int
    bytes_after: int
    dtypes: tuple[str, ...]
    relative_error: float

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {**asdict(self), "dtypes": list(self.dtypes)}


def export_lora(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    member: str | None = None,
    overwrite: bool = False,
    jobs: int = 1,
) -> ExportReport:
    """Write ``output``, a LoRA folder with the same ΔW, which stock PEFT loads with tntune uninstalled.

    The generated factors *are* LoRA factors: no SVD, no (out, in) matrix. They are contracted in float64 and
    rounded once, one layer at a time.

    Args:
        source: TensorGuide folder, or library.
        output: LoRA folder to write; whole or not at all.
        dtype: Dtype of the factors; by default that of each layer's params.
        member: Which adapter of a library.
        overwrite: Whether an existing adapter folder may be replaced.
        jobs: Processes that work on layers at a time; the result does not depend on it.

    Raises:
        DtypeError: For a dtype that is not of floating point, or of less than 16 bits.
        UnsupportedError: Where an activation is not linear: no LoRA computes that function.
        CheckpointError, NumericalError: Where the source cannot be read.
        TargetError: Where the library has no such member.
        OutputError: Where the output cannot be written.
        WorkerError: Where one of several jobs is killed.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.tensorguide_writer import write_tensorguide
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> tensors = {"lora_down": torch.ones(2, 5), "lora_up": torch.ones(3, 2)}
        >>> with TemporaryDirectory() as parent:
        ...     guide, lora = Path(parent) / "guide", Path(parent) / "lora"
        ...     write_tensorguide(guide, {"fc": (Site(LoRA(5, 3, 2)), tensors)}, config={})
        ...     report = export_lora(guide, lora)
        >>> report.layers, report.rank, report.relative_error < 1e-12
        (1, 2, True)
    """
    check_stored(dtype)
    check_output(source, output, overwrite=overwrite)
    folder = open_tensorguide(source, carry=True) if member is None else open_library(source).member(member)
    bytes_before = folder.num_bytes
    _check_linear(folder)
    with Jobs(jobs) as workers:
        made = list(workers.map(_Layers(folder, dtype), folder.sites))
    entries = [each.entry for each in made]
    write_lora(
        output,
        entries,
        base_config=folder.config,
        passthrough={name: folder.tensor(name) for name in folder.passthrough},
        overwrite=overwrite,
    )
    return ExportReport(
        source=str(source),
        output=str(output),
        layers=len(entries),
        rank=max(entry.down.shape[0] for entry in entries),
        params_before=folder.params,
        params_after=sum(entry.down.numel() + entry.up.numel() for entry in entries),
        bytes_before=bytes_before,
        bytes_after=(Path(output) / TENSORS_NAME).stat().st_size,
        dtypes=tuple(dict.fromkeys(str(entry.up.dtype) for entry in entries)),
        relative_error=total_error((each.squared_error for each in made), (each.norm for each in made)),
    )


def export_member(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    member: str,
    overwrite: bool = False,
) -> ExportReport:
    """Write ``output``, a TensorGuide folder of one member of a library: its tensors bit for bit.

    The bases stay shared over the layers, so it is small, and PEFT with tntune trains and serves it.

    Args:
        source: Library.
        output: TensorGuide folder to write; whole or not at all.
        member: Which adapter.
        overwrite: Whether an existing adapter folder may be replaced.

    Raises:
        CheckpointError, NumericalError: Where the source cannot be read.
        TargetError: Where the library has no such member.
        OutputError: Where the output cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.library import LibraryMember
        >>> from tntune.checkpoint.library_writer import write_library
        >>> from tntune.maps.group import Group
        >>> from tntune.maps.lora import LoRA
        >>> tensors = {"lora_down": torch.ones(2, 5), "lora_up": torch.ones(3, 2)}
        >>> group = Group(LoRA(5, 3, 2), ("one/fc",), (1.0,))
        >>> with TemporaryDirectory() as parent:
        ...     library, guide = Path(parent) / "library", Path(parent) / "guide"
        ...     write_library(library, {"one": LibraryMember({})}, {"5x3": (group, tensors)})
        ...     report = export_member(library, guide, member="one")
        ...     list(open_tensorguide(guide).sites)
        ['fc']
    """
    check_output(source, output, overwrite=overwrite)
    library = open_library(source)
    folder = library.member(member)
    write_groups(
        output,
        {name: (group, folder.load(group.modules[0])) for name, group in folder.groups.items()},
        config=folder.config,
        passthrough={name: folder.tensor(name) for name in folder.passthrough},
        metadata=folder.metadata,
        overwrite=overwrite,
    )
    return ExportReport(
        source=str(source),
        output=str(output),
        layers=len(folder.sites),
        rank=max(site.map.width for site in folder.sites.values()),
        params_before=library.params,
        params_after=folder.params,
        bytes_before=library.num_bytes,
        bytes_after=(Path(output) / TENSORS_NAME).stat().st_size,
        dtypes=tuple(str(dtype) for dtype in folder.dtypes),
        relative_error=0.0,
    )


def _check_linear(folder: TensorGuideFolder) -> None:
    for name, site in folder.sites.items():
        if not activation(site.activation).linear:
            raise UnsupportedError(
                f"{name}: has the activation {site.activation!r}, so no LoRA computes its function; "
                "serve it with tntune, or train with activation 'identity'"
            )


class _Exported(NamedTuple):
    """A layer as plain factors, and what they differ by."""

    entry: LoraEntry
    squared_error: float
    norm: float


@dataclass(frozen=True)
class _Layers:
    """What is done with each layer, in this process or in another."""

    folder: TensorGuideFolder
    dtype: torch.dtype | None

    def __call__(self, name: str) -> _Exported:
        site, tensors = self.folder.sites[name], self.folder.load(name)
        down, up = factors_of(Encoded(site, tensors))
        exact = Factors(down, site.scale * up)
        own = next(tensor.dtype for flat, tensor in tensors.items() if flat in site.map.param_shapes)
        try:
            down, up = (stored(factor, self.dtype or own) for factor in exact)
        except NumericalError as error:
            raise NumericalError(f"{self.folder.path}: {name}: {error}") from error
        gap = delta_distance(exact, Factors(down, up))
        return _Exported(LoraEntry(name, down, up), gap**2, delta_norm(exact))
