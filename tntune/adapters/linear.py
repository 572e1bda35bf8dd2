"""AdaptedLinear: a frozen linear layer and one map beside it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters.generator import FactorGenerator
from tntune.errors import ModeError, NumericalError, TargetError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.maps.site import Site

__all__ = ["AdaptedLinear", "features", "is_transposed"]


class AdaptedLinear(nn.Module):
    """``y = base(x) + scale * up σ(down x)``: the base is frozen, the factors come from a generator.

    Factors are generated in the dtype of the cores and applied in the dtype of ``x``, so that a
    half-precision base runs at its own speed with float32 cores. The product ``up @ down`` is never formed.

    Args:
        base: ``nn.Linear``, or a layer with a transposed weight named ``Conv1D`` (transformers).
        generator: Where the factors come from.
        scale: s.
        activation: Name of σ.
        site: Which of the generator's sites this layer is.

    Raises:
        TargetError: Where ``base`` is not a linear layer.
        ModeError: Where the map has other sizes than ``base``.
        SpecError: For an unknown activation or a scale that is not finite.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> layer = AdaptedLinear(nn.Linear(4, 3), FactorGenerator.fresh(LoRA(4, 3, 2)), scale=2.0)
        >>> x = torch.ones(5, 4)
        >>> bool((layer(x) == layer.base(x)).all())
        True

    Reference: Qi et al. (arXiv 2506.16456), eq. 1 and appendix 4.3.
    """

    def __init__(
        self,
        base: nn.Module,
        generator: FactorGenerator,
        *,
        scale: float = 1.0,
        activation: str = "identity",
        site: int = 0,
    ) -> None:
        super().__init__()
        wanted = (generator.map.in_features, generator.map.out_features)
        if features(base) != wanted:
            raise ModeError(f"the base maps {features(base)} features, the adapter {wanted}")
        if not 0 <= site < generator.map.sites:
            raise ModeError(f"site {site} is outside the {generator.map.sites} sites of the map")
        self.spec = Site(generator.map, scale, activation)
        self.site = site
        self.base = base.requires_grad_(False)
        self.generator = generator
        self.enabled = True
        self._unmerged: nn.Parameter | None = None

    @property
    def merged(self) -> bool:
        """Whether the adapter is in the base's weight at present."""
        return self._unmerged is not None

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the dtype of the base's output."""
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        down, up = self.factors()
        hidden = functional.linear(x, down.to(x.dtype))  # (..., width)
        hidden = activation(self.spec.activation).function(hidden)
        return y + functional.linear(hidden, (up * self.spec.scale).to(x.dtype)).to(y.dtype)

    def factors(self) -> Factors:
        """This layer's down ``(width, in)`` and up ``(out, width)``."""
        down, up = self.generator()
        return Factors(down[self.site], up[self.site])

    def delta_weight(self) -> Tensor:
        """``ΔW = scale * up @ down``, ``(out_features, in_features)``, in float32 at least.

        Raises:
            UnsupportedError: Where σ is not linear, so that no matrix equals the adapter.
        """
        sigma = activation(self.spec.activation)
        if not sigma.linear:
            raise UnsupportedError(
                f"an adapter with activation {sigma.name!r} is not a matrix, it has no delta to merge or "
                "export; keep it as a layer, or train with activation 'identity'"
            )
        down, up = self.factors()
        wide = torch.promote_types(up.dtype, torch.float32)
        return self.spec.scale * (up.to(wide) @ down.to(wide))

    @torch.no_grad()
    def merge(self) -> None:
        """``base(x)`` becomes the adapted output, up to rounding; :meth:`unmerge` restores it bit for bit.

        The base gets a new weight parameter and the old one is kept, so a weight that is tied to another
        module stays as it is there. Memory: one more weight until :meth:`unmerge`. Idempotent.

        Raises:
            UnsupportedError: Where σ is not linear.
            NumericalError: Where the merged weight would not be finite; nothing is changed.
        """
        if self.merged:
            return
        delta = self.delta_weight()
        old = self.base.weight
        assert isinstance(old, nn.Parameter)
        delta = delta.T if is_transposed(self.base) else delta
        new = (old.to(delta.dtype) + delta.to(old.device)).to(old.dtype)
        if not bool(torch.isfinite(new).all()):
            raise NumericalError(
                f"the merged weight has {int((~torch.isfinite(new)).sum())} non-finite entries"
            )
        self.base.weight = nn.Parameter(new, requires_grad=False)
        self._unmerged = old

    def unmerge(self) -> None:
        """Undo :meth:`merge`: the base has its own weight again, the same parameter as before. Idempotent."""
        if self._unmerged is not None:
            self.base.weight, self._unmerged = self._unmerged, None

    def extra_repr(self) -> str:
        """Scale, activation and state."""
        state = "merged" if self.merged else "enabled" if self.enabled else "disabled"
        return f"scale={self.spec.scale}, activation={self.spec.activation}, site={self.site}, {state}"


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored ``(in, out)``: transformers' ``Conv1D``, known by name and shape."""
    weight = getattr(module, "weight", None)
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and getattr(weight, "ndim", 0) == 2


def features(module: nn.Module) -> tuple[int, int]:
    """``(in_features, out_features)`` of a linear layer; :class:`TargetError` for anything else."""
    weight = getattr(module, "weight", None)
    known = isinstance(module, nn.Linear) or is_transposed(module)
    if not known or not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise TargetError(f"{type(module).__name__} cannot be adapted: it is neither nn.Linear nor Conv1D")
    rows, columns = weight.shape
    return (rows, columns) if is_transposed(module) else (columns, rows)
