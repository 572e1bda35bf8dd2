"""Memory that a conversion takes, stated before it starts."""

from collections.abc import Iterable, Sequence

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.lora import LoraSite, LoraTensors
from tntune.convert.jobs import WORKER_BYTES
from tntune.convert.joint_side import CAP
from tntune.convert.resize_settings import ResizeSettings
from tntune.convert.settings import ConversionSettings

__all__ = ["conversion_memory", "resize_memory"]

_WIDE = 8  # bytes of a float64
_LIBRARIES = 48 * 2**20  # workspaces and code that are loaded when first used
_LAYER_COPIES = 16  # of one layer's factors, padded, in float64: its trains in two layouts and their sweeps
_RECORD = 20 * 2**10  # bytes of what is known of a layer: its names, options and report
_WRITTEN_COPIES = 3  # of the result, until it is on disk
_GRAM_COPIES = 4  # of a Gram matrix and the workspace of its eigenvectors


def conversion_memory(
    folder: LoraTensors, settings: ConversionSettings, *, calibration: Calibration | None = None
) -> int:
    """Bytes that :func:`tntune.convert.convert_lora` takes beyond what the process holds: an upper estimate.

    Layer by layer (methods ``"tensorguide"``, ``"svd"``, ``"auto"``) only one layer and the result are held;
    with several jobs each has a process, and a layer, of its own, and what they hold is counted too.
    Whole adapters (``"joint"``, and all methods with a calibration) are held in float64, twice, and three
    times with a calibration; the largest group of one shape twice more, and all that share bases once. A
    calibration, and a model that judges, are counted by whoever loads them.

    Args:
        folder: The opened LoRA.
        settings: What the conversion is to be.
        calibration: What it is to be weighed by.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from tntune.checkpoint import LoraEntry, open_lora, write_lora
        >>> from tntune.convert.target import Target
        >>> with TemporaryDirectory() as parent:
        ...     write_lora(Path(parent) / "lora", [LoraEntry("fc", torch.eye(2, 5), torch.eye(3, 2))],
        ...                base_config={})
        ...     lora = open_lora(Path(parent) / "lora")
        >>> conversion_memory(lora, ConversionSettings(Target(params=0.5))) // 2**20
        48
    """
    budget = settings.target.budget(folder.params)
    size = (settings.dtype or max(folder.dtypes, key=lambda each: each.itemsize)).itemsize
    result = _WRITTEN_COPIES * size * (folder.params if budget is None else min(budget, folder.params))
    if calibration is None and settings.method != "joint":
        return _LIBRARIES + result + _worked_on(folder.sites, _LAYER_COPIES, settings.jobs)
    settings.check_one_job()
    adapter = (2 if calibration is None else 3) * _WIDE * folder.params
    problems = _groups(folder.sites, calibration) + _streams(folder.sites)
    return _LIBRARIES + result + adapter + problems + _forms(folder.sites, calibration)


def resize_memory(opened: LoraTensors, settings: ResizeSettings) -> int:
    """Bytes that :func:`tntune.convert.resize_lora` takes beyond what the process holds: an upper estimate.

    One layer is held in float64, the result in its own dtype; jobs count as in :func:`conversion_memory`.

    Example:
        >>> resize_memory.__name__
        'resize_memory'
    """
    budget = settings.budget(opened.params)
    size = (settings.dtype or max(opened.dtypes, key=lambda each: each.itemsize)).itemsize
    result = _WRITTEN_COPIES * size * (opened.params if budget is None else min(budget, opened.params))
    return _LIBRARIES + result + _worked_on(opened.sites, _LAYER_COPIES // 2, settings.jobs)


def _worked_on(sites: Sequence[LoraSite], copies: int, jobs: int) -> int:
    """Bytes of what is known of all layers, of those that are worked on at a time, and of the processes."""
    layers = _RECORD * len(sites) + copies * _widest(sites) * jobs
    return layers if jobs == 1 else layers + jobs * WORKER_BYTES


def _widest(sites: Iterable[LoraSite]) -> int:
    """Bytes of the factors of the largest layer, both as long as the longer one, in float64."""
    return max(_WIDE * 2 * site.width * max(site.in_features, site.out_features) for site in sites)


def _groups(sites: Iterable[LoraSite], calibration: Calibration | None) -> int:
    """Bytes of the largest group while its problem is made, and of what is kept of all of them."""
    shapes: dict[tuple[int, int], int] = {}
    for site in sites:
        shape = (site.out_features, site.in_features)
        shapes[shape] = shapes.get(shape, 0) + site.width
    rows = max(2 * width * sum(shape) + _GRAM_COPIES * width**2 for shape, width in shapes.items())
    kept = 0
    for shape, width in shapes.items():
        reduced = CAP if calibration else min(CAP, width)
        kept += reduced * sum(shape) + 2 * reduced * (CAP + width)
    return _WIDE * (rows + kept)


def _streams(sites: Iterable[LoraSite]) -> int:
    """Bytes of all layers while the streams that they share are made, and of what is kept of them."""
    rows: dict[tuple[int, int], int] = {}
    for site in sites:
        for side in enumerate((site.in_features, site.out_features)):
            rows[side] = rows.get(side, 0) + site.width
    largest = max(
        2 * width * size + _GRAM_COPIES * min(width, size) ** 2 for (_, size), width in rows.items()
    )
    kept = sum(width * size + CAP * (size + CAP + width) for (_, size), width in rows.items())
    return _WIDE * (largest + kept)


def _forms(sites: Iterable[LoraSite], calibration: Calibration | None) -> int:
    """Bytes of each layer's reduced moments, and of the largest moment in float64."""
    if calibration is None:
        return 0
    moments = [*calibration.inputs.values(), *calibration.outputs.values()]
    kept = sum(2 * min(CAP, size) ** 2 for site in sites for size in (site.in_features, site.out_features))
    return _WIDE * (kept + max(moment.numel() for moment in moments))
