"""AutoRanksCallback: ranks for a parameter budget, found while transformers' Trainer trains."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tntune.adapters.generator import FactorGenerator
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.maps.codec import encode
from tntune.peft.config import SharedTensorGuideConfig, TensorGuideConfig
from tntune.peft.layer import TensorGuideLayer
from tntune.peft.linear import linear_sizes
from tntune.peft.plan import Sizes, auto_budget
from tntune.plugins.auto_ranks import AutoRanks, pruning_steps
from tntune.plugins.branch import Branch
from tntune.plugins.prune_bonds import RankReport

__all__ = ["AutoRanksCallback", "note_maps", "tuner_branches"]


class AutoRanksCallback(TrainerCallback):
    """:class:`tntune.plugins.AutoRanks` for the active adapters of a PEFT model, step by step of the Trainer.

    Configurations note the new maps, so that adapters are saved and loaded as ever.

    Args:
        budget: Parameters of all active TensorGuide adapters at the end; by default what their
            configurations say by ``ranks="auto"`` and ``params``.
        at: Steps of the optimiser, counted from 1, after which ranks shrink; by default at 10, 20 and 30 %
            of the training.

    Attributes:
        reports: What came of each pruning so far.

    Example:
        >>> AutoRanksCallback().reports, AutoRanksCallback(budget=5000, at=(200,)).at
        ([], (200,))
    """

    def __init__(self, *, budget: int | None = None, at: Sequence[int] | None = None) -> None:
        self.budget, self.at = budget, None if at is None else tuple(at)
        self.reports: list[RankReport] = []
        self._auto: AutoRanks | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse what cannot be done, before anything is trained.

        Raises:
            TargetError: Where no TensorGuide adapter is active.
            UnsupportedError: With several processes, whose wrappers hold parameters of a fixed shape, or
                where the best checkpoint is to be loaded into the last ranks.
            SpecError: Where training is resumed behind the first of the steps, or no budget is known.
        """
        if args.world_size > 1:
            raise UnsupportedError(
                f"ranks cannot change on {args.world_size} processes, whose wrappers know parameters by shape"
            )
        if args.load_best_model_at_end:
            raise UnsupportedError(
                "load_best_model_at_end may load a checkpoint of before a pruning, whose ranks are others; "
                "set it to False, and load the checkpoint you want with PeftModel.from_pretrained"
            )
        if state.global_step:
            raise SpecError(f"training resumes at step {state.global_step}; ranks are found in one run")
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        found = tuner_branches(model)
        budget = _asked(model) if self.budget is None else self.budget
        at = pruning_steps(state.max_steps) if self.at is None else self.at
        self._auto = AutoRanks(found, optimizer, budget=budget, at=at)
        self.reports = self._auto.reports

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step; where ranks shrank after it, note the new maps."""
        if self._auto is not None and self._auto.step() is not None:
            note_maps(kwargs["model"])


def _asked(model: nn.Module) -> int:
    """The budget that the configurations of all active adapters say."""
    targets: dict[str, dict[str, Sizes]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, TensorGuideLayer):
            sizes = linear_sizes(layer.get_base_layer())
            for adapter in layer.active_adapters:
                if adapter in layer.tensorguide_site:
                    targets.setdefault(adapter, {})[name.removeprefix("base_model.model.")] = sizes
    configs: dict[str, TensorGuideConfig] = model.peft_config  # type: ignore[assignment]
    return sum(auto_budget(configs[adapter], own) for adapter, own in targets.items())


def tuner_branches(model: nn.Module) -> list[Branch]:
    """One branch for each generator of the active adapters of a PEFT model, shared ones once.

    Raises:
        TargetError: Where no TensorGuide adapter is active.

    Example:
        >>> from peft import get_peft_model
        >>> config = TensorGuideConfig(r=4, ranks=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(6, 6)), config)
        >>> [branch.name for branch in tuner_branches(model)]
        ['base_model.model.0']
    """
    found: dict[FactorGenerator, tuple[str, dict[int, float]]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, TensorGuideLayer):
            for adapter in layer.active_adapters:
                if adapter in layer.tensorguide_site:
                    _, scales = found.setdefault(layer.generator(adapter), (name, {}))
                    scales[layer.tensorguide_site[adapter][1]] = layer.scaling[adapter]
    if not found:
        raise TargetError("no TensorGuide adapter is active in the model: there are no ranks to choose")
    return [
        Branch(name, held, tuple(scales.get(site, 0.0) for site in range(held.map.sites)))
        for held, (name, scales) in found.items()
    ]


def note_maps(model: nn.Module) -> None:
    """Let layers and configurations of a PEFT model say what maps its generators have now.

    Example:
        >>> from peft import get_peft_model
        >>> config = TensorGuideConfig(r=4, ranks=2, target_modules=["0"])
        >>> model = get_peft_model(nn.Sequential(nn.Linear(6, 6)), config)
        >>> note_maps(model)
        >>> model.peft_config["default"].sites["0"]["map"]["ranks"]
        [1, 2, 2, 1]
    """
    configs: dict[str, TensorGuideConfig] = model.peft_config  # type: ignore[assignment]
    for name, layer in model.named_modules():
        if not isinstance(layer, TensorGuideLayer):
            continue
        for adapter, (group, _) in layer.tensorguide_site.items():
            map, config = layer.generator(adapter).map, configs[adapter]
            layer.r[adapter] = map.width
            known, key = config.sites, name.removeprefix("base_model.model.")
            if isinstance(config, SharedTensorGuideConfig):
                known, key = config.groups, group
            assert known is not None  # the tuner described what it made
            config.describe({**known, key: {**known[key], "map": encode(map)}})
