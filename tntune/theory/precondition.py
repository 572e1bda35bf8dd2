"""Preconditioned optimisers for cores: steps that do not depend on the gauge, for a few r x r solves."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tntune.errors import ModeError, NumericalError, SpecError
from tntune.maps.base import Tensors, WeightMap
from tntune.maps.lora import LoRA
from tntune.theory.environment import left_overlaps, right_overlaps
from tntune.theory.gauge import map_trains
from tntune.tt.train import compute_dtype

__all__ = ["ScaledAdamW", "ScaledGD", "core_groups", "scaled_gradients"]

Groups = Iterable[dict[str, Any]]
Closure = Callable[[], float]


def core_groups(map: WeightMap, params: Tensors) -> list[dict[str, Any]]:
    """Groups for :class:`ScaledGD` and :class:`ScaledAdamW`: one for each train, its cores in order.

    A LoRA is a train as well: ``ΔW = up @ down`` has the two cores up and down.

    Args:
        map: A LoRA, TTLoRA or TensorGuide.
        params: Its trainable tensors; several maps give several lists, which may be joined.

    Raises:
        UnsupportedError: For a map that is not made of trains.

    Example:
        >>> lora = LoRA(3, 2, 1)
        >>> [[tuple(core.shape) for core in group["params"]] for group in core_groups(lora, lora.init()[0])]
        [[(2, 1), (1, 3)]]
    """
    if isinstance(map, LoRA):
        return [{"params": [params["lora_up"], params["lora_down"]]}]
    return [{"params": [params[name] for name in train.names(prefix)]} for train, prefix in map_trains(map)]


def scaled_gradients(cores: Sequence[Tensor], gradients: Sequence[Tensor], *, damping: float) -> list[Tensor]:
    """``B g`` with ``B = blockdiag (Γ_L ⊗ 1 ⊗ Γ_R + λ)⁻¹``: ``1 <= J B Jᵀ <= K`` on the tangents for λ = 0.

    Without damping a step of B g turns with the gauge as the cores do, so the train moves alike. λ is the
    damping times ``|Γ_L| |Γ_R|`` of the core, so it does not depend on how the bonds are scaled; a core whose
    environment is zero stays where it is. Latent legs count with the modes: B is that of the whole train,
    before z is contracted.

    Args:
        cores: Cores (r, .., r') of one train; at the ends two-way matrices are read as (n, r) and (r, n).
        gradients: A gradient for each core.
        damping: Relative to the largest eigenvalue of the block, at least 0.

    Returns:
        Tensors of the shapes of the gradients, in O(K n r³).

    Raises:
        NumericalError: Where the cores are not finite.

    Example:
        >>> core = torch.full((1, 2, 1), 2.0, dtype=torch.float64)
        >>> scaled_gradients([core, core], [core, core], damping=0.0)[0].flatten().tolist()
        [0.25, 0.25]

    Reference: Tong, Ma, Chi (2021), Accelerating ill-conditioned low-rank matrix estimation.

    Statement: T3' in theory/jacobian.md.
    """
    own = [_as_core(core, k == 0) for k, core in enumerate(cores)]
    lefts, rights = left_overlaps(own, own), right_overlaps(own, own)
    if not math.isfinite(float(lefts[-1].sum())):
        raise NumericalError("cores are not finite: the training has diverged, lower the learning rate")
    sides = [
        (torch.linalg.eigh(left), torch.linalg.eigh(right))
        for left, right in zip(lefts[:-1], rights[1:], strict=True)
    ]
    made = []
    for core, gradient, (left, right) in zip(own, gradients, sides, strict=True):
        blocks = left[0].clamp(min=0)[:, None, None] * right[0].clamp(min=0)
        blocks = blocks + damping * blocks.max()
        turned = torch.einsum("anb,ac,bd->cnd", gradient.reshape(core.shape).to(core), left[1], right[1])
        solved = torch.where(blocks > 0, turned / blocks, torch.zeros_like(turned))
        step = torch.einsum("cnd,ac,bd->anb", solved, left[1], right[1])
        made.append(step.reshape(gradient.shape).to(gradient.dtype))
    return made


class ScaledGD(Optimizer):
    """Gradient descent with momentum on preconditioned gradients: the same path of w in every gauge.

    Use it as any optimiser of torch, with groups of :func:`core_groups`; parameters that are no cores belong
    to an optimiser of their own. Costs O(K n r³) a step beyond plain descent.

    Args:
        params: Groups, each the cores of one train in order.
        lr: Step size; of order 1/K whatever the cores, for a loss of curvature 1 in w.
        damping: Relative damping λ of :func:`scaled_gradients`; with 0 the path is independent of the gauge.
        momentum: Heavy ball, in [0, 1); its buffer moves with the gauge as the cores do.

    Raises:
        SpecError: For a setting out of range, or a train of which some cores only have a gradient.
        ModeError: Where a group is not the cores of a train.

    Example:
        >>> lora = LoRA(3, 2, 1, "random")
        >>> params, _ = lora.init(torch.Generator().manual_seed(0))
        >>> _ = [param.requires_grad_() for param in params.values()]
        >>> optimizer = ScaledGD(core_groups(lora, params), lr=0.5)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     loss = (params["lora_up"] @ params["lora_down"] - 1).square().sum() / 2
        ...     loss.backward()
        ...     optimizer.step()
        >>> loss.item() < 1e-6
        True

    Statement: T3' in theory/jacobian.md.
    """

    def __init__(
        self, params: Groups, *, lr: float = 0.1, damping: float = 1e-3, momentum: float = 0.0
    ) -> None:
        settings = {"lr": lr, "damping": damping, "momentum": momentum}
        _check_settings(settings)
        super().__init__(_checked(params), settings)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step on every train whose cores have gradients; the loss of ``closure`` where there is one."""
        loss = _loss(closure)
        for core, gradient, group in _scaled(self.param_groups):
            if group["momentum"]:
                state = self.state[core]
                state["momentum_buffer"] = gradient + group["momentum"] * state.get("momentum_buffer", 0.0)
                gradient = state["momentum_buffer"]
            core.sub_(gradient, alpha=group["lr"])
        return loss


class ScaledAdamW(Optimizer):
    """AdamW on preconditioned gradients: curvature between cores from T3', scale of each entry from Adam.

    Adam's division is entry by entry, so the path depends on the gauge through it, as AdamW's own does.

    Args:
        params: Groups, each the cores of one train in order (:func:`core_groups`).
        lr: Step size.
        betas: Decay of the first and second moment, in [0, 1).
        eps: Added to the root of the second moment, above 0.
        weight_decay: Decoupled decay of the cores, at least 0.
        damping: Relative damping of :func:`scaled_gradients`.

    Raises:
        SpecError: For a setting out of range, or a train of which some cores only have a gradient.
        ModeError: Where a group is not the cores of a train.

    Example:
        >>> lora = LoRA(3, 2, 1, "random")
        >>> params, _ = lora.init(torch.Generator().manual_seed(0))
        >>> _ = [param.requires_grad_() for param in params.values()]
        >>> optimizer = ScaledAdamW(core_groups(lora, params), lr=0.1)
        >>> (params["lora_up"] @ params["lora_down"]).sum().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[params["lora_up"]])
        ['exp_avg', 'exp_avg_sq', 'step']

    Reference: Zhang, Pilanci (2024), Riemannian preconditioned LoRA; Loshchilov, Hutter (2019).
    """

    def __init__(
        self,
        params: Groups,
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        damping: float = 1e-3,
    ) -> None:
        settings = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "damping": damping}
        _check_settings({**settings, "first beta": betas[0], "second beta": betas[1]})
        super().__init__(_checked(params), {**settings, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """One step on every train whose cores have gradients; the loss of ``closure`` where there is one."""
        loss = _loss(closure)
        for core, gradient, group in _scaled(self.param_groups):
            first, second = group["betas"]
            state = self.state[core]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(core), exp_avg_sq=torch.zeros_like(core))
            state["step"] += 1
            state["exp_avg"].lerp_(gradient, 1 - first)
            state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
            spread = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
            core.mul_(1 - group["lr"] * group["weight_decay"])
            core.addcdiv_(state["exp_avg"], spread, value=-group["lr"] / (1 - first ** state["step"]))
        return loss


def _scaled(groups: Sequence[dict[str, Any]]) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Each core, its preconditioned gradient and its group, of all trains that have gradients."""
    found = []
    for group in groups:
        own = group["params"]
        gradients = [core.grad for core in own if core.grad is not None]
        if gradients and len(gradients) < len(own):
            raise SpecError(
                f"{len(gradients)} of the {len(own)} cores of a train have a gradient; all are needed"
            )
        if gradients:
            scaled = scaled_gradients(own, gradients, damping=group["damping"])
            found += [(core, step, group) for core, step in zip(own, scaled, strict=True)]
    return found


def _loss(closure: Closure | None) -> float | None:
    """The loss of a closure, with gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _as_core(core: Tensor, first: bool) -> Tensor:
    """A parameter as a core (r, n, r'), detached, in at least single precision."""
    wide = core.detach().to(compute_dtype(core.dtype))
    if wide.ndim == 2:
        return wide[None] if first else wide[..., None]
    return wide.flatten(1, -2)


def _checked(groups: Groups) -> list[dict[str, Any]]:
    """Groups whose params are the cores of a train; ModeError otherwise."""
    found = [{**group, "params": list(group["params"])} for group in groups]
    for group in found:
        shapes = [tuple(core.shape) for core in group["params"]]
        chained = all(one[-1] == other[0] for one, other in pairwise(shapes))
        two_way = [k for k, shape in enumerate(shapes) if len(shape) == 2]
        if not chained or min(map(len, shapes)) < 2 or not set(two_way) <= {0, len(shapes) - 1}:
            raise ModeError(f"a group holds the cores (r, .., r') of one train in order, not {shapes}")
    return found


def _check_settings(settings: dict[str, float]) -> None:
    """Raise where a setting is negative, or a decay is 1 or more."""
    for name, value in settings.items():
        decay = name in ("momentum", "first beta", "second beta")
        if not 0.0 <= value < (1.0 if decay else math.inf):
            raise SpecError(f"{name} must be in [0, {'1' if decay else 'inf'}), not {value}")
