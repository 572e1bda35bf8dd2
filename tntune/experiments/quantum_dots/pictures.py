"""A picture of generated diagrams: one dot and two, noise-free and measured."""

from pathlib import Path
from typing import Any

import torch

from tntune.errors import OutputError
from tntune.experiments.loading import extra
from tntune.experiments.quantum_dots.noise import LEVELS
from tntune.experiments.quantum_dots.sample import Device, double_dot, single_dot

__all__ = ["ROWS", "draw_diagrams"]

ROWS = ("none", "realistic", "harsh")
"""Names of the noise in each row."""

_PLACES = (
    (single_dot, 4),
    (single_dot, 13),
    (single_dot, 2),
    (double_dot, 5),
    (double_dot, 3),
    (double_dot, 8),
)


def draw_diagrams(path: Path) -> None:
    """Write a PNG: single dots with parallel lines and double dots with honeycombs, under each noise.

    Every column is one device. Axes are the gates' voltages in mV; colour is dI/dV of the charge sensor.

    Args:
        path: The file to write.

    Raises:
        UnsupportedError: Where matplotlib, the ``plots`` extra, is not installed.
        OutputError: Where the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     draw_diagrams(Path(folder) / "dots.png")
        ...     (Path(folder) / "dots.png").read_bytes()[1:4]
        b'PNG'
    """
    figure = extra("matplotlib.figure").Figure(figsize=(10.4, 5.5), layout="constrained")
    axes = figure.subplots(len(ROWS), len(_PLACES))
    for column, (make, seed) in enumerate(_PLACES):
        device = make(torch.Generator().manual_seed(seed))
        axes[0, column].set_title("one dot" if make is single_dot else "two dots", fontsize=9)
        for row, name in enumerate(ROWS):
            _draw(axes[row, column], device, name)
    for row, name in enumerate(ROWS):
        axes[row, 0].set_ylabel(f"noise: {name}\ngate 2 (mV)", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("gate 1 (mV)", fontsize=8)
    try:
        figure.savefig(path, dpi=72, metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _draw(axis: Any, device: Device, noise: str) -> None:
    """One diagram in its window of voltages."""
    window = device.window
    (x, y), span = window.origin, window.span
    diagram = device.diagram(LEVELS[noise], torch.Generator().manual_seed(0))
    low, high = diagram.quantile(torch.tensor([0.01, 0.99])).tolist()
    place = (x, x + span, y, y + span)
    style = {"origin": "lower", "cmap": "viridis", "interpolation": "nearest"}
    axis.imshow(diagram.numpy(), extent=place, vmin=low, vmax=high, **style)
    axis.tick_params(labelsize=6)
