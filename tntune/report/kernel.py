"""LayerKernel: the tangent kernel of one adapted layer, by its structure, and its spectrum."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tntune.report.layers import AdaptedLayer
from tntune.report.probe import Probe
from tntune.theory.bounds import kernel_rank_bound
from tntune.theory.ntk_layer import layer_ntk
from tntune.theory.spectrum import SpectrumReport

__all__ = ["LayerKernel", "LayerSpectrum", "layer_kernel", "narrowed", "spectrum_json", "spread"]


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The spectrum of one layer's kernel, without the kernel.

    Attributes:
        name: Module path.
        params: P.
        samples: n.
        outputs: C.
        spectrum: Of the kernel, n C x n C.
        route: How its gradients were made.
        shares: Share of the trace of each parameter tensor.

    Example:
        >>> report = SpectrumReport.from_factor(torch.diag(torch.tensor([2.0, 1.0])))
        >>> LayerSpectrum("fc", 2, 2, 1, report, "structure", {"lora_up": 1.0}).spread
        0.4
    """

    name: str
    params: int
    samples: int
    outputs: int
    spectrum: SpectrumReport
    route: str
    shares: dict[str, float]

    @property
    def spread(self) -> float | None:
        """``λ_min⁺ n C / tr T``: the least eigenvalue over the mean one, free of every scale."""
        return spread(self.spectrum)

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "route": self.route,
            "samples": self.samples,
            "outputs": self.outputs,
            **spectrum_json(self.spectrum),
            "shares": self.shares,
        }


@dataclass(frozen=True, eq=False)
class LayerKernel:
    """``T = A Aᵀ`` of one layer on a probe.

    Attributes:
        factor: A with ``T = A Aᵀ``, sample-major and triangular: no more columns than rows.
        spectrum: Its spectrum, with the adapter's own outputs as targets.
        route: How the gradients were made.
        inputs: x (n, in_features).
        readouts: Orthonormal directions (C, out_features).
        target: What the adapter adds to the read-outs at the probe's inputs, n C entries of norm 1: what it
            was trained to do. Zero where it adds nothing.
        shares: Share of the trace of each parameter tensor.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> tensors = {"lora_down": torch.eye(1, 3).double(), "lora_up": torch.eye(4, 1).double()}
        >>> layer = AdaptedLayer("fc", Site(LoRA(3, 4, 1)), tensors)
        >>> kernel = layer_kernel(layer, Probe(samples=2))
        >>> kernel.factor.shape, kernel.spectrum.size, kernel.route
        (torch.Size([8, 7]), 8, 'structure')
    """

    factor: Tensor
    spectrum: SpectrumReport
    route: str
    inputs: Tensor
    readouts: Tensor
    target: Tensor
    shares: dict[str, float]

    @property
    def samples(self) -> int:
        """Number n of inputs."""
        return len(self.inputs)

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.readouts)

    def summary(self, layer: AdaptedLayer) -> LayerSpectrum:
        """What is worth keeping: all but the gradients."""
        return LayerSpectrum(
            name=layer.name,
            params=layer.site.map.num_parameters,
            samples=self.samples,
            outputs=self.outputs,
            spectrum=self.spectrum,
            route=self.route,
            shares=self.shares,
        )


def layer_kernel(layer: AdaptedLayer, probe: Probe, *, rank_bound: int | None = None) -> LayerKernel:
    """The kernel of the probe's read-outs of a layer's outputs, over the params of its map.

    Args:
        layer: The layer.
        probe: Inputs and read-outs.
        rank_bound: P less the nullity, where known. What else the structure admits is found here: T6 with
            the width as the rank of up, E24 where up is zero, params whose gradient vanishes identically.

    Raises:
        ModeError: Where inputs do not fit the layer.
        UnsupportedError: For a map that serves several layers.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> tensors = {"lora_down": torch.eye(1, 3).double(), "lora_up": torch.zeros(4, 1).double()}
        >>> layer = AdaptedLayer("fc", Site(LoRA(3, 4, 1)), tensors)
        >>> layer_kernel(layer, Probe(samples=5)).spectrum.lambda_min
        0.0
    """
    x = probe.inputs_of(layer.name, layer.shape[1])
    readouts = probe.readouts(layer.shape[0])
    kernel = layer_ntk(layer.site, layer.tensors, x, gradients=readouts.expand(len(x), -1, -1))
    gradients = kernel.factor()
    own = (layer(x) @ readouts.mT).flatten()
    norm = float(own.norm())
    target = own / norm if norm else own
    at_rest = not bool(layer.factors.up.any())  # then only up moves outputs, along σ(down x) alone
    structure = [
        len(readouts) * min(layer.factors.down.shape[0], len(x)) if at_rest else len(gradients),
        int((gradients != 0).any(0).sum()),
        kernel_rank_bound(len(x), len(readouts), layer.site.map.factor_width),
        gradients.shape[1] if rank_bound is None else rank_bound,
    ]
    factor = narrowed(gradients)
    spectrum = SpectrumReport.from_factor(factor, rank_bound=min(structure), targets=target)
    traces = {name: float(part.diagonal().sum()) for name, part in kernel.per_layer().items()}
    total = math.fsum(traces.values())
    shares = {name: trace / total if total else 0.0 for name, trace in traces.items()}
    return LayerKernel(factor, spectrum, kernel.route, x, readouts, target, shares)


def spread(spectrum: SpectrumReport) -> float | None:
    """The least eigenvalue above 0 over the mean of all; None for the zero matrix.

    Example:
        >>> spread(SpectrumReport.from_factor(torch.eye(2)))
        1.0
    """
    least = spectrum.lambda_min_plus
    return None if least is None else least * spectrum.size / spectrum.trace


def spectrum_json(spectrum: SpectrumReport) -> dict[str, Any]:
    """The numbers of a spectrum report, ``lambda_min`` None where the precision cannot tell it.

    Example:
        >>> spectrum_json(SpectrumReport.from_factor(torch.eye(2)))["condition"]
        1.0
    """
    return {
        "size": spectrum.size,
        "rank_bound": spectrum.rank_bound,
        "rank": spectrum.rank,
        "lambda_max": spectrum.lambda_max,
        "lambda_min": spectrum.lambda_min,
        "lambda_min_upper": spectrum.lambda_min_upper,
        "lambda_min_plus": spectrum.lambda_min_plus,
        "condition": spectrum.cond_plus,
        "lambda_min_plus_over_mean": spread(spectrum),
        "trace": spectrum.trace,
        "effective_ranks": {
            "stable": spectrum.stable_rank,
            "participation": spectrum.participation_rank,
            "entropy": spectrum.entropy_rank,
        },
        "residual_fraction": spectrum.residual_fraction,
        "norm_squared": spectrum.norm_squared,
        "zero_threshold": spectrum.zero_threshold,
        "method": spectrum.method,
        "eigenvalues": list(spectrum.eigenvalues),
    }


def narrowed(wide: Tensor) -> Tensor:
    """A matrix of the same Gram ``A Aᵀ`` with as few columns as rows: its singular values cost less.

    Example:
        >>> narrowed(torch.ones(2, 9)).shape
        torch.Size([2, 2])
    """
    if wide.shape[1] <= wide.shape[0]:
        return wide
    r: Tensor = torch.linalg.qr(wide.mT, mode="r").R
    return r.mT
