"""Train a LoRA with PEFT on a real task: `python examples/01_train_lora.py` (minutes on two cores).

What it writes, `examples/minilm_docstrings_r8`, is the adapter that the next example converts.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from docstrings import ADAPTER, BASE, LABELS, Split, Tokenizer, accuracy, encode, load_base, load_task
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from probe import probes
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

BATCH = 32
LEARNING_RATE = 1e-3
PACKAGES = ("torch", "transformers", "peft", BASE)

# %% 1. Rank 8 on all 36 linear layers of the encoder, and a new classifier

CONFIG = LoraConfig(
    r=8,
    lora_alpha=16,
    lora_dropout=0.05,
    target_modules=["query", "key", "value", "intermediate.dense", "output.dense"],  # the last: two a block
    modules_to_save=["classifier"],
    task_type="SEQ_CLS",
    base_model_name_or_path=BASE,
)


def train(model: PeftModel, tokenizer: Tokenizer, split: Split, *, epochs: int) -> None:
    """AdamW, linear warm-up and decay; a batch holds texts of about one length, to pad little."""
    targets = torch.tensor(split.targets)
    lengths = torch.tensor([min(len(text), 300) for text in split.texts])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    steps = epochs * -(-len(split) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        batches = (lengths * torch.empty(len(split)).uniform_(0.7, 1.4)).argsort().split(BATCH)
        for k in torch.randperm(len(batches)).tolist():
            batch = encode(tokenizer, tuple(split.texts[row] for row in batches[k].tolist()))
            loss = cross_entropy(model(**batch).logits, targets[batches[k]])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(batches[k])
        print(f"epoch {epoch + 1} of {epochs}: mean loss {total / len(split):.3f}", flush=True)


# %% 2. Train, store, and score what was stored

CARD = """---
base_model: {base}
library_name: peft
license: bsd-3-clause
tags: [lora, text-classification]
---

# From which part of Python's standard library does a docstring come?

A LoRA of rank 8 on all 36 linear layers of the MiniLM encoder in the PyPI package `{base}`, with a new
classifier over {count} labels: {labels}.
Module names were taken out of the texts; a hash of a text's opening decides in which split it lies.
Made by `examples/01_train_lora.py` in {epochs} epochs; `examples/docstrings.py` loads texts and model.

| on {test} held-out texts, one standard error {deviation:.3f} | accuracy |
|---|---|
| linear probe, pooler features | {linear_probe_pooler:.3f} |
| linear probe, mean over tokens | {linear_probe_mean:.3f} |
| this adapter, LoRA scaled to zero | {adapter_off:.3f} |
| this adapter | {lora:.3f} |

Meant for showing what a conversion keeps, not for use. The texts are those of Python {python}: under another
version some differ, and the scores move a little.
"""


def main(*, folder: Path = ADAPTER, epochs: int = 6, seed: int = 0) -> dict[str, float]:
    """Write adapter, metrics and card into `folder`; return the accuracies on held-out texts."""
    task = load_task()
    model, tokenizer = load_base()
    scores = probes(model, tokenizer, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, CONFIG)
        train(adapted, tokenizer, task.train, epochs=epochs)
    adapted.save_pretrained(folder, save_embedding_layers=False)  # float32: 0.34 M numbers in 1.3 MB

    stored = PeftModel.from_pretrained(load_base()[0], folder)
    with rescale_adapter_scale(stored, multiplier=0.0):
        scores["adapter_off"] = accuracy(stored, tokenizer, task.test)
    scores["lora"] = accuracy(stored, tokenizer, task.test)
    record = {
        "accuracy": scores,
        "texts": {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)},
        "recipe": {"epochs": epochs, "seed": seed, "batch": BATCH, "learning_rate": LEARNING_RATE},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
    (folder / "metrics.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    deviation = (scores["lora"] * (1 - scores["lora"]) / len(task.test)) ** 0.5
    count = {
        "deviation": deviation,
        "test": len(task.test),
        "count": len(LABELS),
        "labels": ", ".join(LABELS),
    }
    (folder / "README.md").write_text(
        CARD.format(base=BASE, epochs=epochs, **count, **scores, **record["versions"]), encoding="utf-8"
    )
    return scores


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:20} {value:.3f}")
