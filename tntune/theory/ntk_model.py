"""The tangent kernel of any torch model over its adapter parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tntune.errors import DtypeError, SpecError
from tntune.theory.ntk_gradients import (
    Function,
    Gradients,
    ParameterFilter,
    function_of,
    looped_gradients,
    vmapped_gradients,
)
from tntune.theory.ntk_output import Batch, OutputFunction
from tntune.theory.ntk_result import Ntk
from tntune.theory.ntk_rows import OUTPUTS, Outer, gram

__all__ = ["NtkPlan", "Progress", "ntk", "ntk_plan"]

Progress = Callable[[int, int], None]
"""Called with ``(samples done, samples)`` after every block."""

_BLOCK_BYTES = 2**28  # what one block of samples may take beside the kernel and its gradients


@dataclass(frozen=True, eq=False)
class NtkPlan:
    """What a kernel will take, known before it is computed: ``str(plan)`` says it, ``plan.run()`` does it.

    Made by :func:`ntk_plan`.

    Attributes:
        function: The model as a function of its parameters.
        output: ``"full"``, ``"trace"`` or ``"per_class"``.
        outputs: C.
        block_size: Samples whose gradients are taken at once.
        activation_bytes: What autograd keeps of one sample, measured.

    Example:
        >>> plan = ntk_plan(nn.Linear(3, 2).eval(), torch.ones(4, 3), lambda model, x: model(x))
        >>> print(plan)
        4 samples, 2 outputs, 8 parameters: kernel (8, 8) 256 B, gradients 256 B, 4 at once 304 B
    """

    function: Function
    output: str
    outputs: int
    block_size: int
    activation_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the gradients and the kernel."""
        return next(iter(self.function.params.values())).dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        n, c = self.function.samples, self.outputs
        return {"full": (n * c, n * c), "trace": (n, n), "per_class": (c, n, n)}[self.output]

    @property
    def kernel_bytes(self) -> int:
        """Of the kernel."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients, which the result keeps."""
        return self.function.samples * self._row_bytes

    @property
    def block_bytes(self) -> int:
        """Of one block of samples: what autograd keeps, and their gradients before they are stored."""
        return self.block_size * (self.activation_bytes + self._row_bytes)

    @property
    def total_bytes(self) -> int:
        """An estimate of the peak beside the model."""
        return self.kernel_bytes + self.gradient_bytes + self.block_bytes

    @property
    def _row_bytes(self) -> int:
        return self.outputs * self.function.num_parameters * self.dtype.itemsize

    def __str__(self) -> str:
        function = self.function
        return (
            f"{function.samples:,} samples, {self.outputs:,} outputs, {function.num_parameters:,} parameters"
            f": kernel {self.shape} {_readable(self.kernel_bytes)}, gradients "
            f"{_readable(self.gradient_bytes)}, {self.block_size} at once {_readable(self.block_bytes)}"
        )

    def run(self, *, progress: Progress | None = None) -> Ntk:
        """Compute the kernel, block by block.

        Raises:
            NumericalError: Where a gradient is not finite.
        """
        route, blocks = "vmap", []
        for start in range(0, self.function.samples, self.block_size):
            part = self.function.part(slice(start, start + self.block_size))
            found, route = _block(self.function, part, route)
            blocks.append(found)
            if progress is not None:
                progress(min(start + self.block_size, self.function.samples), self.function.samples)
        rows = {name: (Outer(_joined([block[name] for block in blocks])),) for name in self.function.params}
        return Ntk(gram(rows, self.output), self.output, route, rows)


