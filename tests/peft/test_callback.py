"""Law: what the callback logs is what dense computations on the cores say, and training does not notice."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tests.peft.workers import training
from tests.support.processes import run
from tests.support.tolerance import close
from tntune.errors import SpecError, TargetError, UnsupportedError
from tntune.peft import SharedTensorGuideConfig, TensorGuideCallback, TensorGuideConfig
from tntune.theory import TrainJacobian, conditioning
from tntune.tt import dense, tt_tensor

pytestmark = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

KINDS = ("core_norm", "gradient_norm", "effective_rank", "condition")
CONFIGS: dict[str, TensorGuideConfig] = {
    "per layer": TensorGuideConfig(r=4, ranks=2),
    "shared": SharedTensorGuideConfig(r=4, ranks=2),
    "latent": TensorGuideConfig(r=4, ranks=2, latent="fixed"),
    "tt_lora": TensorGuideConfig(r=4, ranks=2, method="tt_lora"),
    "lora": TensorGuideConfig(r=2, method="lora"),
}


class Tower(nn.Module):
    """Linear layers of one shape, with the loss that a Trainer asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return {"loss": (x - labels).square().mean(), "logits": x}


def adapted(name: str, *, start: bool = False) -> PeftModel:
    """The tower with adapters in float64, with random cores or at the start that changes nothing."""
    config = CONFIGS[name]
    config.target_modules, config.init_weights, config.sites = {"blocks.0", "blocks.1"}, start, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(Tower().double(), config)


