"""MethodComparison: one layer, several parametrisations: kernels, descents and radii side by side."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tntune.errors import ModeError, TargetError
from tntune.report.analysis import bound_json
from tntune.report.descent import Descent, descend
from tntune.report.kernel import LayerKernel, layer_kernel, spectrum_json
from tntune.report.layers import AdaptedLayer, adapted_layers, open_layers
from tntune.report.probe import Probe
from tntune.report.reference import reference_layers
from tntune.report.summary import folder_labels
from tntune.theory.spectrum import SpectrumReport

__all__ = ["Contender", "MethodComparison", "compare_methods"]


@dataclass(frozen=True, eq=False)
class Contender:
    """One parametrisation of the layer, at the parameters that it has.

    Attributes:
        label: Name of the folder, or of the method, its rank and its start.
        trained: Whether the parameters come from a folder; else they are freshly drawn.
        params: P.
        kernel: Its spectrum, with the common target; ``norm_squared`` is B², ``residual_fraction`` the floor.
        random_norm_squared: B² of random labels of norm 1.
        random_residual: Their floor.
        descent: Towards the common target; None where the kernel is zero, or there is no target.

    Example:
        >>> Contender.__name__
        'Contender'
    """

    label: str
    trained: bool
    params: int
    kernel: SpectrumReport
    random_norm_squared: float
    random_residual: float
    descent: Descent | None

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "label": self.label,
            "trained": self.trained,
            "params": self.params,
            "kernel": spectrum_json(self.kernel),
            "random_labels": {
                "norm_squared": self.random_norm_squared,
                "residual_fraction": self.random_residual,
            },
            "descent": self.descent and self.descent.to_json(),
            "bounds": [bound_json(bound) for bound in (self.descent.bounds if self.descent else ())],
        }


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """Contenders for the place of one layer, all on the same inputs, read-outs and target.

    Attributes:
        layer: Module path.
        shape: ``(out_features, in_features)``.
        samples: n of the kernels.
        contenders: The folders first, then fresh references of the first one's size.

    Example:
        >>> MethodComparison("fc", (3, 4), 8, ()).to_json()["layer"]
        'fc'
    """

    layer: str
    shape: tuple[int, int]
    samples: int
    contenders: tuple[Contender, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "layer": self.layer,
            "shape": list(self.shape),
            "samples": self.samples,
            "target": "what the first adapter adds to the layer, norm 1",
            "contenders": [each.to_json() for each in self.contenders],
        }


def compare_methods(
    folders: Sequence[str | os.PathLike[str]], probe: Probe, *, layer: str | None = None
) -> MethodComparison:
    """Kernel, descent and radius of one layer of each folder, and of what could stand in its place.

    The target y is what the first adapter adds to the layer's read-outs at the probe's inputs, of norm 1:
    every contender is asked to move its outputs by y. A folder without that layer is left out.

    Args:
        folders: LoRA or TensorGuide folders.
        probe: Inputs and read-outs.
        layer: Module path; by default the first folder's layer of the most parameters.

    Raises:
        TargetError: Where the first folder has no such layer.
        ModeError: Where the layer has other sizes in another folder.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("fc", torch.ones(2, 8), torch.ones(8, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     found = compare_methods([Path(parent) / "lora"], Probe(samples=4))
        >>> found.layer, found.contenders[0].label, len(found.contenders)
        ('fc', 'lora', 7)
    """
    own = _trained_layers(folders, layer)
    first = next(iter(own.values()))
    kernels = {label: layer_kernel(each, probe) for label, each in own.items()}
    target, samples = (found := next(iter(kernels.values()))).target, found.samples
    contenders = [
        _contender(label, own[label], kernel, target, probe, trained=True)
        for label, kernel in kernels.items()
    ]
    for label, each in reference_layers(first, seed=probe.seed).items():
        contenders.append(_contender(label, each, layer_kernel(each, probe), target, probe, trained=False))
    return MethodComparison(first.name, first.shape, samples, tuple(contenders))


def _find(folder: str | os.PathLike[str], name: str | None) -> AdaptedLayer | None:
    """The layer of that name, or the first of the most parameters where no name is given."""
    layers = adapted_layers(open_layers(folder))
    if name is None:
        return max(layers, key=lambda each: each.site.map.num_parameters)
    return next((each for each in layers if each.name == name), None)


def _trained_layers(folders: Sequence[str | os.PathLike[str]], name: str | None) -> dict[str, AdaptedLayer]:
    """The layer of that name in each folder that has it, by a label of the folder."""
    found: dict[str, AdaptedLayer] = {}
    for label, folder in zip(folder_labels(folders), folders, strict=True):
        layer = _find(folder, name)
        if layer is None and not found:
            raise TargetError(f"{folder}: has no adapted layer {name!r}")
        if layer is None:
            continue
        name = layer.name
        shape = next(iter(found.values()), layer).shape
        if layer.shape != shape:
            raise ModeError(f"{name}: is {layer.shape} in {folder}, but {shape} in {folders[0]}")
        found[label] = layer
    return found


def _contender(
    label: str, layer: AdaptedLayer, kernel: LayerKernel, target: Tensor, probe: Probe, *, trained: bool
) -> Contender:
    """One row of the comparison."""
    asked = kernel.spectrum
    if bool(target.any()):
        asked = SpectrumReport.from_factor(kernel.factor, rank_bound=asked.rank_bound, targets=target)
    random = SpectrumReport.from_factor(
        kernel.factor, rank_bound=asked.rank_bound, targets=probe.labels(len(target))
    )
    runs = bool(target.any()) and bool(asked.eigenvalues)
    return Contender(
        label=label,
        trained=trained,
        params=layer.site.map.num_parameters,
        kernel=asked,
        random_norm_squared=random.norm_squared or 0.0,
        random_residual=random.residual_fraction or 0.0,
        descent=descend(kernel.factor, -target) if runs else None,
    )
