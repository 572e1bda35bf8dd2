"""attach: a method put into a base model, and every trainable parameter counted under one name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tntune.adapters.adapt import install
from tntune.adapters.linear import features
from tntune.errors import SpecError, TargetError
from tntune.experiments.method import Method, size_of
from tntune.experiments.task import Task
from tntune.maps.activation import activation
from tntune.maps.group import Group
from tntune.maps.paired import paired

__all__ = ["ADAPTER", "Attached", "attach", "is_adapter", "stored_bytes", "target_sizes"]

ADAPTER = "adapter"
"""The part of the parameters that belongs to the method, not to the task."""


@dataclass(frozen=True)
class Attached:
    """What :func:`attach` made of a model.

    Attributes:
        size: Width of LoRAs, largest rank of other maps; None without maps.
        params: Trainable parameters of each part: the adapter, and each of the task's extras.

    Example:
        >>> Attached(4, {"adapter": 2056, "conv1": 3136}).total
        5192
    """

    size: int | None
    params: dict[str, int]

    @property
    def total(self) -> int:
        """All trainable parameters."""
        return sum(self.params.values())


def attach(
    task: Task, model: nn.Module, method: Method, *, budget: int | None, generator: torch.Generator
) -> Attached:
    """Put a method into a base model, in place; ``sum(params.values())`` is all that trains.

    Args:
        task: Says which modules are targets, and which train anyway.
        model: From :meth:`Task.model`.
        method: The method.
        budget: At most so many parameters of the adapter; for methods whose size is to be chosen, and only
            for them.
        generator: Draws the start.

    Returns:
        The size that was chosen, and the parameters by part.

    Raises:
        SpecError: For a budget where no size is to be chosen, or none where one is, or one that no size fits;
            or where something else of the model trains.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> task, lora = Planes(), Method.from_table({"label": "LoRA", "method": "lora"})
        >>> attach(task, task.model(0), lora, budget=200, generator=torch.Generator().manual_seed(0))
        Attached(size=3, params={'adapter': 192, 'head': 34})
    """
    if method.is_sized != (budget is not None):
        need = "needs a budget" if method.is_sized else "has its size, and takes no budget"
        raise SpecError(f"{method.label}: {need}; budget={budget}")
    targets = target_sizes(model, task.targets)
    if not method.has_maps:
        for path in targets:
            model.get_submodule(path).requires_grad_(True)
        return Attached(None, _parts(task, model))
    groups = method.groups(targets, budget)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    starts = {group.modules[0]: _start(group, generator, method.spread) for group in groups}
    install(model, {group.modules[0]: group for group in groups}, starts)
    for parameter in trained:  # install leaves nothing to train but the maps
        parameter.requires_grad_(True)
    return Attached(max(size_of(group.map) for group in groups), _parts(task, model))


def target_sizes(model: nn.Module, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Sizes of the named linear layers, in the order of the names.

    Raises:
        TargetError: Where the model has no such module, or it is not linear.

    Example:
        >>> target_sizes(nn.Sequential(nn.Linear(4, 3)), ["0"])
        {'0': (4, 3)}
    """
    modules = dict(model.named_modules())
    missing = [path for path in paths if path not in modules]
    if missing or not paths:
        raise TargetError(f"{type(model).__name__} has no modules {missing}, or none was named")
    return {path: features(modules[path]) for path in paths}


def is_adapter(task: Task, name: str) -> bool:
    """Whether a parameter of this name is in a target, and so the method's."""
    return any(name.startswith(f"{path}.") for path in task.targets)


def stored_bytes(model: nn.Module, before: dict[str, Tensor]) -> int:
    """Bytes of the tensors that a checkpoint must hold: what trains, latents, and buffers that changed.

    Args:
        model: After training.
        before: Its buffers before training, by name.
    """
    trained = {id(p): p.nbytes for p in model.parameters() if p.requires_grad}
    for name, buffer in model.named_buffers():
        if ".generator." in f".{name}" or not torch.equal(buffer, before[name]):
            trained[id(buffer)] = buffer.nbytes
    return sum(trained.values())


def _start(group: Group, generator: torch.Generator, spread: float | None) -> dict[str, Tensor]:
    """Params and fixed: the map's own start, in opposite pairs for a nonlinear σ, or normal entries."""
    params, fixed = group.map.init(generator)
    if spread is not None:
        params = {name: p.normal_(0, spread, generator=generator) for name, p in params.items()}
    elif not activation(group.activation).linear:
        params, fixed = paired(group.map, params), paired(group.map, fixed)
    return {**params, **fixed}


def _parts(task: Task, model: nn.Module) -> dict[str, int]:
    """Trainable parameters by part, each once; SpecError for one that is in no part."""
    places = {f"{path}.": path for path in task.extras} | {f"{path}.": ADAPTER for path in task.targets}
    counts = {ADAPTER: 0, **dict.fromkeys(task.extras, 0)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found = next((part for place, part in places.items() if name.startswith(place)), None)
            if found is None:
                raise SpecError(f"{task.name}: {name} trains, but is in none of {sorted(places.values())}")
            counts[found] += parameter.numel()
    return counts
