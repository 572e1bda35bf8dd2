"""Law: with a Trainer too the budget is met, and what is saved is what was trained."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from tests.peft.test_callback import CONFIGS, Tower, adapted
from tests.support.tolerance import close
from tntune.errors import RankError, SpecError, TargetError, UnsupportedError
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig
from tntune.peft.auto_ranks import AutoRanksCallback, note_maps, tuner_branches
from tntune.plugins import prune_bonds

pytestmark = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

EVERY = pytest.mark.parametrize("name", CONFIGS)


def rows(count: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(count, 6, generator=generator).double() for key in ("x", "labels")}


def params(model: PeftModel) -> int:
    return model.get_nb_trainable_parameters()[0]


def trainer(model: PeftModel, callback: AutoRanksCallback, folder: Path, *, steps: int = 4) -> Trainer:
    settings = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=6, learning_rate=1e-2, report_to=[],
        save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False, use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    data = rows()
    pairs = [{key: value[k] for key, value in data.items()} for k in range(6)]
    made = Trainer(model, settings, train_dataset=pairs)
    made.add_callback(callback)
    return made


@EVERY
def test_what_is_saved_is_what_was_pruned(name: str, tmp_path: Path) -> None:
    model, data = adapted(name), rows()
    before = params(model)
    prune_bonds(tuner_branches(model), int(0.7 * before))
    note_maps(model)
    assert params(model) <= int(0.7 * before)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_of(model), tmp_path)
    assert close(loaded(**data)["logits"], model(**data)["logits"])
    assert params(PeftModel.from_pretrained(base_of(model), tmp_path, is_trainable=True)) == params(model)


def base_of(model: PeftModel) -> Tower:
    """The tower below an adapted one."""
    base = Tower().double()
    for own, layer in zip(base.blocks, model.base_model.model.blocks, strict=True):
        own.load_state_dict(layer.base_layer.state_dict())
    return base


@pytest.mark.parametrize("name", ["per layer", "shared", "lora"])
def test_a_trainer_ends_within_the_budget(name: str, tmp_path: Path) -> None:
    model = adapted(name, start=True)
    budget = int(0.7 * params(model))
    callback = AutoRanksCallback(budget=budget, at=(2, 3))
    made = trainer(model, callback, tmp_path)
    made.train()
    assert len(callback.reports) == 2
    assert callback.reports[-1].params == params(model) <= budget
    held = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    moments = [made.optimizer.state[p]["exp_avg"] for p in model.parameters() if p.requires_grad]
    assert any(bool(moment.any()) for moment in moments)


AUTO = {
    "per layer": TensorGuideConfig(r=4, ranks="auto", params=0.5),
    "shared": SharedTensorGuideConfig(r=4, ranks="auto", params=0.5),
    "tt_lora": TensorGuideConfig(r=4, ranks="auto", params=0.7, method="tt_lora"),
    "lora": TensorGuideConfig(r=6, ranks="auto", params=2 / 3, method="lora"),
}


@pytest.mark.parametrize("name", AUTO)
def test_automatic_ranks_start_above_the_budget_and_end_within(name: str, tmp_path: Path) -> None:
    """As AdaLoRA: the configuration says how much is left, the schedule when."""
    config = AUTO[name]
    config.target_modules = {"blocks.0", "blocks.1"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(Tower().double(), config)
    budget = int(config.params * config.r * 2 * 12)
    assert budget < params(model) <= (4 if name != "lora" else 1.5) * budget
    callback = AutoRanksCallback()
    trainer(model, callback, tmp_path / "run", steps=10).train()
    assert len(callback.reports) == 3
    assert params(model) == callback.reports[-1].params <= budget
    model.save_pretrained(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(base_of(model), tmp_path / "saved")
    assert close(loaded(**rows())["logits"], model(**rows())["logits"])
    assert (loaded.peft_config["default"].ranks, params(model)) == (
        "auto",
        sum(p.numel() for key, p in loaded.named_parameters() if "base_layer" not in key),
    )


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (TensorGuideConfig, {"ranks": "auto"}, "found within a budget: give params"),
        (TensorGuideConfig, {"ranks": "auto", "params": -1.0}, "a positive share"),
        (TensorGuideConfig, {"ranks": "many"}, "ranks must be a positive integer, not 'many'"),
        (TensorGuideConfig, {"ranks": "auto", "params": 0.5, "method": "loretta"}, "'loretta' has no bonds"),
        (SharedTensorGuideConfig, {"ranks": "auto", "params": 0.5, "method": "lotr"}, "'lotr' has no bonds"),
        (TensorGuideConfig, {"ranks": "auto", "params": 1.0, "method": "lora"}, "params is below 1, not 1.0"),
        (
            TensorGuideConfig,
            {"ranks": "auto", "params": 0.5, "layout": "concat"},
            "cannot change; name the legs",
        ),
    ],
)
def test_automatic_ranks_that_cannot_be(
    config: type[TensorGuideConfig], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        config(**fields)


def test_without_a_budget_anywhere(tmp_path: Path) -> None:
    made = trainer(adapted("lora", start=True), AutoRanksCallback(), tmp_path)
    with pytest.raises(SpecError, match="give a budget: the configuration has ranks=None, not 'auto'"):
        made.train()


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no TensorGuide adapter is active"):
        tuner_branches(Tower())
    with pytest.raises(RankError, match="not below the"):
        trainer(adapted("lora", start=True), AutoRanksCallback(budget=10**6, at=(2,)), tmp_path).train()
    callback = AutoRanksCallback(budget=10, at=(2,))
    made = trainer(adapted("lora", start=True), callback, tmp_path)
    made.state.global_step = 3
    with pytest.raises(SpecError, match="resumes at step 3"):
        callback.on_train_begin(made.args, made.state, made.control, model=made.model, optimizer=None)

    class Best:
        world_size = 1
        load_best_model_at_end = True

    with pytest.raises(UnsupportedError, match="load_best_model_at_end may load a checkpoint of before"):
        callback.on_train_begin(Best(), made.state, made.control, model=made.model, optimizer=None)

    class Two:
        world_size = 2

    with pytest.raises(UnsupportedError, match="on 2 processes"):
        callback.on_train_begin(Two(), made.state, made.control, model=made.model, optimizer=None)