def ntk(
    model: nn.Module,
    batch: Batch,
    output_fn: OutputFunction,
    *,
    params: ParameterFilter | None = None,
    output: str = "full",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Ntk:
    """Empirical tangent kernel ``T = A A.T`` with A the gradients of all outputs by the chosen parameters.

    Samples go through vmap in blocks, with a backward for five outputs at a time; where an operation of the
    model has no batching rule, they go one by one, and ``route`` says why. The model is not changed.

    Args:
        model: Any module in eval mode.
        batch: One tensor, or the model's arguments by name; tensors have the samples first.
        output_fn: ``(model, batch) -> (n, ...)``: :func:`logits`, :func:`margin`, :func:`last_token`,
            :func:`loss` or your own. Row i depends on sample i alone.
        params: Which parameters, ``(name, parameter) -> bool``; by default those that require a gradient.
        output: ``"full"`` (n C, n C), ``"trace"`` (n, n) or ``"per_class"`` (C, n, n).
        dtype: float32 or float64 to compute in; the model's own by default.
        progress: Called after every block.

    Returns:
        The kernel and its gradients, n C P entries. What that takes is known beforehand: :func:`ntk_plan`.

    Raises:
        TargetError: Where no parameter is chosen.
        UnsupportedError: For a model in training mode.
        ModeError, SpecError, DtypeError: For inputs, options or dtypes that do not fit.
        NumericalError: Where a gradient is not finite.

    Example:
        >>> from tntune.theory.ntk_output import logits
        >>> ntk(nn.Linear(3, 2).eval(), torch.ones(1, 3), logits).values.tolist()
        [[4.0, 0.0], [0.0, 4.0]]

    Statement: N3 in theory/ntk.md.
    """
    plan = ntk_plan(model, batch, output_fn, params=params, output=output, dtype=dtype)
    return plan.run(progress=progress)


def ntk_plan(
    model: nn.Module,
    batch: Batch,
    output_fn: OutputFunction,
    *,
    params: ParameterFilter | None = None,
    output: str = "full",
    dtype: torch.dtype | None = None,
    block_size: int | None = None,
) -> NtkPlan:
    """What :func:`ntk` would take, from one forward of one sample; arguments and errors as there.

    Args:
        model: As in :func:`ntk`.
        batch: As there.
        output_fn: As there.
        params: As there.
        output: As there.
        dtype: As there.
        block_size: Samples at once; by default as many as fit into 256 MB.

    Example:
        >>> from tntune.theory.ntk_output import logits
        >>> ntk_plan(nn.Linear(3, 2).eval(), torch.ones(9, 3), logits, output="trace").shape
        (9, 9)
    """
    if output not in OUTPUTS:
        raise SpecError(f"output must be one of {', '.join(OUTPUTS)}, not {output!r}")
    if block_size is not None and block_size < 1:
        raise SpecError(f"block_size must be at least 1, not {block_size}")
    function = function_of(model, batch, output_fn, params=params, dtype=dtype)
    dtypes = {param.dtype for param in function.params.values()}
    if not dtypes <= {torch.float32, torch.float64} or len(dtypes) > 1:
        raise DtypeError(
            f"the parameters are {', '.join(sorted(map(str, dtypes)))}; ask for dtype float32 or float64"
        )
    kept, outputs = _probe(function)
    row = outputs * function.num_parameters * next(iter(dtypes)).itemsize
    fitting = max(1, _BLOCK_BYTES // max(1, kept + row))
    return NtkPlan(function, output, outputs, min(block_size or fitting, function.samples), kept)


def _block(function: Function, part: dict[str, Tensor], route: str) -> tuple[Gradients, str]:
    """Gradients of one block by the route so far, or by the loop from here on where vmap cannot do it."""
    if route == "vmap":
        try:
            return vmapped_gradients(function, part), route
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            route = f"loop, since vmap failed: {reason:.120}"
    return looped_gradients(function, part), route


def _joined(parts: list[Tensor]) -> Tensor:
    """All samples of a parameter, without a copy where one block has them."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _probe(function: Function) -> tuple[int, int]:
    """Bytes that autograd keeps of one sample, and the number of outputs."""
    params = {name: value.clone().requires_grad_() for name, value in function.params.items()}
    shared = {value.untyped_storage().data_ptr() for value in (*params.values(), *function.others.values())}
    shared |= {value.untyped_storage().data_ptr() for value in function.call.parameters()}
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        if saved.untyped_storage().data_ptr() not in shared:
            kept[saved.data_ptr()] = saved.nbytes
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        out = function(params, function.part(slice(0, 1)))
    if not out.requires_grad:
        raise SpecError("the output does not depend on the chosen parameters")
    return sum(kept.values()), out.shape[1]


def _readable(count: int) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    size = float(count)
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"
