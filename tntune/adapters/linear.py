"""AdaptedLinear: a frozen linear layer and one map beside it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters.generator import FactorGenerator, without_autocast
from tntune.errors import ModeError, NumericalError, TargetError, UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors, WeightMap
from tntune.maps.chain import Chains
from tntune.maps.member import Member
from tntune.maps.site import Site

__all__ = ["AdaptedLinear", "check_fit", "features", "is_transposed", "through"]


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
        owner: Whether the generator is a part of this layer; False where it is a part of another.

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
        owner: bool = True,
    ) -> None:
        super().__init__()
        check_fit(base, Member(generator.map, site))
        self.spec = Site(generator.map, scale, activation)
        self.site = site
        self.base = base.requires_grad_(False)
        self.generator: FactorGenerator
        if owner:
            self.generator = generator
        else:
            object.__setattr__(self, "generator", generator)  # known to the layer, but no part of it
        self.enabled = True
        self._unmerged: list[nn.Parameter] = []  # a list: not registered, a state dict keeps its names
        self.register_forward_pre_hook(_called)

    @property
    def weight(self) -> Tensor:
        """The base's weight, for code that asks a layer for its dtype or device."""
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        bias: Tensor | None = self.base.bias  # type: ignore[assignment]
        return bias

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch does; a weight or bias that is assigned to the layer, as tying does, becomes the base's.

        Raises:
            UnsupportedError: Where the adapter is merged, so that the base's weight is not its own.
        """
        if name not in ("weight", "bias"):
            super().register_parameter(name, param)
        elif self.merged:
            raise UnsupportedError(f"the adapter is merged; unmerge it before its {name} is replaced")
        else:
            setattr(self.base, name, param)

    @property
    def merged(self) -> bool:
        """Whether the adapter is in the base's weight at present."""
        return bool(self._unmerged)

    def active_generators(self) -> tuple[FactorGenerator, ...]:
        """The generators that a forward calls now: none while the adapter is merged or switched off."""
        return () if self.merged or not self.enabled else (self.generator,)

    @property
    def is_sharing(self) -> bool:
        """Whether the generator serves other layers as well."""
        return self.generator.map.sites > 1

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``, in the dtype of the base's output."""
        y: Tensor = self.base(x)
        if self.merged or not self.enabled:
            return y
        down, (first, *rest) = self.generator(self.site, Chains)
        hidden = activation(self.spec.activation).function(through(x, down))  # (..., width)
        return y + through(hidden, (first * self.spec.scale, *rest)).to(y.dtype)

    def factors(self) -> Factors:
        """This layer's down ``(width, in)`` and up ``(out, width)``."""
        return _only(self.generator(self.site))

    def delta_weight(self) -> Tensor:
        """``ΔW = scale * up @ down``, ``(out_features, in_features)``.

        Computed in the wider dtype of base and factors, and in float32 at least.

        In training too the stored latent makes it, never one that is drawn for a step.

        Raises:
            UnsupportedError: Where σ is not linear, so that no matrix equals the adapter.
        """
        sigma = activation(self.spec.activation)
        if not sigma.linear:
            raise UnsupportedError(
                f"an adapter with activation {sigma.name!r} is not a matrix, it has no delta to merge or "
                "export; keep it as a layer, or train with activation 'identity'"
            )
        down, up = _only(self.generator.stored(self.site))
        wide = torch.promote_types(torch.promote_types(up.dtype, self.weight.dtype), torch.float32)
        with without_autocast(up.device):
            return self.spec.scale * (up.to(wide) @ down.to(wide))

    @torch.no_grad()
    def merge(self) -> None:
        """``base(x)`` becomes the adapted output, up to rounding; :meth:`unmerge` restores it bit for bit.

        The base gets a new weight parameter and the old one is kept, so a weight that is tied to another
        module stays as it is there. Memory: one more weight until :meth:`unmerge`. Idempotent.

        Raises:
            UnsupportedError: Where σ is not linear, the adapter is switched off, or the base computes its
                weight (``torch.nn.utils.parametrize``).
            NumericalError: Where the merged weight would not be finite; nothing is changed.
        """
        if self.merged:
            return
        old = self.base.weight
        if not self.enabled:
            raise UnsupportedError("the adapter is switched off; switch it on before it is merged")
        if not isinstance(old, nn.Parameter):
            raise UnsupportedError(f"the weight of {type(self.base).__name__} is computed, not a parameter")
        delta = self.delta_weight()
        delta = delta.T if is_transposed(self.base) else delta
        new = (old.to(delta.dtype) + delta.to(old.device)).to(old.dtype)
        if not bool(torch.isfinite(new).all()):
            raise NumericalError(
                f"the merged weight has {int((~torch.isfinite(new)).sum())} non-finite entries"
            )
        self.base.weight = nn.Parameter(new, requires_grad=False)
        self._unmerged = [old]

    def unmerge(self) -> None:
        """Undo :meth:`merge`: the base has its own weight again, the same parameter as before. Idempotent."""
        if self._unmerged:
            self.base.weight = self._unmerged.pop()

    def extra_repr(self) -> str:
        """Scale, activation and state."""
        state = "merged" if self.merged else "enabled" if self.enabled else "disabled"
        return f"scale={self.spec.scale}, activation={self.spec.activation}, site={self.site}, {state}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AdaptedLinear":
        """Move and cast the weight that waits for :meth:`unmerge` as well, in place, as torch does."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for weight in self._unmerged:
            weight.data = fn(weight.data)
        return self


def through(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """``matrices[-1] @ ... @ matrices[0] @ x`` for every row x, in its dtype and on its device.

    Example:
        >>> through(torch.ones(3, 4), [torch.ones(2, 4), torch.ones(5, 2)]).shape
        torch.Size([3, 5])
    """
    for matrix in matrices:
        x = functional.linear(x, matrix.to(x))
    return x


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored ``(in, out)``: transformers' ``Conv1D``, known by name and shape.

    Example:
        >>> is_transposed(nn.Linear(4, 3))
        False
    """
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def features(module: nn.Module) -> tuple[int, int]:
    """``(in_features, out_features)`` of a linear layer with a floating-point weight.

    Raises:
        TargetError: For any other module, and for a lazy layer that has no weight yet.

    Example:
        >>> features(nn.Linear(4, 3))
        (4, 3)
    """
    weight = getattr(module, "weight", None)
    name = type(module).__name__
    if not (isinstance(module, nn.Linear) or is_transposed(module)) or not isinstance(weight, Tensor):
        raise TargetError(f"{name} cannot be adapted: it is neither nn.Linear nor Conv1D")
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise TargetError(f"{name} cannot be adapted before its first call, which makes its weight")
    if weight.ndim != 2 or not weight.is_floating_point():
        raise TargetError(f"{name} cannot be adapted: its weight is {weight.dtype} of {tuple(weight.shape)}")
    rows, columns = weight.shape
    return (rows, columns) if is_transposed(module) else (columns, rows)


def check_fit(base: nn.Module, map: WeightMap) -> None:
    """Raise unless ``map`` has the sizes of the linear layer ``base``.

    Raises:
        TargetError: Where ``base`` is not a linear layer.
        ModeError: Where the sizes differ.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> check_fit(nn.Linear(4, 3), LoRA(4, 3, 2))
    """
    own, wanted = features(base), (map.in_features, map.out_features)
    if own != wanted:
        raise ModeError(f"the base maps {own[0]} features to {own[1]}, the map {wanted[0]} to {wanted[1]}")


def _only(factors: Factors) -> Factors:
    """The factors of the one site that was generated."""
    return Factors(factors.down.squeeze(0), factors.up.squeeze(0))


def _called(module: nn.Module, inputs: object) -> None:
    """Does nothing; a module with a hook is one that torch's fused encoder layer calls, not reads past."""
