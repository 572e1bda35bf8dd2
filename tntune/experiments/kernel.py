"""The tangent kernel at the start of a training, small enough to be taken of every run."""

from torch import Tensor, nn

from tntune.errors import NumericalError, SpecError
from tntune.experiments.attach import is_adapter
from tntune.experiments.machine import moved
from tntune.experiments.task import Task
from tntune.theory.ntk_model import ntk
from tntune.theory.ntk_output import Batch

__all__ = ["SAMPLES", "start_kernel"]

SAMPLES = 32
"""Examples of the validation split that the kernel is taken on."""


def start_kernel(task: Task, model: nn.Module, *, samples: int = SAMPLES) -> dict[str, float] | None:
    """Spectrum of ``A Aᵀ``, A the gradients of each example's loss by the adapter's parameters.

    For a single number for each example this is the kernel that governs how gradient descent changes the
    losses: ``dL/dt = -A Aᵀ 1 / n``. Extras of the task are left out, which all methods share.

    Args:
        task: Gives loss and examples.
        model: With the method in it; left in the mode it was in.
        samples: The first examples of validation.

    Returns:
        ``rank``, ``lambda_max``, ``lambda_min_plus``, ``cond_plus`` and ``trace``; None where a gradient is
        not finite, or all are 0.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> task = Planes()
        >>> task.targets = ("head",)  # which trains
        >>> sorted(start_kernel(task, task.model(0), samples=8))
        ['cond_plus', 'lambda_max', 'lambda_min_plus', 'rank', 'trace']
    """
    device = next(model.parameters()).device
    split = {name: tensor[:samples] for name, tensor in moved(task.data.validation, device).items()}
    mode = model.training

    def loss(called: nn.Module, batch: Batch) -> Tensor:
        if isinstance(batch, Tensor):
            raise SpecError("a task's batch has names")
        return task.loss(called, {name: x for name, x in batch.items() if isinstance(x, Tensor)}).reshape(1)

    try:
        kernel = ntk(
            model.eval(), split, loss, params=lambda name, p: p.requires_grad and is_adapter(task, name)
        )
        spectrum = kernel.spectrum()
    except NumericalError:
        return None
    finally:
        model.train(mode)
    if spectrum.lambda_min_plus is None or spectrum.cond_plus is None:
        return None
    return {
        "rank": spectrum.rank,
        "lambda_max": spectrum.lambda_max,
        "lambda_min_plus": spectrum.lambda_min_plus,
        "cond_plus": spectrum.cond_plus,
        "trace": spectrum.trace,
    }
