"""AdapterKernels: the tangent kernel of every layer of an adapter folder, on inputs of that layer."""

import os
from dataclasses import dataclass
from typing import Any

from tntune.convert.progress import Progress
from tntune.report.conditioning import nullity_by_shape
from tntune.report.kernel import LayerSpectrum, layer_kernel
from tntune.report.layers import adapted_layers, open_layers
from tntune.report.probe import Probe

__all__ = ["AdapterKernels", "adapter_kernels"]


@dataclass(frozen=True, eq=False)
class AdapterKernels:
    """Spectra of the kernels of single layers; their sum means nothing, as each layer has its own inputs.

    Attributes:
        path: The folder.
        params: Trainable entries of all layers.
        layers: In the folder's order.

    Example:
        >>> AdapterKernels("lora", 0, ()).to_json()
        {'path': 'lora', 'params': 0, 'layers': []}
    """

    path: str
    params: int
    layers: tuple[LayerSpectrum, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        layers = [{"name": each.name, "params": each.params, **each.to_json()} for each in self.layers]
        return {"path": self.path, "params": self.params, "layers": layers}


def adapter_kernels(
    folder: str | os.PathLike[str], probe: Probe, *, progress: Progress | None = None
) -> AdapterKernels:
    """The kernel of every layer by its structure; deterministic, float64.

    Args:
        folder: LoRA or TensorGuide folder.
        probe: Inputs and read-outs of each layer.
        progress: Called after every layer.

    Raises:
        CheckpointError, NumericalError: Where the folder cannot be read.
        ModeError: Where the probe's inputs do not fit a layer.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("fc", torch.eye(2, 5), torch.eye(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     found = adapter_kernels(Path(parent) / "lora", Probe(samples=4))
        >>> found.layers[0].name, found.layers[0].spectrum.size
        ('fc', 12)
    """
    opened = open_layers(folder)
    total, layers = len(opened.sites), []
    for layer in adapted_layers(opened):
        empty = nullity_by_shape(layer) or 0
        bound = layer.site.map.num_parameters - empty
        layers.append(layer_kernel(layer, probe, rank_bound=bound).summary(layer))
        if progress is not None:
            progress(str(folder), len(layers), total)
    return AdapterKernels(str(folder), opened.params, tuple(layers))
