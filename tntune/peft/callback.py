"""TensorGuideCallback: what becomes of the cores in training, as numbers in the Trainer's own log."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tntune.adapters.generator import FactorGenerator
from tntune.errors import TargetError, UnsupportedError
from tntune.maps.base import positive
from tntune.peft.layer import TensorGuideLayer
from tntune.theory.environment import left_overlaps, right_overlaps
from tntune.theory.precondition import core_groups
from tntune.tt.rounding import bond_spectra
from tntune.tt.train import tt_tensor

__all__ = ["TensorGuideCallback"]

PREFIX = "tensorguide"

Log = Callable[[dict[str, float]], object]
Generators = dict[str, list[FactorGenerator]]  # those of each adapter that is active


class TensorGuideCallback(TrainerCallback):
    """With every ``every``-th log of the loss, ``log(metrics(model))``: two numbers of each of four kinds.

    For each active adapter, the keys ``tensorguide/<adapter>/<kind>_mean`` and ``_max`` hold

    - ``core_norm``: Frobenius norms of the cores;
    - ``gradient_norm``: those of their gradients, as the optimiser got them, so after clipping;
    - ``effective_rank``: ``exp(-Σ p log p)`` with ``p = σ² / Σ σ²`` for the singular values σ of each bond;
    - ``condition``: the bound of ``λ_max / λ_min⁺`` of ``J Jᵀ`` for each train by its cores, ``Σ_k λ_max(Γ_L)
      λ_max(Γ_R) / min_k λ_min(Γ_L) λ_min(Γ_R)``; ``inf`` where a bond has a direction that nothing uses.

    A latent leg counts with the mode beside it, and a LoRA (``method="lora"``) as the train of ``up`` and
    ``down``. Cost: O(K n r³) in float64 on the CPU for each train, and one norm for each core in other steps.

    Args:
        log: Takes the numbers; a Trainer's own ``log`` brings them to all that it reports to.
        every: How many logs of the loss there are to one of these.

    Raises:
        SpecError: Where ``every`` is no positive integer.

    Example:
        >>> from peft import get_peft_model
        >>> from tntune.peft.config import TensorGuideConfig
        >>> config = TensorGuideConfig(r=4, ranks=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(6, 6)), config)
        >>> callback = TensorGuideCallback(print)  # trainer.add_callback(TensorGuideCallback(trainer.log))
        >>> sorted(key.removeprefix("tensorguide/default/") for key in callback.metrics(model))[:3]
        ['condition_max', 'condition_mean', 'core_norm_max']

    Statement: T3 in theory/jacobian.md.
    """

    def __init__(self, log: Log, *, every: int = 1) -> None:
        self.log = log
        self.every = positive("every", every)
        self._logs = 0
        self._gradients: dict[str, list[Tensor]] = {}

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The numbers of a model as it is; those of gradients are of the last step, where there was one.

        Raises:
            TargetError: Where no TensorGuide adapter is active.
            UnsupportedError: Where the cores are in flat pieces (FSDP1, ZeRO-3). Those of FSDP2 are gathered,
                so all processes must call this.
        """
        found: dict[str, float] = {}
        for adapter, generators in _generators(model).items():
            trains = [train for generator in generators for train in _trains(generator)]
            kinds = {
                "core_norm": [float(core.norm()) for train in trains for core in train],
                "gradient_norm": [float(norm) for norm in self._gradients.get(adapter, ())],
                "effective_rank": [rank for train in trains for rank in _effective_ranks(train)],
                "condition": [_condition(train) for train in trains],
            }
            found.update(_aggregated(f"{PREFIX}/{adapter}", kinds))
        return found

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what :meth:`metrics` refuses, before anything is trained."""
        self._logs, self._gradients = 0, {}
        self.metrics(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the norms of the gradients, which are gone when the loss is logged."""
        self._gradients = {
            adapter: [
                torch.linalg.vector_norm(_whole(parameter.grad))
                for generator in generators
                for parameter in generator.parameters()
                if parameter.grad is not None
            ]
            for adapter, generators in _generators(kwargs["model"]).items()
        }

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Log beside the loss; other logs, such as these numbers themselves, are let pass."""
        if "loss" not in kwargs["logs"]:
            return
        self._logs += 1
        if self._logs % self.every == 0:
            self.log(self.metrics(kwargs["model"]))


def _generators(model: nn.Module) -> Generators:
    """The generators of each active adapter, each once; TargetError where there are none."""
    found: dict[str, dict[FactorGenerator, None]] = {}
    for layer in model.modules():
        if isinstance(layer, TensorGuideLayer):
            for adapter in layer.active_adapters:
                if adapter in layer.tensorguide_site:
                    found.setdefault(adapter, {})[layer.generator(adapter)] = None
    if not found:
        raise TargetError("no TensorGuide adapter is active in the model: there are no cores to look at")
    return {adapter: list(generators) for adapter, generators in found.items()}


def _params(generator: FactorGenerator) -> dict[str, nn.Parameter]:
    """The params by name; UnsupportedError where they are not there in their shapes."""
    params = dict(generator.named_parameters(recurse=False))
    if {name: tuple(param.shape) for name, param in params.items()} != generator.map.param_shapes:
        raise UnsupportedError(
            "the cores are in flat pieces on several processes, as FSDP1 and ZeRO-3 keep them, and cannot be "
            "looked at; train with FSDP2 or DDP, or without this callback"
        )
    return params


def _trains(generator: FactorGenerator) -> Iterator[list[Tensor]]:
    """Cores (r, n, r') of each train, with boundary ranks 1, in float64 on the CPU."""
    params = {name: _whole(param.detach()) for name, param in _params(generator).items()}
    for group in core_groups(generator.map, params):
        first, *others = (core.to("cpu", torch.float64) for core in group["params"])
        cores = [_three_way(first[None] if first.ndim == 2 else first)]
        cores += [_three_way(core[..., None] if core.ndim == 2 else core) for core in others]
        cores[0] = cores[0].sum(0, keepdim=True)
        cores[-1] = cores[-1].sum(-1, keepdim=True)
        yield cores


def _three_way(core: Tensor) -> Tensor:
    """A core with its latent leg and its mode as one."""
    return core.flatten(1, -2)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP2 keeps in shards, put together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _effective_ranks(cores: list[Tensor]) -> list[float]:
    """Of each bond; 0 where the train is zero, and NaN where it is not finite."""
    if not all(bool(core.isfinite().all()) for core in cores):
        return [math.nan] * (len(cores) - 1)
    ranks = []
    for values in bond_spectra(tt_tensor(cores)):
        p = values.square() / values.square().sum()
        ranks.append(float(torch.special.entr(p).sum().exp()) if bool(values[0] > 0) else 0.0)
    return ranks


def _condition(cores: list[Tensor]) -> float:
    """T3: what bounds λ_max from above over what bounds λ_min⁺ from below."""
    if not all(bool(core.isfinite().all()) for core in cores):
        return math.nan
    lefts, rights = left_overlaps(cores, cores), right_overlaps(cores, cores)
    pairs = [(_extremes(left), _extremes(right)) for left, right in zip(lefts[:-1], rights[1:], strict=True)]
    least = min(left[0] * right[0] for left, right in pairs)
    most = sum(left[1] * right[1] for left, right in pairs)
    return most / least if least > 0 else math.inf


def _extremes(gram: Tensor) -> tuple[float, float]:
    """The least and the largest eigenvalue; the least is 0 where it is no more than rounding."""
    values = torch.linalg.eigvalsh(gram)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return float(values[0]) if bool(values[0] > rounding) else 0.0, float(values[-1])


def _aggregated(prefix: str, kinds: Mapping[str, Iterable[float]]) -> dict[str, float]:
    """Mean and maximum of each kind that has numbers."""
    found = {}
    for kind, numbers in kinds.items():
        values = torch.tensor(list(numbers), dtype=torch.float64)
        if len(values):
            found[f"{prefix}/{kind}_mean"] = float(values.mean())
            found[f"{prefix}/{kind}_max"] = float(values.max())
    return found
