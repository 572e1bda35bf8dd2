"""Jacobians of maps: by structure, whatever the number of entries, and by autodiff where that is small."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from torch.func import jacrev

from tntune.errors import UnsupportedError
from tntune.maps.base import Tensors, WeightMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.latent_train import LatentTrain
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA
from tntune.theory.readout import readout_train
from tntune.theory.spectrum import SpectrumReport
from tntune.theory.train_jacobian import TrainJacobian
from tntune.tt.decompose import tt_svd
from tntune.tt.train import cores as cores_of

__all__ = ["MapJacobian", "delta_jacobian", "jacobian", "map_jacobian"]


@dataclass(frozen=True, eq=False)
class MapJacobian:
    """J of ``θ -> w = (down, up)`` of a map: one :class:`TrainJacobian` for each train, side by side.

    Attributes:
        blocks: The trains in the order of the map's params; J is block diagonal.

    Example:
        >>> MapJacobian((TrainJacobian.plain([torch.ones(1, 3, 1)]),)).effective_dimension
        3

    Statement: T0 in theory/jacobian.md.
    """

    blocks: tuple[TrainJacobian, ...]

    @property
    def num_parameters(self) -> int:
        """P: entries of all params."""
        return sum(block.num_parameters for block in self.blocks)

    def gram(self) -> Tensor:
        """``JᵀJ`` (P, P), exact."""
        return _block_diagonal([block.gram() for block in self.blocks])

    def factor(self) -> Tensor:
        """``C = QᵀJ`` (D, P) with ``CᵀC = JᵀJ``, not squared."""
        return _block_diagonal([block.factor() for block in self.blocks])

    def matvec(self, v: Tensor) -> Tensor:
        """``JᵀJ v`` for v of shape (..., P), without P x P entries."""
        parts = torch.split(v, [block.num_parameters for block in self.blocks], dim=-1)
        made = [block.matvec(part) for block, part in zip(self.blocks, parts, strict=True)]
        return torch.cat(made, dim=-1)

    def operator(self) -> LinearOperator:
        """``JᵀJ`` as scipy's linear operator, for Lanczos and the like; it computes where the params lie."""
        device = self.blocks[0].cores[0].device

        def product(v: np.ndarray) -> np.ndarray:
            columns = torch.from_numpy(np.ascontiguousarray(v.reshape(self.num_parameters, -1).T))
            return self.matvec(columns.to(device)).T.cpu().numpy().reshape(v.shape)

        shape = (self.num_parameters, self.num_parameters)
        return LinearOperator(shape, matvec=product, rmatvec=product, matmat=product, dtype=np.float64)

    def singular_values(self) -> Tensor:
        """Singular values of J, descending; those past its rank are left out or at the level of rounding."""
        values = torch.cat([block.singular_values() for block in self.blocks])
        return values.sort(descending=True).values

    def spectrum(self) -> SpectrumReport:
        """The spectrum of ``JᵀJ`` (P, P), by singular values of C."""
        return SpectrumReport.from_factor(self.factor().mT)

    @property
    def effective_dimension(self) -> int:
        """Rank of J: how many directions of w the params move, counted numerically."""
        return sum(_rank(block) for block in self.blocks)

    @property
    def nullity(self) -> int:
        """``P - rank J``: directions of the params that change nothing."""
        return self.num_parameters - self.effective_dimension


def map_jacobian(
    map: WeightMap, params: Tensors, fixed: Tensors, *, down_scale: float = 1.0, up_scale: float = 1.0
) -> MapJacobian:
    """Exact J of ``θ -> (down_scale vec(down), up_scale vec(up))``: ``gram() == J.mT @ J`` for dense J.

    Args:
        map: A :class:`LoRA`, :class:`TTLoRA`, :class:`TensorGuide`, :class:`LoRETTA` or :class:`DeltaTrain`.
        params: Trainable tensors; parameters are counted in the order of ``map.param_shapes``.
        fixed: Latents and frozen starts.
        down_scale: Weight of the entries of down.
        up_scale: Weight of the entries of up.

    Returns:
        J by structure, in float64 where the params lie.

    Raises:
        UnsupportedError: For another map; :func:`tntune.theory.network_jacobian` takes any network of ΔW.

    Example:
        >>> lora = LoRA(3, 2, 1)
        >>> map_jacobian(lora, *lora.init(), up_scale=2.0).singular_values().tolist()
        [2.0, 2.0, 1.0, 1.0, 1.0]

    Statement: T0 in theory/jacobian.md.
    """
    if isinstance(map, LoRA):
        pairs = ((params["lora_down"], down_scale), (params["lora_up"], up_scale))
        return MapJacobian(tuple(_one_core(matrix, scale) for matrix, scale in pairs))
    if isinstance(map, TTLoRA):
        trains = ((map.down_train, "tt_down_", down_scale), (map.up_train, "tt_up_", up_scale))
        return MapJacobian(
            tuple(_train_block(train, prefix, params, fixed, _flat(train, s)) for train, prefix, s in trains)
        )
    if isinstance(map, TensorGuide):
        weights = readout_train(map.layout, map.geometry, down_scale=down_scale, up_scale=up_scale)
        return MapJacobian((_train_block(map.train, "tt_", params, fixed, weights),))
    if isinstance(map, LoRETTA):
        return map_jacobian(map.trains, params, fixed, down_scale=down_scale, up_scale=up_scale)
    if isinstance(map, DeltaTrain):
        cores, cut = [params[name] for name in map.param_shapes], len(map.in_modes)
        return MapJacobian((_half(cores[:cut], down_scale), _half(cores[cut:], up_scale)))
    raise UnsupportedError(
        f"{map.kind} is not made of trains; use jacobian(), which differentiates any map, "
        "or network_jacobian(), which takes any network of ΔW"
    )


