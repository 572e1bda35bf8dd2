"""Perplexity computed right, and the two ways in which it comes out near 1.

The paper reports 1.60 to 1.59 on WikiText-2 with a small GPT-2, whose perplexity there is in the tens. Its
script is not published, but ``1.6 = exp(0.47)``, and no small model needs less than half a nat a token for
English prose. Two common mistakes give such numbers. Say that a line has 72 tokens on average and the model a
perplexity of 30 (both assumed): padded to 512 a row is six sevenths padding, which a model that is trained on
it predicts for certain, and ``30 ** (71/511) = 1.60``. Or labels are not shifted: the model copies its input.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from tntune.errors import ModeError

__all__ = ["diluted_perplexity", "misread_perplexities", "text_share", "token_losses"]


def token_losses(logits: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``-log p(token t | tokens before t)`` of every token but the first, and which of them are text.

    The perplexity of rows is ``exp(Σ losses · counted / Σ counted)``: every token weighs the same, whichever
    row or batch it is in.

    Args:
        logits: Shape (rows, length, vocabulary); those at t - 1 predict token t.
        tokens: Shape (rows, length).
        mask: Shape (rows, length), true for text and false for padding.

    Returns:
        Losses in nats and the counted ones as true, both (rows, length - 1).

    Raises:
        ModeError: Where the shapes do not fit.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[3, 1, 2, 0]])
        >>> losses, counted = token_losses(torch.zeros(1, 4, 5), tokens, tokens > 0)
        >>> round(float(losses[counted].mean().exp()), 3), counted.tolist()
        (5.0, [[True, True, False]])
    """
    if logits.shape[:2] != tokens.shape or mask.shape != tokens.shape:
        shapes = f"{tuple(logits.shape)}, {tuple(tokens.shape)} and {tuple(mask.shape)}"
        raise ModeError(f"logits (rows, length, vocabulary), tokens and mask (rows, length), not {shapes}")
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.view(len(tokens), -1), mask[:, 1:].bool()


def misread_perplexities(logits: Tensor, tokens: Tensor, mask: Tensor) -> dict[str, float]:
    """Three readings of the same logits: ``"right"``, ``"padding scored"`` and ``"labels not shifted"``.

    Args:
        logits: Shape (rows, length, vocabulary).
        tokens: Shape (rows, length).
        mask: Shape (rows, length), true for text.

    Example:
        A model that is certain of pads and takes one of 30 words at random, on lines that fill one seventh.

        >>> import torch
        >>> tokens = torch.nn.functional.pad(torch.arange(1, 12).repeat(4, 1), (0, 59))
        >>> logits = torch.zeros(4, 70, 31)
        >>> logits[:, :10, 0], logits[:, 10:, 0] = -100.0, 100.0
        >>> found = misread_perplexities(logits, tokens, tokens > 0)
        >>> round(found["right"], 2), round(found["padding scored"], 2)
        (30.0, 1.64)
    """
    losses, counted = token_losses(logits, tokens, mask)
    unshifted = cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    return {
        "right": float(losses[counted].mean().exp()),
        "padding scored": float(losses.mean().exp()),
        "labels not shifted": float(unshifted[mask.bool().flatten()].mean().exp()),
    }


def text_share(lengths: Sequence[int], length: int) -> float:
    """Share of predicted positions that are text where lines are padded, or cut, to one length.

    Args:
        lengths: Tokens of each line.
        length: Tokens of each row.

    Example:
        >>> text_share([11, 1, 21], 71)
        0.14285714285714285

    Raises:
        ModeError: Where the length is below 2, or there are no lines.
    """
    if length < 2 or not lengths:
        raise ModeError(f"lines of at least 2 tokens are needed, not {len(lengths)} lines of {length}")
    return sum(max(min(line, length) - 1, 0) for line in lengths) / (len(lengths) * (length - 1))


def diluted_perplexity(perplexity: float, share: float) -> float:
    """``perplexity ** share``: what is reported where pads, predicted for certain, are scored with the text.

    Args:
        perplexity: Of the text.
        share: Of scored positions that are text.

    Example:
        >>> round(diluted_perplexity(30.0, 1 / 7), 2)
        1.63
    """
    return float(perplexity**share)
