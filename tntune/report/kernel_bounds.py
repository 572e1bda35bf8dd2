"""Bounds of one layer's kernel: T5, T6 and equation 26, and what its radius says of generalisation."""

import math

import torch
from torch import Tensor
from torch.func import jacrev

from tntune.maps.activation import activation
from tntune.maps.lora import LoRA
from tntune.maps.site import Site
from tntune.report.compact import compact
from tntune.report.conditioning import LayerJacobian, layer_blocks
from tntune.report.kernel import LayerKernel, narrowed
from tntune.report.layers import AdaptedLayer
from tntune.report.probe import Probe
from tntune.theory.bound import Bound
from tntune.theory.bounds import kernel_rank
from tntune.theory.generalisation import interpolation_bound, kappa_bound, rademacher_bound
from tntune.theory.ntk_layer import layer_ntk
from tntune.theory.spectrum import SpectrumReport

__all__ = ["generalisation", "kernel_bounds"]

_ROUNDING = 1e-6  # ratios of small eigenvalues carry their relative errors, as in theory.kernel_interval
_EQUATION_26 = "λ_min(T) >= λ_min(G Gᵀ) λ_min(J Jᵀ)"
_READ_WITH_PLUS = "λ_min(T) >= λ_min(G Gᵀ) λ_min⁺(J Jᵀ)"


def kernel_bounds(layer: AdaptedLayer, kernel: LayerKernel, jacobian: LayerJacobian) -> tuple[Bound, ...]:
    """T5 from below and above, the paper's equation 26 beside it in both readings, and T6.

    Equation 26 as printed is empty wherever J has fewer columns than rows; read with λ_min⁺ it is no theorem,
    and its row says whether it happens to hold here. T5 needs the spectrum of J by trains; where a map has
    none, or that takes too long (``EXACT_PARAMETERS``), T6 is returned alone.

    Example:
        >>> from tntune.report.conditioning import layer_jacobian
        >>> from tntune.report.kernel import layer_kernel
        >>> tensors = {"lora_down": torch.eye(1, 3).double(), "lora_up": torch.eye(4, 1).double()}
        >>> layer = AdaptedLayer("fc", Site(LoRA(3, 4, 1)), tensors)
        >>> found = kernel_bounds(layer, layer_kernel(layer, Probe(samples=2)), layer_jacobian(layer))
        >>> [bound.label for bound in found]
        ['T5', 'T5', 'E26', 'E26+', 'T6']
    """
    rank = kernel_rank(
        kernel.factor,
        samples=kernel.samples,
        up_rank=layer.site.map.factor_width,
        effective_dimension=jacobian.rank_bound,
    )
    if jacobian.spectrum is None or not layer.has_trains:
        return (rank,)
    if not jacobian.spectrum.values or not kernel.spectrum.eigenvalues:
        return (rank,)
    return (*_interval(layer, kernel, jacobian), *_equation_26(layer, kernel, jacobian), rank)


def generalisation(kernel: LayerKernel, probe: Probe) -> tuple[Bound, ...]:
    """N7 for the adapter's own function as target, and the complexities of the ball of that radius.

    ``B² = yᵀ T⁺ y`` is the squared distance in parameters that the linearised layer needs to move its
    read-outs by y, of norm 1. Equation 20 needs a loss on data, which an adapter folder does not hold.

    Example:
        >>> tensors = {"lora_down": torch.eye(1, 3).double(), "lora_up": torch.eye(4, 1).double()}
        >>> from tntune.report.kernel import layer_kernel
        >>> probe = Probe(samples=2)
        >>> kernel = layer_kernel(AdaptedLayer("fc", Site(LoRA(3, 4, 1)), tensors), probe)
        >>> [(bound.label, bound.holds) for bound in generalisation(kernel, probe)]
        [('N7', True), ('E18', True), ('E19', True)]
    """
    if not bool(kernel.target.any()):
        return ()
    interpolation = interpolation_bound(kernel.factor, kernel.target)
    radius = math.sqrt(kernel.spectrum.norm_squared or 0.0)
    complexities = (
        bound(kernel.factor, radius, samples=kernel.samples, generator=probe.generator(3))
        for bound in (rademacher_bound, kappa_bound)
    )
    return (interpolation, *complexities)


def _interval(layer: AdaptedLayer, kernel: LayerKernel, jacobian: LayerJacobian) -> tuple[Bound, Bound]:
    """T5 as ``theory.kernel_interval`` states it, with G P Gᵀ from A instead of a dense G."""
    assert jacobian.spectrum is not None
    inner = SpectrumReport.from_factor(_projected(layer, kernel)).eigenvalues
    ratios = [value / base for value, base in zip(kernel.spectrum.eigenvalues, inner, strict=False)]
    least, most = jacobian.spectrum.values[-1], jacobian.spectrum.values[0]
    assumption = (f"T and G P Gᵀ at the same parameters, G the gradients by {_weights(jacobian)}",)
    lower = Bound("T5", "λ_i(T) >= δ λ_i(G P Gᵀ)", least, min(ratios), assumption, "lower", _ROUNDING)
    upper = Bound("T5", "λ_i(T) <= |J|² λ_i(G P Gᵀ)", most, max(ratios), assumption, "upper", _ROUNDING)
    return lower, upper