def jacobian(map: WeightMap, params: Tensors, fixed: Tensors) -> Tensor:
    """Dense J of ``θ -> [vec(down), vec(up)]`` by autodiff, for any map.

    Args:
        map: Any map.
        params: Trainable tensors, in whose dtype it is computed.
        fixed: Latents and frozen starts.

    Returns:
        (N, P) with N the entries of both factors, and P counted in the order of ``map.param_shapes``. For
        small N only: it has N P entries.

    Example:
        >>> lora = LoRA(3, 2, 1)
        >>> torch.equal(jacobian(lora, *lora.init()), torch.eye(5))
        True
    """
    return _dense(map, params, lambda own: torch.cat([part.flatten() for part in map.factors(own, fixed)]))


def delta_jacobian(map: WeightMap, params: Tensors, fixed: Tensors) -> Tensor:
    """Dense J of ``θ -> vec(ΔW)`` by autodiff, for any map: (sites D Q, P).

    Example:
        >>> lora = LoRA(6, 10, 4, "random")
        >>> J = delta_jacobian(lora, *lora.init(torch.Generator().manual_seed(0), dtype=torch.float64))
        >>> int(torch.linalg.matrix_rank(J))  # r (D + Q) - r²
        48
    """
    return _dense(map, params, lambda own: map.delta(own, fixed).flatten())


def _dense(map: WeightMap, params: Tensors, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
    """The derivative of a function of the params, with parameters flattened in the map's order."""
    own = {name: params[name].detach() for name in map.param_shapes}
    columns = jacrev(function)(own)
    return torch.cat([columns[name].flatten(1) for name in own], dim=1)


def _one_core(matrix: Tensor, scale: float) -> TrainJacobian:
    """A matrix of its own as a train of one core: its J is the identity times the scale."""
    core = matrix.reshape(1, 1, -1, 1)
    return TrainJacobian((core,), (torch.full_like(core, scale),))


def _half(cores: Sequence[Tensor], scale: float) -> TrainJacobian:
    """Cores between two open bonds, of which one is the width: it joins the mode beside it."""
    first, *rest = cores
    joined = [first.reshape(1, -1, first.shape[-1]), *rest]
    joined[-1] = joined[-1].reshape(joined[-1].shape[0], -1, 1)
    weights = [torch.ones(1, 1, core.shape[1], 1, dtype=torch.float64, device=core.device) for core in joined]
    return TrainJacobian(tuple(core[:, None] for core in joined), (scale * weights[0], *weights[1:]))


def _flat(train: LatentTrain, scale: float) -> list[Tensor]:
    """Equal weights of all entries of a train."""
    cores = [torch.ones(1, size, 1, dtype=torch.float64) for size in train.modes]
    return [cores[0] * scale, *cores[1:]]


def _train_block(
    train: LatentTrain, prefix: str, params: Tensors, fixed: Tensors, readout: Sequence[Tensor]
) -> TrainJacobian:
    """The Jacobian of one latent train with its latent and its read-out as weights."""
    cores = [params[name] for name in train.names(prefix)]
    weights = [weight[:, None].to(cores[0].device) for weight in readout]  # (t, 1, m, t')
    if not train.has_latent:
        return TrainJacobian(tuple(core[:, None] for core in cores), tuple(weights))
    if not train.latent.stored:  # the mean over z leaves the latent legs open: they are part of the mode
        sizes = train.latent.modes
        wide = [w.expand(-1, n, -1, -1).flatten(1, 2)[:, None] for w, n in zip(weights, sizes, strict=True)]
        return TrainJacobian(tuple(core.flatten(1, 2)[:, None] for core in cores), tuple(wide))
    z = cores_of(tt_svd(fixed[f"{prefix}latent"].to(cores[0].device).double()).value)
    joint = [
        torch.einsum("xny,tmu->xtnmyu", one, other[:, 0]).flatten(-2).flatten(0, 1)
        for one, other in zip(z, weights, strict=True)
    ]
    return TrainJacobian(tuple(cores), tuple(joint))


def _rank(block: TrainJacobian) -> int:
    """Singular values of J above rounding."""
    factor = block.factor()
    values = torch.linalg.svdvals(factor)
    threshold = max(factor.shape) * torch.finfo(values.dtype).eps * float(values[0])
    return int((values > threshold).sum())


def _block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Matrices along the diagonal of one."""
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined
