"""AdapterAnalysis: all that theory says of an adapter folder, layer by layer, as one value."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tntune.convert.gauge import delta_norm
from tntune.convert.progress import Progress
from tntune.maps.activation import activation
from tntune.report.conditioning import LayerJacobian, layer_jacobian
from tntune.report.kernel import LayerSpectrum, layer_kernel
from tntune.report.kernel_bounds import generalisation, kernel_bounds
from tntune.report.layers import AdaptedLayer, adapted_layers, open_layers
from tntune.report.probe import Probe
from tntune.theory.bound import Bound

__all__ = ["AdapterAnalysis", "LayerAnalysis", "analyze_adapter", "bound_json"]


@dataclass(frozen=True, eq=False)
class LayerAnalysis:
    """One layer: what it is, its Jacobian, its kernel, and every bound with what it bounds.

    Attributes:
        layer: The layer without its tensors.
        norm: ``|ΔW|``, Frobenius, scale included; None where the adapter is nonlinear.
        jacobian: Of its weights by its parameters.
        kernel: Spectrum of its tangent kernel on the probe.
        bounds: All of them.

    Example:
        >>> LayerAnalysis.__name__
        'LayerAnalysis'
    """

    layer: AdaptedLayer
    norm: float | None
    jacobian: LayerJacobian
    kernel: LayerSpectrum
    bounds: tuple[Bound, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        layer, map = self.layer, self.layer.site.map
        return {
            "name": layer.name,
            "kind": map.kind,
            "shape": list(layer.shape),
            "layout": layer.layout,
            "modes": layer.modes,
            "ranks": layer.ranks,
            "width": map.width,
            "scale": layer.site.scale,
            "activation": layer.site.activation,
            "params": map.num_parameters,
            "norm": self.norm,
            "jacobian": self.jacobian.to_json(),
            "kernel": self.kernel.to_json(),
            "bounds": [bound_json(bound) for bound in self.bounds],
        }


@dataclass(frozen=True, eq=False)
class AdapterAnalysis:
    """An adapter folder, analysed.

    Attributes:
        path: The folder.
        peft_type: What its configuration says it is.
        base_model: The model that it adapts, where the configuration says so.
        params: Trainable entries of all layers.
        num_bytes: Size of the weights file.
        layers: In the folder's order.

    Example:
        >>> AdapterAnalysis("a", "LORA", None, 0, 0, ()).to_json()["params"]
        0
    """

    path: str
    peft_type: str
    base_model: str | None
    params: int
    num_bytes: int
    layers: tuple[LayerAnalysis, ...]

    def layer(self, name: str) -> LayerAnalysis | None:
        """The layer of that path, where there is one."""
        return next((each for each in self.layers if each.layer.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "path": self.path,
            "peft_type": self.peft_type,
            "base_model": self.base_model,
            "params": self.params,
            "bytes": self.num_bytes,
            "layers": [layer.to_json() for layer in self.layers],
        }


def analyze_adapter(
    folder: str | os.PathLike[str], probe: Probe, *, progress: Progress | None = None
) -> AdapterAnalysis:
    """Jacobian, kernel and bounds of every layer of a LoRA or TensorGuide folder; deterministic, float64.

    Args:
        folder: What :func:`tntune.checkpoint.open_adapter` reads.
        probe: What kernels are taken on.
        progress: Called after every layer.

    Raises:
        CheckpointError, NumericalError: Where the folder cannot be read.
        ModeError: Where the probe's inputs do not fit a layer.
        UnsupportedError: For a map without a Jacobian by structure.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> import torch
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("fc", torch.eye(2, 5), torch.eye(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     found = analyze_adapter(Path(parent) / "lora", Probe(samples=4))
        >>> found.layers[0].jacobian.spectrum.nullity, all(bound.holds for bound in found.layers[0].bounds
        ...                                                if bound.label != "E26+")
        (4, True)
    """
    opened = open_layers(folder)
    total, layers = len(opened.sites), []
    for layer in adapted_layers(opened):
        layers.append(_analyzed(layer, probe))
        if progress is not None:
            progress(str(folder), len(layers), total)
    config = opened.config
    return AdapterAnalysis(
        path=str(folder),
        peft_type=config["peft_type"],
        base_model=config.get("base_model_name_or_path"),
        params=opened.params,
        num_bytes=opened.num_bytes,
        layers=tuple(layers),
    )


def bound_json(bound: Bound) -> dict[str, Any]:
    """All fields of a bound with whether it holds and by which ratio.

    Example:
        >>> bound_json(Bound("T6", "rank T <= 12", 12, 9, ("rank of up is 4",)))["holds"]
        True
    """
    return {
        **asdict(bound),
        "assumptions": list(bound.assumptions),
        "holds": bound.holds,
        "slack": bound.slack,
    }


def _analyzed(layer: AdaptedLayer, probe: Probe) -> LayerAnalysis:
    """One layer; its tensors and gradients are not kept."""
    jacobian = layer_jacobian(layer)
    kernel = layer_kernel(layer, probe, rank_bound=jacobian.rank_bound)
    bounds: Sequence[Bound] = (
        *jacobian.bounds,
        *kernel_bounds(layer, kernel, jacobian),
        *generalisation(kernel, probe),
    )
    return LayerAnalysis(
        layer=AdaptedLayer(layer.name, layer.site, {}),
        norm=_norm(layer),
        jacobian=jacobian,
        kernel=kernel.summary(layer),
        bounds=tuple(bounds),
    )


def _norm(layer: AdaptedLayer) -> float | None:
    """``|ΔW|`` from the factors, without forming it; None for a nonlinear adapter, which has no ΔW."""
    if not activation(layer.site.activation).linear:
        return None
    return abs(layer.site.scale) * delta_norm(layer.factors)
