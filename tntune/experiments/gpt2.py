"""Small GPT-2s: trained here on the standard library's prose, or read from a folder of the user's."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from tntune.errors import CheckpointError
from tntune.experiments.perplexity import token_losses
from tntune.experiments.pretrained import cached_state, fit, quiet_random
from tntune.experiments.text import docstrings, module_files
from tntune.experiments.tokens import rows_of, train_tokenizer

__all__ = ["BATCH", "Base", "Size", "gpt2", "own_base", "published_base"]

BATCH = 8
"""Rows in a batch that a base model learns from."""

_RATE = 3e-3


@dataclass(frozen=True)
class Size:
    """How large a base model is, and how long it learns.

    Attributes:
        layers: Blocks of the model.
        width: Of its residual stream.
        heads: Of each attention.
        vocabulary: Rows of its embedding.
        length: Tokens in a row.
        steps: Batches of 8 rows that it learns from.

    Example:
        >>> Size(2, 64, 2, 512, 32, 100).config().n_embd
        64
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    length: int
    steps: int

    def config(self) -> GPT2Config:
        """A configuration of these sizes, without dropout."""
        return GPT2Config(
            vocab_size=self.vocabulary,
            n_positions=self.length,
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )


@dataclass(frozen=True)
class Base:
    """A tokenizer, and the shape and weights of a model that reads its tokens.

    Example:
        >>> model = gpt2(Size(1, 8, 1, 256, 16, 1).config(), torch.Generator())
        >>> base = Base(train_tokenizer(["-"], 256), model.config, model.state_dict())
        >>> base.config.n_layer
        1
    """

    tokenizer: Tokenizer
    config: GPT2Config
    state: Mapping[str, Tensor]


def gpt2(config: GPT2Config, generator: torch.Generator) -> GPT2LMHeadModel:
    """A GPT-2 with fresh weights; its head starts as a copy of its embedding, but is a matrix of its own.

    Example:
        >>> model = gpt2(Size(1, 16, 1, 300, 8, 1).config(), torch.Generator().manual_seed(0))
        >>> head, embedding = model.lm_head.weight, model.transformer.wte.weight
        >>> head is embedding, bool((head == embedding).all())
        (False, True)

    Reference: Radford et al. (2019), section 2.3, for the init; its spread of 0.02 is that of width 768.
    """
    config.tie_word_embeddings = False
    with quiet_random():
        model = GPT2LMHeadModel(config)
    spread = 0.02 * (768 / config.n_embd) ** 0.5
    for name, weight in model.transformer.named_parameters():
        if weight.ndim == 2:
            depth = (2 * config.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1.0
            nn.init.normal_(weight, std=spread * depth, generator=generator)
    model.lm_head.weight.data.copy_(model.transformer.wte.weight)
    return model


def own_base(size: Size, cache: Path) -> Base:
    """A model that has read the docstrings of the standard library's top-level modules; made once, then kept.

    Its tokenizer learned from the same text.

    Args:
        size: Of the model.
        cache: Folder that keeps its weights.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     base = own_base(Size(1, 8, 1, 256, 8, 1), Path(folder))
        >>> base.state["lm_head.weight"].shape
        torch.Size([256, 8])
    """
    prose = docstrings(module_files())
    text = "\n\n".join(prose)
    tokenizer = train_tokenizer(prose, size.vocabulary)
    key = {"model": "GPT-2 on docstrings", **asdict(size), "text": hashlib.sha256(text.encode()).hexdigest()}
    return Base(tokenizer, size.config(), cached_state(cache, key, lambda: _trained(size, text, tokenizer)))


def published_base(folder: Path) -> Base:
    """A GPT-2 on disk, without its dropout; nothing is downloaded.

    Args:
        folder: Holds ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Raises:
        CheckpointError: Where one of them is missing, or the configuration is of another model.

    Example:
        >>> published_base(Path("nowhere"))
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere: is no folder of a GPT-2: config.json is missing
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: is no folder of a GPT-2: {name} is missing")
    config = GPT2Config.from_pretrained(folder, local_files_only=True)
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    model = GPT2LMHeadModel.from_pretrained(folder, config=config, local_files_only=True)
    return Base(Tokenizer.from_file(str(folder / "tokenizer.json")), config, model.state_dict())


def _trained(size: Size, text: str, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """The state of a model after its steps on rows of a text, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    model = gpt2(size.config(), generator)
    tokens = rows_of(text, tokenizer, size.length)["tokens"]
    draws = (torch.randint(len(tokens), (BATCH,), generator=generator) for _ in range(size.steps))
    losses = (_mean_loss(model, tokens[rows]) for rows in draws)
    fit(model, losses, steps=size.steps, rate=_RATE * min(1.0, 128 / size.width))
    return model.state_dict()


def _mean_loss(model: GPT2LMHeadModel, tokens: Tensor) -> Tensor:
    losses, _ = token_losses(model(input_ids=tokens).logits, tokens, torch.ones_like(tokens))
    return losses.mean()
