"""The tangent kernel of one adapted layer, by the structure of the layer and of the train behind it."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tntune.errors import DtypeError, ModeError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors, Tensors
from tntune.maps.lora import LoRA
from tntune.maps.site import Site
from tntune.theory.ntk_aligned import aligned_trains, train_rows
from tntune.theory.ntk_result import Ntk
from tntune.theory.ntk_rows import Outer, gram

__all__ = ["layer_ntk"]

_CHUNK_ENTRIES = 2**21  # entries of w-gradients that are pulled back at once


def layer_ntk(
    site: Site, tensors: Tensors, x: Tensor, *, output: str = "full", gradients: Tensor | None = None
) -> Ntk:
    """Tangent kernel of ``f(x) = base(x) + scale * up σ(down x)`` over the params of the map.

    ``T[(i, c), (j, d)] = <∂f_c(x_i)/∂θ, ∂f_d(x_j)/∂θ>``. The gradient of down is x ⊗ v and that of up is
    δ ⊗ φ, so no Jacobian of the layer is formed. Where a bond parts features from width these products go
    through the train as they are (route ``"aligned"``); for other layouts the gradients are pulled back in
    chunks (route ``"pulled back"``).

    Args:
        site: Map, scale and activation; the map of one layer.
        tensors: Params and fixed in one dictionary.
        x: Inputs ``(n, in_features)``, float32 or float64; the kernel is computed in this dtype.
        output: ``"full"`` (n C, n C), ``"trace"`` (n, n) or ``"per_class"`` (C, n, n).
        gradients: Gradients ``(n, C, out_features)`` of the network's outputs by the layer's, where the layer
            sits inside a network; by default its own outputs are meant, with C = out_features.

    Returns:
        The kernel with one contribution for each parameter. O((n C)² (D + M)) for a LoRA.

    Raises:
        ModeError: Where x or the gradients have other sizes than the layer.
        DtypeError: For inputs that are neither float32 nor float64.
        UnsupportedError: For a map that serves several layers.

    Example:
        >>> site = Site(LoRA(3, 2, 1))
        >>> tensors = {"lora_down": torch.ones(1, 3), "lora_up": torch.ones(2, 1)}
        >>> layer_ntk(site, tensors, torch.ones(1, 3)).values.tolist()
        [[12.0, 3.0], [3.0, 12.0]]

    Statement: N1 and N2 in theory/ntk.md.
    """
    _check(site, x, gradients)
    own = {name: tensor.detach().to(x) for name, tensor in tensors.items()}
    down, up = _layer_gradients(site, own, x, gradients)
    params = {name: own[name] for name in site.map.param_shapes}
    trains = aligned_trains(site.map, params, down, up)
    rows: dict[str, tuple[Outer, ...]]
    if isinstance(site.map, LoRA):
        rows = {"lora_down": (Outer(*down),), "lora_up": (Outer(*up),)}
        route = "structure"
    elif trains is not None:
        rows = {name: terms for train in trains for name, terms in train_rows(train).items()}
        route = "aligned"
    else:
        rows = _pulled_back(site, own, down, up)
        route = "pulled back"
    return Ntk(gram(rows, output), output, route, rows)


def _check(site: Site, x: Tensor, gradients: Tensor | None) -> None:
    if site.map.sites != 1:
        raise UnsupportedError(
            f"the map serves {site.map.sites} layers, this kernel is of one; take ntk of the whole model"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"kernels are computed in float32 or float64, not {x.dtype}")
    if x.ndim != 2 or x.shape[1] != site.map.in_features:
        raise ModeError(f"inputs have shape (n, {site.map.in_features}), not {tuple(x.shape)}")
    wanted = (len(x), site.map.out_features)
    if gradients is not None and (gradients.ndim != 3 or (gradients.shape[0], gradients.shape[2]) != wanted):
        raise ModeError(f"gradients have shape ({wanted[0]}, C, {wanted[1]}), not {tuple(gradients.shape)}")


def _layer_gradients(
    site: Site, tensors: Tensors, x: Tensor, gradients: Tensor | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Gradients of down and up, each as a feature side and a width side ``(n | 1, C | 1, size)``."""
    down, up = (part[0] for part in site.factors(tensors))
    hidden = x @ down.mT  # (n, M)
    value, pull = torch.func.vjp(activation(site.activation).function, hidden)[:2]
    (slope,) = pull(torch.ones_like(hidden))  # (n, M)
    outward = torch.eye(len(up)).to(x)[None] if gradients is None else gradients.to(x)  # (n | 1, C, Q)
    inward = site.scale * (outward @ up) * slope[:, None]  # (n, C, M)
    return (x[:, None], inward), (outward, site.scale * value[:, None])


def _pulled_back(
    site: Site, tensors: Tensors, down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor]
) -> dict[str, tuple[Outer, ...]]:
    """Explicit rows: gradients of (down, up) for a few samples at a time, through the map's own vjp."""
    params = {name: tensors[name] for name in site.map.param_shapes}
    pull = torch.func.vjp(lambda own: site.map.factors(own, tensors), params)[1]
    samples, outputs = down[1].shape[:2]
    width = down[1].shape[2]
    entries = outputs * width * (site.map.in_features + site.map.out_features)
    parts: dict[str, list[Tensor]] = {name: [] for name in params}
    for cut in _chunks(samples, max(1, _CHUNK_ENTRIES // entries)):
        first = down[1][cut].unsqueeze(3) * down[0][cut].unsqueeze(2)  # (b, C, M, D)
        outward = up[0] if len(up[0]) == 1 else up[0][cut]
        second = outward.unsqueeze(3) * up[1][cut].unsqueeze(2)  # (b, C, Q, M)
        cotangent = Factors(first.flatten(0, 1).unsqueeze(1), second.flatten(0, 1).unsqueeze(1))
        (pulled,) = torch.func.vmap(pull)(cotangent)
        for name, gradient in pulled.items():
            parts[name].append(gradient.reshape(-1, outputs, math.prod(gradient.shape[1:])))
    return {name: (Outer(torch.cat(own)),) for name, own in parts.items()}


def _chunks(samples: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, samples, size))
