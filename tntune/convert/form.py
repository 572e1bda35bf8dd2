"""Form: a positive definite form of one side of a layer, given by its second moment and a ridge."""

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Form"]


@dataclass(frozen=True)
class Form:
    """``x -> xᵀ (ridge + gain * moment) x``; without a moment a multiple of the identity.

    Attributes:
        size: n.
        moment: ``(n, n)``, or rows ``(k, n)`` of which it is the Gram matrix, or None.
        ridge: At least 0.
        gain: At least 0.

    Example:
        >>> import torch
        >>> form = Form(3, torch.ones(1, 3), 1.0)
        >>> form.apply(torch.eye(3))[0]
        tensor([2., 1., 1.])
    """

    size: int
    moment: Tensor | None = None
    ridge: float = 1.0
    gain: float = 1.0

    def apply(self, x: Tensor) -> Tensor:
        """The form's matrix times ``x (n, m)``, in the dtype of x; O(n² m) or O(k n m)."""
        if self.moment is None:
            return self.ridge * x
        moment = self.moment.to(x)
        if moment.shape[0] == self.size:
            return self.ridge * x + self.gain * (moment @ x)
        return self.ridge * x + self.gain * (moment.mT @ (moment @ x))

    def gram(self, x: Tensor) -> Tensor:
        """``xᵀ (ridge + gain * moment) x`` of columns ``x (n, m)``, symmetric ``(m, m)``."""
        found = x.mT @ self.apply(x)
        return (found + found.mT) / 2

    @property
    def mean(self) -> float:
        """Mean eigenvalue."""
        return self.ridge + (0.0 if self.moment is None else self.gain * mean_eigenvalue(self.moment))

    def same(self, other: "Form") -> bool:
        """Whether the other is this form, known without comparing entries."""
        return self.moment is other.moment and (self.size, self.ridge, self.gain) == (
            other.size,
            other.ridge,
            other.gain,
        )


def mean_eigenvalue(moment: Tensor) -> float:
    """Trace of a moment, or of the Gram matrix of its rows, over its size.

    Example:
        >>> import torch
        >>> mean_eigenvalue(torch.eye(3)), mean_eigenvalue(torch.ones(1, 3))
        (1.0, 1.0)
    """
    square = moment.shape[0] == moment.shape[1]
    trace = moment.diagonal().double().sum() if square else moment.double().square().sum()
    return float(trace) / moment.shape[1]
