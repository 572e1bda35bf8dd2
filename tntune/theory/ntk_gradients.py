"""Per-sample gradients of a model's outputs, by vmap or, where that fails, one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from tntune.errors import ModeError, NumericalError, TargetError, UnsupportedError
from tntune.theory.ntk_output import Batch, OutputFunction

__all__ = ["Function", "Gradients", "ParameterFilter", "function_of", "looped_gradients", "vmapped_gradients"]

ParameterFilter = Callable[[str, nn.Parameter], bool]
"""Which parameters the kernel is over, by name and value."""

_TOGETHER = 5  # outputs of one backward: more are hardly faster, and take more memory

Gradients = dict[str, Tensor]
"""By parameter: ``(b, C, entries)``."""


class _Call(nn.Module):
    """The output function as a module, so that functional_call reaches the model inside."""

    def __init__(self, model: nn.Module, output_fn: OutputFunction) -> None:
        super().__init__()
        self.model = model
        self.output_fn = output_fn

    def forward(self, batch: Batch) -> Tensor:
        out = self.output_fn(self.model, batch)
        return out.reshape(len(out), -1)


@dataclass(frozen=True, eq=False)
class Function:
    """A model as a pure function ``function(params, batch) -> (n, C)``; the module itself is not changed.

    Made by :func:`function_of`.

    Attributes:
        call: The output function over the model.
        params: The parameters that the kernel is over, detached, by their names in the model.
        others: All other parameters and buffers, where another dtype than the model's was asked for.
        tensors: The inputs that have a sample axis, in that dtype, by name.
        constants: The other inputs, by name.

    Example:
        >>> linear = nn.Linear(3, 2).eval()
        >>> function = function_of(linear, torch.ones(4, 3), lambda model, x: model(x))
        >>> function.samples, function(function.params, function.part(slice(0, 2))).shape
        (4, torch.Size([2, 2]))
    """

    call: nn.Module
    params: dict[str, Tensor]
    others: dict[str, Tensor]
    tensors: dict[str, Tensor]
    constants: dict[str, object]

    def __call__(self, params: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> Tensor:
        """``(n, C)``. Attention runs on its plain kernel, the one that has every derivative."""
        values = {f"model.{name}": value for name, value in {**self.others, **params}.items()}
        batch = tensors.get("", {**self.constants, **tensors})
        with sdpa_kernel(SDPBackend.MATH):
            out: Tensor = functional_call(self.call, values, (batch,))
        return out

    @property
    def samples(self) -> int:
        """Number n of samples."""
        return len(next(iter(self.tensors.values())))

    @property
    def num_parameters(self) -> int:
        """Entries of all parameters together."""
        return sum(param.numel() for param in self.params.values())

    def part(self, cut: slice) -> dict[str, Tensor]:
        """The inputs of these samples."""
        return {name: tensor[cut] for name, tensor in self.tensors.items()}


def function_of(
    model: nn.Module,
    batch: Batch,
    output_fn: OutputFunction,
    *,
    params: ParameterFilter | None = None,
    dtype: torch.dtype | None = None,
) -> Function:
    """``model`` under ``output_fn`` as a function of those parameters; by default of all that train.

    Raises:
        TargetError: Where no parameter is chosen.
        UnsupportedError: Where a module is in training mode: its function would be random.
        ModeError: Where the inputs have no samples, or not the same number.

    Example:
        >>> sorted(function_of(nn.Linear(3, 2).eval(), torch.ones(4, 3), lambda model, x: model(x)).params)
        ['bias', 'weight']
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise UnsupportedError(
            f"{training[0]} is in training mode, where dropout, latents and statistics change from call to "
            "call; a kernel is of one function: call model.eval() first"
        )
    wanted = params or (lambda _, param: param.requires_grad)
    chosen = {name: param.detach() for name, param in model.named_parameters() if wanted(name, param)}
    if not chosen:
        raise TargetError(f"no parameter of {type(model).__name__} is chosen; none trains, or none passes")
    tensors, constants = _split(batch)
    others: dict[str, Tensor] = {}
    if dtype is not None:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        others = {name: _cast(value, dtype).detach() for name, value in state.items() if name not in chosen}
        chosen = {name: _cast(value, dtype) for name, value in chosen.items()}
        tensors = {name: _cast(value, dtype) for name, value in tensors.items()}
    return Function(_Call(model, output_fn).eval(), chosen, others, tensors, constants)


def vmapped_gradients(function: Function, tensors: Mapping[str, Tensor]) -> Gradients:
    """Gradients of every output of every sample: one batched forward, a batched backward for five at a time.

    Example:
        >>> function = function_of(nn.Linear(3, 2).eval(), torch.ones(4, 3), lambda model, x: model(x))
        >>> vmapped_gradients(function, function.part(slice(4)))["weight"].shape
        torch.Size([4, 2, 6])
    """

    def of_one(sample: dict[str, Tensor]) -> Gradients:
        alone = {name: tensor[None] for name, tensor in sample.items()}
        out, pull = torch.func.vjp(lambda params: function(params, alone)[0], function.params)[:2]
        units = torch.eye(len(out), dtype=out.dtype, device=out.device)
        pulled = [torch.func.vmap(pull)(some)[0] for some in torch.split(units, _TOGETHER)]
        return {name: torch.cat([part[name].flatten(1) for part in pulled]) for name in function.params}

    found: Gradients = torch.func.vmap(of_one)(dict(tensors))
    return _finite(found)


def looped_gradients(function: Function, tensors: Mapping[str, Tensor]) -> Gradients:
    """The same gradients by plain autograd, one sample and one output at a time: for what vmap cannot do.

    Example:
        >>> function = function_of(nn.Linear(3, 2).eval(), torch.ones(4, 3), lambda model, x: model(x))
        >>> looped_gradients(function, function.part(slice(4)))["bias"].shape
        torch.Size([4, 2, 2])
    """
    params = {name: value.clone().requires_grad_() for name, value in function.params.items()}
    rows: dict[str, list[Tensor]] = {name: [] for name in params}
    count = len(next(iter(tensors.values())))
    with torch.enable_grad():
        for i in range(count):
            out = function(params, {name: tensor[i : i + 1] for name, tensor in tensors.items()})[0]
            for c in range(len(out)):
                pulled = torch.autograd.grad(
                    out[c], list(params.values()), retain_graph=c + 1 < len(out), materialize_grads=True
                )
                for name, gradient in zip(params, pulled, strict=True):
                    rows[name].append(gradient.flatten())
    return _finite({name: torch.stack(own).reshape(count, -1, own[0].numel()) for name, own in rows.items()})


def _split(batch: Batch) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Inputs with a sample axis, and the others; a single tensor has the empty name."""
    named: Mapping[str, object] = {"": batch} if isinstance(batch, Tensor) else batch
    tensors = {name: v for name, v in named.items() if isinstance(v, Tensor) and v.ndim}
    counts = {name or "batch": len(tensor) for name, tensor in tensors.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ModeError(f"all tensors of a batch have one positive number of samples first, not {counts}")
    return tensors, {name: v for name, v in named.items() if name not in tensors}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def _finite(gradients: Gradients) -> Gradients:
    """The gradients, or an error with the name of the first parameter that has one that is not finite."""
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise NumericalError(f"the gradients of {name} are not finite")
    return gradients
