"""Train a LoRA with PEFT on a real task: `python examples/01_train_lora.py` (minutes on two cores, no network).

What it writes, `examples/minilm_docstrings_r8`, is the adapter that the next example converts.
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from docstrings import ADAPTER, BASE, Model, Split, Task, Tokenizer, accuracy, encode, hit_rate, load_base, load_task
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

SEED = 0
BATCH = 32
LEARNING_RATE = 1e-3
STORED = torch.bfloat16  # 0.67 M numbers in 1.3 MB; the scores below are those of the stored file

# %% 1. What the frozen encoder knows already: linear probes on what its classifier reads and on the mean over tokens


@torch.no_grad()
def features(model: Model, tokenizer: Tokenizer, split: Split) -> Tensor:
    """Frozen features of every text: (2, texts, hidden), the pooler's and the mean over tokens."""
    rows = []
    for k in range(0, len(split), BATCH):
        batch = encode(tokenizer, split.texts[k : k + BATCH])
        hidden, pooled = model.bert(**batch).to_tuple()  # (texts, tokens, hidden), (texts, hidden)
        mask = batch["attention_mask"].unsqueeze(2)
        rows.append(torch.stack([pooled, (hidden * mask).sum(1) / mask.sum(1)]))
    return torch.cat(rows, dim=1)


def probe(task: Task, train: Tensor, dev: Tensor, test: Tensor) -> float:
    """Test accuracy of a linear classifier on features (texts, hidden), at the weight decay that is best on dev."""
    heads = [fit_head(train, task, decay) for decay in (1e-4, 1e-3, 1e-2, 1e-1)]
    best = max(heads, key=lambda head: hit_rate(head(dev), task.dev))
    return hit_rate(best(test), task.test)


def fit_head(x: Tensor, task: Task, decay: float) -> nn.Module:
    """Multinomial logistic regression on standardised features, by L-BFGS."""
    centre, spread, targets = x.mean(0), x.std(0), torch.tensor(task.train.targets)
    head = nn.Linear(x.shape[1], len(task.labels))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(head((x - centre) / spread), targets) + decay * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda rows: head((rows - centre) / spread)


# %% 2. Rank 8 on every linear layer of the encoder (36 of them), and a new classifier

CONFIG = LoraConfig(
    r=8,
    lora_alpha=16,
    lora_dropout=0.05,
    target_modules=["query", "key", "value", "intermediate.dense", "output.dense"],
    modules_to_save=["classifier"],
    task_type="SEQ_CLS",
    base_model_name_or_path=BASE,
)


def train(model: PeftModel, tokenizer: Tokenizer, split: Split, *, epochs: int) -> None:
    """AdamW with a linear warm-up and decay, on batches drawn anew in each epoch."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.01)
    steps = epochs * -(-len(split) // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    targets = torch.tensor(split.targets)
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(split)).split(BATCH):
            scores = model(**encode(tokenizer, tuple(split.texts[k] for k in rows.tolist()))).logits
            loss = cross_entropy(scores, targets[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        print(f"epoch {epoch + 1} of {epochs}: mean loss {total / len(split):.3f}", flush=True)


# %% 3. All together
