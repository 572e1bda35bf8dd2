"""MiniLM as a classifier, by transformers' Trainer: TensorGuide beside PEFT's LoRA (minutes on two cores).

The task and the pretrained encoder are those of the first example: from which part of Python's standard
library does a docstring come? Forty batches are a short training, one seed is one draw, and 500 texts tell
an accuracy to about 0.02: the second example has an adapter that was trained to the end. No network is used.
"""

from collections.abc import Sequence

import torch
from comparison import Row, fit, show, weigh
from docstrings import Split, accuracy, encode, load_base, load_task
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor
from transformers import set_seed

from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig

LAYERS = ["query", "key", "value", "intermediate.dense", "output.dense"]  # the last: two a block
COMMON = {"target_modules": LAYERS, "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
METHODS: dict[str, tuple[PeftConfig, float]] = {  # each with the best learning rate of those tried
    "LoRA, r=8": (LoraConfig(r=8, lora_alpha=8, **COMMON), 1e-2),
    "LoRA, r=1": (LoraConfig(r=1, lora_alpha=1, **COMMON), 3e-2),
    "TensorGuide, one a layer": (TensorGuideConfig(r=8, ranks=8, **COMMON), 3e-2),
    "TensorGuide, shared": (SharedTensorGuideConfig(r=8, ranks=16, **COMMON), 3e-2),
}


def part(split: Split, size: int) -> Split:
    """About this many of its texts, evenly spread."""
    step = max(len(split) // size, 1)
    return Split(split.texts[::step], split.targets[::step])


def main(*, steps: int = 40, size: int = 500) -> dict[str, Row]:
    """Train each method for so many batches, score it on so many texts; print and return the comparison."""
    task = load_task()
    test = part(task.test, size)
    base, tokenizer = load_base()
    before = accuracy(base, tokenizer, test)

    def collate(pairs: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        texts, targets = zip(*pairs, strict=True)
        return {**encode(tokenizer, texts), "labels": torch.tensor(targets)}

    data = list(zip(task.train.texts, task.train.targets, strict=True))
    rows = {}
    for name, (config, rate) in METHODS.items():
        set_seed(0)
        model = get_peft_model(load_base()[0], config)
        trainer = fit(model, data, steps=steps, rate=rate, batch=16, collate=collate)
        rows[name] = weigh(trainer, accuracy(model, tokenizer, test))
    show(before, rows, score="accuracy")
    return rows


if __name__ == "__main__":
    main()
