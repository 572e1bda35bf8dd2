"""attach: a method put into a base model, and every trainable parameter counted under one name."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.adapters.spec import check_target
from tntune.errors import SpecError
from tntune.experiments.method import HEAD, Method
from tntune.experiments.target import target_sizes
from tntune.experiments.task import Task
from tntune.maps.activation import activation
from tntune.maps.group import Group
from tntune.maps.paired import paired

__all__ = ["ADAPTER", "Attached", "attach", "install_groups", "is_adapter", "stored_bytes"]

ADAPTER = "adapter"
"""The part of the parameters that belongs to the method, not to the task."""


@dataclass(frozen=True)
class Attached:
    """What :func:`attach` made of a model.

    Attributes:
        size: Width or rank of the maps; None where there is none to choose.
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
        SpecError: For a budget where no size is to be chosen, or none where one is; or where something else
            of the model trains.
        RankError: Where no size fits the budget.

    Example:
        >>> from tntune.experiments.planes import Planes
        >>> task, lora = Planes(), Method.from_table({"label": "LoRA", "kind": "lora"})
        >>> attach(task, task.model(0), lora, budget=200, generator=torch.Generator().manual_seed(0))
        Attached(size=3, params={'adapter': 192, 'head': 34})
    """
    if method.is_sized != (budget is not None):
        need = "needs a budget" if method.is_sized else "has its size, and takes no budget"
        raise SpecError(f"{method.label}: {need}; budget={budget}")
    targets = target_sizes(model, task.targets)
    for path in targets:
        check_target(path, dict(model.named_modules()))
    if method.kind == HEAD:
        for path in targets:
            model.get_submodule(path).requires_grad_(True)
        return Attached(None, _parts(task, model))
    size = method.size_for(targets, budget) if budget is not None else method.size
    groups = method.groups(targets, 1 if size is None else size)
    install_groups(model, groups, generator=generator, spread=method.spread)
    return Attached(size, _parts(task, model))


def install_groups(
    model: nn.Module, groups: Sequence[Group], *, generator: torch.Generator, spread: float | None = None
) -> None:
    """Wrap the modules of each group around one generator of factors; all else trains or not as before.

    Args:
        model: Has the modules.
        groups: Maps with the paths of their sites.
        generator: Draws the params.
        spread: Standard deviation of normal entries in place of the maps' own start.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> group = Group(LoRA(4, 3, 2), ("0",), (1.0,))
        >>> install_groups(model, [group], generator=torch.Generator().manual_seed(0))
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        14
    """
    for group in groups:
        factors = FactorGenerator(group.map, *_start(group, generator, spread))
        for site, (path, scale) in enumerate(zip(group.modules, group.scales, strict=True)):
            parent, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
            layer = AdaptedLinear(
                parent.get_submodule(name), factors, scale=scale, activation=group.activation, site=site
            )
            setattr(parent, name, layer.train(model.training))


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


def _start(
    group: Group, generator: torch.Generator, spread: float | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``(params, fixed)``: the map's own start, in opposite pairs for a nonlinear σ, or normal entries."""
    params, fixed = group.map.init(generator)
    if spread is not None:
        return {name: p.normal_(0, spread, generator=generator) for name, p in params.items()}, fixed
    if activation(group.activation).linear:
        return params, fixed
    return paired(group.map, params), paired(group.map, fixed)


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
