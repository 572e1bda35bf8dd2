"""Text as rows of tokens: a byte-level tokenizer that is trained here, and one stream cut into rows."""

import re
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.nn.functional import pad

from tntune.errors import SpecError

__all__ = ["rows_of", "train_tokenizer"]


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE: every text decodes to itself, and the same texts make the same tokenizer.

    Args:
        texts: To learn pairs from.
        vocabulary: Tokens, at least the 256 bytes; fewer where no pairs are left.

    Raises:
        SpecError: Where the vocabulary is below 256.

    Example:
        >>> tokenizer = train_tokenizer(["to be or not to be"], 260)
        >>> tokenizer.decode(tokenizer.encode("être, or not").ids)
        'être, or not'

    Reference: Sennrich et al. (2016); Radford et al. (2019), section 2.2, for bytes.
    """
    if vocabulary < 256:
        raise SpecError(f"a byte-level vocabulary has at least 256 tokens, not {vocabulary}")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, trim_offsets=False)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def rows_of(text: str, tokenizer: Tokenizer, length: int) -> dict[str, Tensor]:
    """Rows of one stream of tokens; each token but the first is predicted exactly once.

    A row begins with the last token of the row before it, which it sees and does not predict.

    Args:
        text: Any.
        tokenizer: With offsets of characters.
        length: Tokens in a row, at least 2; the last row is padded with zeros.

    Returns:
        ``"tokens"`` (rows, length), ``"mask"`` (rows, length), true for text, and ``"words"`` (rows,), how
        many words begin in the tokens that a row predicts.

    Raises:
        SpecError: Where the length is below 2, or the text has fewer than 2 tokens.

    Example:
        >>> rows = rows_of("aa bb cc", train_tokenizer(["-"], 256), 4)
        >>> rows["tokens"].shape, int(rows["mask"][:, 1:].sum()), rows["words"].tolist()
        (torch.Size([3, 4]), 7, [1, 1, 0])
    """
    encoding = tokenizer.encode(text)
    tokens = torch.tensor(encoding.ids)
    if length < 2 or len(tokens) < 2:
        raise SpecError(f"rows of {length} from {len(tokens)} tokens: at least 2 of each are needed")
    stride = length - 1
    missing = (1 - len(tokens)) % stride
    whole = {
        "tokens": tokens,
        "mask": torch.ones_like(tokens, dtype=torch.bool),
        "words": _begun(text, [start for start, _ in encoding.offsets]),
    }
    rows = {name: pad(row, (0, missing)).unfold(0, length, stride).clone() for name, row in whole.items()}
    return {**rows, "words": rows["words"][:, 1:].sum(1)}


def _begun(text: str, starts: Sequence[int]) -> Tensor:
    """For each token, by the character that it starts at, how many words begin in it."""
    words = [match.start() for match in re.finditer(r"\S+", text)]
    places = torch.from_numpy(np.searchsorted(np.array(starts), words, side="right") - 1)
    return torch.bincount(places, minlength=len(starts))
