"""Ntk: a tangent kernel with the gradients it came from, so that it can be split and analysed exactly."""

from dataclasses import dataclass

from torch import Tensor

from tntune.errors import TargetError, UnsupportedError
from tntune.theory.ntk_rows import Rows, factor, gram, outputs_of
from tntune.theory.spectrum import SpectrumReport

__all__ = ["Ntk"]


@dataclass(frozen=True, eq=False)
class Ntk:
    """A tangent kernel: ``values == sum(per_layer().values())``, symmetric and positive semidefinite.

    Attributes:
        values: ``(n C, n C)`` (rows run over samples, then outputs), ``(n, n)`` or ``(C, n, n)``.
        output: ``"full"``, ``"trace"`` or ``"per_class"``.
        route: How the gradients were made: ``"structure"``, ``"aligned"`` or ``"pulled back"`` for a layer;
            ``"vmap"``, or ``"loop"`` with the reason, for a model.
        rows: The gradients by parameter, as sums of outer products.

    Example:
        >>> import torch
        >>> from tntune.theory.ntk_rows import Outer
        >>> rows = {"h.0.down": (Outer(torch.ones(2, 1, 3)),), "h.1.down": (Outer(torch.ones(2, 1, 4)),)}
        >>> kernel = Ntk(gram(rows), "full", "vmap", rows)
        >>> {name: part[0, 0].item() for name, part in kernel.per_layer().items()}
        {'h.0': 3.0, 'h.1': 4.0}
    """

    values: Tensor
    output: str
    route: str
    rows: Rows

    @property
    def samples(self) -> int:
        """Number n of samples."""
        return outputs_of(self.rows)[0]

    @property
    def outputs(self) -> int:
        """Number C of outputs."""
        return outputs_of(self.rows)[1]

    @property
    def layers(self) -> tuple[str, ...]:
        """Where the parameters live: module paths, or the parameters' own names in a single layer."""
        return tuple(dict.fromkeys(_layer(name) for name in self.rows))

    def layer(self, name: str) -> Tensor:
        """The part of the kernel that the parameters of one layer make.

        Raises:
            TargetError: For a name that is not in :attr:`layers`.
        """
        own = {key: terms for key, terms in self.rows.items() if _layer(key) == name}
        if not own:
            raise TargetError(f"no layer {name!r} in this kernel; it has {', '.join(self.layers)}")
        return gram(own, self.output)

    def per_layer(self) -> dict[str, Tensor]:
        """Every layer's part, of the shape of ``values``: memory of one kernel for each layer."""
        return {name: self.layer(name) for name in self.layers}

    def factor(self) -> Tensor:
        """A with ``values == A @ A.T``: ``(n C, P)``, or ``(n, C P)`` for the trace.

        Raises:
            UnsupportedError: For ``"per_class"``, which has a factor for each class.
        """
        if self.output == "per_class":
            raise UnsupportedError("a per-class kernel has C spectra; take 'full' or 'trace', or one class")
        rows = factor(self.rows)
        return rows if self.output == "full" else rows.reshape(self.samples, -1)

    def spectrum(self, *, rank_bound: int | None = None, targets: Tensor | None = None) -> SpectrumReport:
        """The spectrum of the kernel from singular values of its factor, which resolve twice the digits.

        Args:
            rank_bound: What the structure admits: parameters less the nullity of the map, or T6.
            targets: Labels with as many entries as the kernel has rows.

        Raises:
            UnsupportedError: For ``"per_class"``.
            ModeError: Where the targets have another number of entries.
        """
        return SpectrumReport.from_factor(self.factor(), rank_bound=rank_bound, targets=targets)


def _layer(parameter: str) -> str:
    """The module that owns a parameter, or the parameter itself where there is no module."""
    return parameter.rpartition(".")[0] or parameter
