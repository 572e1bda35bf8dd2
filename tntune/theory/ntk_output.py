"""Output functions: what of a model's prediction the kernel is taken of."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from tntune.errors import SpecError

__all__ = ["Batch", "OutputFunction", "last_token", "logits", "loss", "margin"]

Batch: TypeAlias = Tensor | Mapping[str, object]
"""Inputs of n samples: one tensor, or arguments by name; tensors have n first, the rest is passed on."""

OutputFunction: TypeAlias = Callable[[nn.Module, Batch], Tensor]
"""``(model, batch) -> (n,)`` or ``(n, ...)``: row i depends on sample i alone."""

_IGNORED = -100  # transformers' label of positions that do not count


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The prediction itself: ``model(batch)``, or ``model(**batch).logits``; ``labels`` stay behind.

    Example:
        >>> logits(nn.Identity(), torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    if isinstance(batch, Tensor):
        prediction = model(batch)
    else:
        prediction = model(**{name: value for name, value in batch.items() if name != "labels"})
    found = getattr(prediction, "logits", prediction)
    if not isinstance(found, Tensor):
        raise SpecError(f"a model's output must be a tensor or have logits, not {type(found).__name__}")
    return found


def margin(model: nn.Module, batch: Batch) -> Tensor:
    """``(n,)``: the logit of the label less the largest other one; positive where the answer is right.

    For two classes it is the one direction that a decision depends on. Labels are ``batch["labels"]``.

    Raises:
        SpecError: Where the batch has no labels, or the logits are not ``(n, C)``.

    Example:
        >>> class Three(nn.Module):
        ...     def forward(self, x): return x
        >>> margin(Three(), {"x": torch.tensor([[1.0, 5.0, 2.0]]), "labels": torch.tensor([1])}).item()
        3.0
    """
    scores, labels = _classes(logits(model, batch)), _labels(batch)[:, None]
    own = scores.gather(1, labels)[:, 0]
    others = scores.scatter(1, labels, -torch.inf)
    return own - others.amax(1)


def last_token(model: nn.Module, batch: Batch) -> Tensor:
    """``(n, V)``: the logits at the last position that ``attention_mask`` marks, else at the last one.

    Padding on either side is right.

    Raises:
        SpecError: Where the logits are not ``(n, T, V)``.

    Example:
        >>> class Tokens(nn.Module):
        ...     def forward(self, x, attention_mask): return x
        >>> batch = {"x": torch.arange(6.0).reshape(1, 3, 2), "attention_mask": torch.tensor([[1, 1, 0]])}
        >>> last_token(Tokens(), batch).tolist()
        [[2.0, 3.0]]
    """
    scores = logits(model, batch)
    if scores.ndim != 3:
        raise SpecError(f"last_token needs logits (n, T, V), not {tuple(scores.shape)}")
    mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")
    if not isinstance(mask, Tensor):
        return scores[:, -1]
    places = torch.arange(1, scores.shape[1] + 1, device=mask.device) * (mask != 0)
    index = places.argmax(1)[:, None, None].expand(-1, 1, scores.shape[2])
    return scores.gather(1, index)[:, 0]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """``(n,)``: cross-entropy of each sample, of a class, or of the next tokens on average.

    Logits ``(n, C)`` take labels ``(n,)``; logits ``(n, T, V)`` take labels ``(n, T)``, of which those equal
    to -100 do not count.

    Raises:
        SpecError: Where the batch has no labels.

    Example:
        >>> class Two(nn.Module):
        ...     def forward(self, x): return x
        >>> batch = {"x": torch.zeros(1, 2), "labels": torch.tensor([0])}
        >>> round(loss(Two(), batch).item(), 4)
        0.6931
    """
    scores, labels = logits(model, batch), _labels(batch)
    if scores.ndim == 2:
        return functional.cross_entropy(scores, labels, reduction="none")
    scores, labels = scores[:, :-1], labels[:, 1:]
    counted = labels != _IGNORED
    each = -scores.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    return (each * counted).sum(1) / counted.sum(1).clamp(min=1)


def _labels(batch: Batch) -> Tensor:
    labels = None if isinstance(batch, Tensor) else batch.get("labels")
    if not isinstance(labels, Tensor):
        raise SpecError("this output function needs a batch with a tensor 'labels'")
    return labels


def _classes(scores: Tensor) -> Tensor:
    if scores.ndim != 2:
        raise SpecError(f"margin needs logits (n, C), not {tuple(scores.shape)}")
    return scores