def rows() -> list[dict[str, Tensor]]:
    """Data for a Trainer."""
    x = torch.randn(8, 2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [{"x": row[0], "labels": row[1]} for row in x]


def trains(model: PeftModel, name: str) -> list[list[Tensor]]:
    """The cores (r, n, r') of each train, by the names of the parameters alone."""
    found: dict[str, list[Tensor]] = {}
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            train = key.rpartition(".")[0] if name == "lora" else key.rstrip("0123456789")
            found.setdefault(train, []).append(parameter.detach())
    if name == "lora":  # down is registered first, and is the second core
        return [[up[None], down[..., None]] for down, up in found.values()]
    return [[core.flatten(1, -2) for core in cores] for cores in found.values()]


def entropy_rank(values: Tensor) -> float:
    """``exp H`` of the squares, as shares of their sum."""
    p = values.square() / values.square().sum()
    p = p[p > 0]
    return math.exp(-float((p * p.log()).sum()))


def expected(model: PeftModel, name: str) -> dict[str, list[float]]:
    """All numbers of each kind, from dense tensors."""
    ranks, conditions, norms = [], [], []
    for cores in trains(model, name):
        whole = dense(tt_tensor(cores))
        norms += [float(core.norm()) for core in cores]
        for k in range(1, whole.ndim):
            unfolding = whole.reshape(math.prod(whole.shape[:k]), -1)
            ranks.append(entropy_rank(torch.linalg.svdvals(unfolding)))
        lower, _, upper = conditioning(TrainJacobian.plain(cores))
        assert lower.holds
        assert upper.holds
        conditions.append(upper.value / lower.value)
    gradients = [float(p.grad.norm()) for p in model.parameters() if p.requires_grad]
    return dict(zip(KINDS, (norms, gradients, ranks, conditions), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_are_those_of_dense_computations(name: str) -> None:
    model = adapted(name)
    row = rows()[0]
    model(**row)["loss"].backward()
    found = training.measured(model)
    wanted = expected(model, name)
    assert sorted(found) == sorted(
        f"tensorguide/default/{kind}_{how}" for kind in KINDS for how in ("mean", "max")
    )
    for kind, numbers in wanted.items():
        mean, largest = (found[f"tensorguide/default/{kind}_{how}"] for how in ("mean", "max"))
        assert type(mean) is type(largest) is float
        pair = torch.tensor([sum(numbers) / len(numbers), max(numbers)], dtype=torch.float64)
        assert close(torch.tensor([mean, largest], dtype=torch.float64), pair)


def test_what_is_not_minimal_has_no_condition() -> None:
    """At the start of a LoRA up is zero: ΔW has no rank, and a change of down does nothing."""
    found = TensorGuideCallback(print).metrics(adapted("lora", start=True))
    assert found["tensorguide/default/effective_rank_max"] == 0.0
    assert found["tensorguide/default/condition_mean"] == math.inf
    assert "tensorguide/default/gradient_norm_mean" not in found


def test_cores_that_are_not_finite_are_told_not_raised() -> None:
    model = adapted("per layer")
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(math.nan)
    found = TensorGuideCallback(print).metrics(model)
    assert all(math.isnan(number) for number in found.values())


def test_each_active_adapter_is_told_apart() -> None:
    model = adapted("per layer")
    alone = TensorGuideCallback(print).metrics(model)
    model.add_adapter("wide", TensorGuideConfig(r=4, ranks=4, target_modules=["blocks.1"]))
    assert TensorGuideCallback(print).metrics(model) == alone
    model.base_model.set_adapter(["default", "wide"])
    both = TensorGuideCallback(print).metrics(model)
    assert {key.split("/")[1] for key in both} == {"default", "wide"}
    assert {key: both[key] for key in alone} == alone


class Reporter(TrainerCallback):
    """What a tool that draws curves is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.told.append((state.global_step, dict(kwargs["logs"])))


def fit(folder: Path, *, every: int | None) -> tuple[PeftModel, Reporter, Trainer]:
    """Six steps, a loss logged at each, with the callback or without."""
    reporter = Reporter()
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=1,
        learning_rate=0.01,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(adapted("shared"), settings, train_dataset=rows(), callbacks=[reporter])
    if every is not None:
        trainer.add_callback(TensorGuideCallback(trainer.log, every=every))
    trainer.train()
    return trainer.model, reporter, trainer


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
def test_the_trainer_passes_the_numbers_on(tmp_path: Path) -> None:
    model, reporter, trainer = fit(tmp_path, every=2)
    numbers = [(step, logs) for step, logs in reporter.told if "tensorguide/default/condition_max" in logs]
    assert [step for step, _ in numbers] == [2, 4, 6]
    assert [step for step, logs in reporter.told if "loss" in logs] == [1, 2, 3, 4, 5, 6]
    assert all("tensorguide/default/gradient_norm_mean" in logs for _, logs in numbers)
    now = TensorGuideCallback(print).metrics(model)
    assert {key: numbers[-1][1][key] for key in now} == now
    assert json.loads(json.dumps(trainer.state.log_history)) == trainer.state.log_history


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")
def test_training_does_not_notice(tmp_path: Path) -> None:
    with_callback, _, _ = fit(tmp_path, every=1)
    without, _, _ = fit(tmp_path, every=None)
    pairs = zip(with_callback.parameters(), without.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_refusals() -> None:
    with pytest.raises(SpecError, match="every must be a positive integer, not 0"):
        TensorGuideCallback(print, every=0)
    with pytest.raises(TargetError, match="no TensorGuide adapter is active"):
        TensorGuideCallback(print).metrics(Tower())
    model = adapted("per layer")
    generator = model.base_model.model.blocks[0].generator("default")
    generator.tt_core_0 = nn.Parameter(generator.tt_core_0.detach().flatten())
    with pytest.raises(UnsupportedError, match=r"flat pieces .* FSDP2 or DDP"):
        TensorGuideCallback(print).metrics(model)


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", training.WRAPPINGS)
def test_processes_see_the_whole_cores(wrapping: str, tmp_path: Path) -> None:
    """FSDP1 keeps flat pieces and is refused; the others log what one process does."""
    outcomes = run(training.measured_together, "per layer", wrapping, folder=tmp_path)
    if wrapping.startswith("fsdp1"):
        assert all(outcome.error.startswith("UnsupportedError: the cores are") for outcome in outcomes)
        return
    model, tokens = training.adapted("per layer"), training.batch()
    model(input_ids=tokens, labels=tokens).loss.backward()
    wanted = training.measured(model)
    for outcome in outcomes:
        assert outcome.value.keys() == wanted.keys(), outcome.error
        assert close(
            *(torch.tensor(list(each.values()), dtype=torch.float64) for each in (outcome.value, wanted))
        )
