"""GatePruner: gates pruned by importance over all layers, on a cubic schedule, as in dynamic DoRA."""

import torch
from torch import Tensor, nn

from tntune.errors import SpecError, UnsupportedError
from tntune.maps.base import Factors, positive
from tntune.maps.gated import GATE
from tntune.plugins.gates import count_zeros, gate_of, gated_layers, unshared_layers

__all__ = ["GatePruner", "direction_variance"]

_LEAST = 1e-8  # added to the norm of ΔW, as published


class GatePruner:
    """Between 15 % and 50 % of training the globally least important gates become zero, and then stay so.

    The importance of a direction is the running mean (decay 0.9) of its share of ΔW,
    ``|gate_i| |down_i| |up_i| / (|ΔW| + 1e-8)``, in Frobenius norms; for maps whose factors are generated the
    directions are those factors' too. At time t of a window of T steps the fraction
    ``(1 - keep) (t / T)³`` of all gates is zeroed, every ``every`` steps and at the end of the window. Until
    then zeroed gates may grow again; from then on they are zero after every step.

    Call :meth:`step` after every step of the optimiser; take zeros out by
    :func:`tntune.plugins.prune_gates`. The window and t / T are read as the share of the window that has
    passed; the paper's text leaves room there.

    Args:
        model: Adapted with :func:`tntune.plugins.gated_sites` (``start="zero"``, inner maps with
            ``start="random"``, to follow the paper).
        steps: Steps of the whole training.
        keep: Share of the gates that stay, in (0, 1]; the paper starts at 3/2 of the wanted width, so 2/3.
        every: Steps between two prunings.

    Raises:
        TargetError: Where a layer has no gates.
        UnsupportedError: Where layers share a generator, or a latent is drawn at every call.
        SpecError: For a setting out of range.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> from tntune.plugins.gated import gated_sites
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), gated_sites({"0": Site(LoRA(4, 3, 3))}))
        >>> pruner = GatePruner(model, steps=10, keep=2 / 3, every=1)
        >>> [pruner.step() for _ in range(10)]
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]

    Reference: Mao et al. (arXiv 2405.17357), section 3.
    """

    def __init__(self, model: nn.Module, *, steps: int, keep: float = 2 / 3, every: int = 100) -> None:
        self._generators = [layer.generator for layer in unshared_layers(model).values()]
        if any(generator.map.resampled for generator in self._generators):
            raise UnsupportedError("gates are scored by factors that stay; a latent is drawn at every call")
        if not 0 < keep <= 1:
            raise SpecError(f"keep must be in (0, 1], not {keep}")
        self._first, self._last = round(0.15 * positive("steps", steps)), round(0.5 * steps)
        if self._first == self._last:
            raise SpecError(f"{steps} steps have no window between 15 % and 50 % to prune in")
        self._keep, self._every = keep, positive("every", every)
        self._steps = 0
        self._scores = [torch.zeros_like(gate_of(generator)) for generator in self._generators]
        self._dead: list[Tensor] = []

    @property
    def scores(self) -> list[Tensor]:
        """The running means, one tensor ``(sites, width)`` for each layer."""
        return [score.clone() for score in self._scores]

    @torch.no_grad()
    def step(self) -> int:
        """Count a step of the optimiser, and do what is due after it; how many gates are zero."""
        self._steps += 1
        for score, generator in zip(self._scores, self._generators, strict=True):
            score.lerp_(_shares(generator.stored()).to(score), 0.1)
        if self._is_due():
            self._dead = self._lowest()
        if self._is_due() or self._steps > self._last:
            for generator, dead in zip(self._generators, self._dead, strict=True):
                gate_of(generator).masked_fill_(dead, 0)
        return count_zeros(self._generators)

    def _is_due(self) -> bool:
        """Whether the zeros are chosen anew after this step."""
        if not self._first < self._steps <= self._last:
            return False
        return self._steps == self._last or (self._steps - self._first) % self._every == 0

    def _lowest(self) -> list[Tensor]:
        """Masks of the gates whose running mean is among the lowest of all layers."""
        share = (self._steps - self._first) / (self._last - self._first)
        flat = torch.cat([score.flatten().cpu() for score in self._scores])
        lowest = flat.argsort()[: round((1 - self._keep) * share**3 * len(flat))]
        mask = torch.zeros(len(flat), dtype=torch.bool)
        mask[lowest] = True
        sizes = [score.numel() for score in self._scores]
        return [
            part.reshape(score.shape).to(score.device)
            for part, score in zip(torch.split(mask, sizes), self._scores, strict=True)
        ]


def direction_variance(model: nn.Module) -> Tensor:
    """Mean over all directions of ``Var(down_i) + Var(up_i)``: what dynamic DoRA adds to the loss, times 0.1.

    It keeps the entries of a rank-one part alike, so that a norm tells its importance. Factors are taken
    without their gates.

    Returns:
        A scalar with gradients.

    Raises:
        TargetError: Where a layer has no gates.

    Example:
        >>> from tntune.adapters.adapt import adapt
        >>> from tntune.maps.lora import LoRA
        >>> from tntune.maps.site import Site
        >>> from tntune.plugins.gated import gated_sites
        >>> model = adapt(nn.Sequential(nn.Linear(4, 3)), gated_sites({"0": Site(LoRA(4, 3, 3))}))
        >>> bool(direction_variance(model) > 0)
        True

    Reference: Mao et al. (arXiv 2405.17357), section 3.3.
    """
    variances = []
    for layer in gated_layers(model).values():
        generator = layer.generator
        tensors = {name: getattr(generator, name) for name in generator.map.tensor_shapes}
        ones = {**tensors, GATE: torch.ones_like(tensors[GATE])}
        down, up = generator.map.factors(ones, ones)
        variances.append((down.var(dim=2) + up.var(dim=1)).flatten())
    return torch.cat(variances).mean()


def _shares(factors: Factors) -> Tensor:
    """``|down_i| |up_i| / |ΔW|`` of every direction, ``(sites, width)``, the gate being in up."""
    down, up = factors
    parts: Tensor = torch.linalg.vector_norm(down, dim=2) * torch.linalg.vector_norm(up, dim=1)
    gram = (down @ down.mT) * (up.mT @ up)
    whole = gram.sum((1, 2)).clamp(min=0).sqrt()
    return parts / (whole[:, None] + _LEAST)
