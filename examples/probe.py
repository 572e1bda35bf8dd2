"""What a frozen encoder knows already: a linear classifier of its features, the bar for an adapter."""

import torch
from docstrings import Model, Split, Task, Tokenizer, encode, hit_rate
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)


def probes(model: Model, tokenizer: Tokenizer, task: Task) -> dict[str, float]:
    """Test accuracy of a probe on what the model's classifier reads, and of one on the mean over tokens."""
    splits = [features(model, tokenizer, split) for split in (task.train, task.dev, task.test)]
    pooler, mean = (probe(task, *(x[k] for x in splits)) for k in range(2))
    return {"linear_probe_pooler": pooler, "linear_probe_mean": mean}


@torch.no_grad()
def features(model: Model, tokenizer: Tokenizer, split: Split) -> Tensor:
    """Frozen features of every text: (2, texts, hidden), the pooler's and the mean over tokens."""
    rows = []
    for k in range(0, len(split), 64):
        batch = encode(tokenizer, split.texts[k : k + 64])
        hidden, pooled = model.bert(**batch).to_tuple()  # (texts, tokens, hidden), (texts, hidden)
        mask = batch["attention_mask"].unsqueeze(2)
        rows.append(torch.stack([pooled, (hidden * mask).sum(1) / mask.sum(1)]))
    return torch.cat(rows, dim=1)


def probe(task: Task, train: Tensor, dev: Tensor, test: Tensor) -> float:
    """Test accuracy of a linear classifier on features (texts, hidden); dev chooses its decay."""
    centre, spread = train.mean(0), train.std(0)
    train, dev, test = (pad((x - centre) / spread, (0, 1), value=1.0) for x in (train, dev, test))
    heads = [fit_head(train, task, decay) for decay in DECAYS]
    best = max(heads, key=lambda head: hit_rate(dev @ head, task.dev))
    return hit_rate(test @ best, task.test)


def fit_head(x: Tensor, task: Task, decay: float) -> Tensor:
    """Multinomial logistic regression by L-BFGS: weights of shape (hidden + 1, labels)."""
    head = torch.zeros(x.shape[1], len(task.labels), requires_grad=True)
    targets = torch.tensor(task.train.targets)
    optimizer = torch.optim.LBFGS([head], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ head, targets) + decay * head.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return head.detach()