def _projected(layer: AdaptedLayer, kernel: LayerKernel) -> Tensor:
    """G in an orthonormal basis of ran J, train by train."""
    if layer.is_product:
        return _projected_product(layer, kernel)
    blocks, rows = layer_blocks(layer), _gradients(layer, kernel)
    parts = torch.split(rows, [block.num_parameters for block in blocks], dim=1)
    made = [compact(block).whitened(part) for block, part in zip(blocks, parts, strict=True)]
    return narrowed(torch.cat(made, dim=1))


def _projected_product(layer: AdaptedLayer, kernel: LayerKernel) -> Tensor:
    """The same for ΔW = up · down, where P = P_U ⊗ 1 + (1 − P_U) ⊗ P_V, U = ran up, V = row space of down."""
    down, up = layer.factors
    u, v = _range(up), _range(down.mT)
    h, x = kernel.readouts, layer.site.scale * kernel.inputs
    rest = h - h @ u @ u.mT
    return narrowed(torch.cat([torch.kron(narrowed(x), h @ u), torch.kron(x @ v, narrowed(rest))], dim=1))


def _range(matrix: Tensor) -> Tensor:
    """Orthonormal columns that span those of a matrix."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    kept: Tensor = u[:, s > max(matrix.shape) * torch.finfo(s.dtype).eps * s[0]]
    return kept


def _gradients(layer: AdaptedLayer, kernel: LayerKernel) -> Tensor:
    """A ``(n C, P)`` by autodiff, columns in the order of the entries of the params.

    The rows of :func:`tntune.theory.layer_ntk` have the same Gram, but columns in an order of their own.
    """
    sigma = activation(layer.site.activation).function

    def outputs(params: dict[str, Tensor]) -> Tensor:
        down, up = (part[0] for part in layer.site.map.factors(params, layer.tensors))
        added: Tensor = layer.site.scale * sigma(kernel.inputs @ down.mT) @ up.mT @ kernel.readouts.mT
        return added.flatten()

    own = {name: layer.tensors[name] for name in layer.site.map.param_shapes}
    return torch.cat([part.flatten(1) for part in jacrev(outputs)(own).values()], dim=1)


def _equation_26(layer: AdaptedLayer, kernel: LayerKernel, jacobian: LayerJacobian) -> tuple[Bound, Bound]:
    """The paper's product of least eigenvalues, as printed and read with λ_min⁺."""
    assert jacobian.spectrum is not None
    gradients, entries = _weight_gradients(layer, kernel)
    outer = SpectrumReport.from_factor(gradients).lambda_min or 0.0
    plus = jacobian.spectrum.values[-1]
    printed = plus if jacobian.spectrum.rank == entries else 0.0
    measured = kernel.spectrum.lambda_min or 0.0
    empty = f"λ_min(J Jᵀ) = 0 wherever rank J is below the {entries:,} entries of {_weights(jacobian)}"
    false = "none under which it is a theorem: G may point where no parameter moves the weights"
    return (
        Bound("E26", _EQUATION_26, outer * printed, measured, (empty,), "lower", _ROUNDING),
        Bound("E26+", _READ_WITH_PLUS, outer * plus, measured, (false,), "lower", _ROUNDING),
    )


def _weight_gradients(layer: AdaptedLayer, kernel: LayerKernel) -> tuple[Tensor, int]:
    """A matrix with the Gram ``G Gᵀ``, and the number of entries of the weights that G differentiates by."""
    out_features, in_features = layer.shape
    if layer.is_delta:  # rows h_c ⊗ x_i with orthonormal h
        x = layer.site.scale * kernel.inputs
        return torch.kron(x, torch.eye(kernel.outputs, dtype=x.dtype)), out_features * in_features
    width = layer.site.map.factor_width
    free = Site(LoRA(in_features, out_features, width), layer.site.scale, layer.site.activation)
    tensors = dict(zip(free.map.param_shapes, layer.factors, strict=True))
    gradients = kernel.readouts.expand(kernel.samples, -1, -1)
    rows = layer_ntk(free, tensors, kernel.inputs, gradients=gradients).factor()
    return narrowed(rows), width * (in_features + out_features)


def _weights(jacobian: LayerJacobian) -> str:
    """What the Jacobian is of, in symbols."""
    return "ΔW" if jacobian.of == "delta" else "(down, up)"
