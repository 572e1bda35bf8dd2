"""What the examples with a Trainer share: one loop for every method, and the table where they meet."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from peft import PeftModel
from torch.nn import Module
from transformers import Trainer, TrainingArguments

from tntune.peft import TensorGuideCallback, TensorGuideConfig


class Row(NamedTuple):
    """One method: what it trains, what it stores, what a step takes and what comes of it."""

    parameters: int
    kilobytes: float
    milliseconds: float
    score: float


def fit(model: Module, data: Any, *, steps: int, rate: float, batch: int, collate: Any = None) -> Trainer:
    """A Trainer that has trained; it logs what becomes of the cores, where there are some."""
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=steps, learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=steps // 10,
            per_device_train_batch_size=batch, logging_steps=max(steps // 4, 1), save_strategy="no", seed=0,
            remove_unused_columns=False, dataloader_pin_memory=False, use_cpu=True, disable_tqdm=True,
            report_to=[],
        )  # fmt: skip
        trainer = Trainer(model, settings, train_dataset=data, data_collator=collate)
        if isinstance(model, PeftModel) and isinstance(model.active_peft_config, TensorGuideConfig):
            trainer.add_callback(TensorGuideCallback(trainer.log, every=4))
        trainer.train()
        return trainer


def weigh(trainer: Trainer, score: float) -> Row:
    """The row of an adapter that was trained, stored as PEFT stores it."""
    model, history = trainer.model, trainer.state.log_history
    seconds = next(log["train_runtime"] for log in history if "train_runtime" in log)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    parameters, _ = model.get_nb_trainable_parameters()
    return Row(parameters, size / 1e3, 1e3 * seconds / trainer.state.global_step, score)


def show(before: float, rows: dict[str, Row], *, score: str) -> None:
    """Print the rows under the score of the model without an adapter."""
    print(f"\n{'':28}{'parameters':>12}{'kB':>10}{'ms a step':>12}{score:>16}")
    print(f"{'no adapter':62}{before:16.3f}")
    for name, row in rows.items():
        print(f"{name:28}{row.parameters:12,}{row.kilobytes:10.1f}{row.milliseconds:12.0f}{row.score:16.3f}")
