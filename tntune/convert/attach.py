"""attached: a model that computes with adapters for a while, whatever kind its layers are."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tntune.errors import ModeError, TargetError
from tntune.maps.base import Factors

__all__ = ["attached", "modules_of", "on_call"]


@contextmanager
def attached(model: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Inside the block each named module computes ``base(x) + up down x``; no tensor is changed.

    Args:
        model: Its modules take and return tensors with features last: ``nn.Linear``, GPT-2's ``Conv1D``.
        factors: Down ``(r, in)`` and up ``(out, r)`` with the scale multiplied in, by module path.

    Raises:
        TargetError: Where the model has no module of a path.
        ModeError: At the first call, where a module has other sizes than its factors.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> x, factors = torch.ones(1, 2), Factors(torch.ones(1, 2), torch.ones(2, 1))
        >>> before = model(x)
        >>> with attached(model, {"0": factors}):
        ...     print((model(x) - before).tolist())
        [[2.0, 2.0]]
    """
    handles = [
        on_call(name, module, partial(_add, name, factors[name]))
        for name, module in modules_of(model, factors).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def modules_of(model: nn.Module, names: Mapping[str, object]) -> dict[str, nn.Module]:
    """The modules of these paths; :class:`TargetError` names those that the model lacks.

    Example:
        >>> list(modules_of(nn.Sequential(nn.Linear(2, 2)), {"0": None}))
        ['0']
    """
    known = dict(model.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise TargetError(f"{type(model).__name__} has no modules {missing[:3]}: is it the base model?")
    return {name: known[name] for name in names}


def on_call(
    name: str, module: nn.Module, work: Callable[[Tensor, Tensor], Tensor]
) -> torch.utils.hooks.RemovableHandle:
    """A forward hook: ``work(x, output)`` in place of the output, where x is given by place or by name.

    Raises:
        TargetError: At a call whose first argument is no tensor.

    Example:
        >>> layer = nn.Identity()
        >>> handle = on_call("fc", layer, lambda x, output: x + output)
        >>> layer(input=torch.ones(1))
        tensor([2.])
    """

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = next(iter((*args, *kwargs.values())), None)
        if not isinstance(x, Tensor):
            raise TargetError(f"{name}: was called with {type(x).__name__}, and layers take one tensor")
        return work(x, output)

    return module.register_forward_hook(hook, with_kwargs=True)


def _add(name: str, factors: Factors, x: Tensor, output: Tensor) -> Tensor:
    """The output with the adapter's on top."""
    if x.shape[-1] != factors.down.shape[1] or output.shape[-1] != factors.up.shape[0]:
        raise ModeError(
            f"{name}: maps {x.shape[-1]} to {output.shape[-1]} features, its adapter "
            f"{factors.down.shape[1]} to {factors.up.shape[0]}"
        )
    down, up = factors.down.to(x), factors.up.to(x)
    return torch.add(output, nn.functional.linear(nn.functional.linear(x, down), up))
