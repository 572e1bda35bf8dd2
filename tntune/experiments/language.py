"""The paper's second task: a small GPT-2 learns WikiText-2, or code, scored by perplexity."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import GPT2Config

from tntune.errors import SpecError
from tntune.experiments.gpt2 import Size, gpt2, own_base, published_base
from tntune.experiments.perplexity import token_losses
from tntune.experiments.pretrained import default_cache
from tntune.experiments.task import Data, Split, Task
from tntune.experiments.text import package_files, read_text, split_texts, wikitext
from tntune.experiments.tokens import rows_of

__all__ = ["SCALES", "TARGETS", "LanguageTask", "wikitext_task"]

SCALES: Mapping[str, tuple[Size, tuple[int, int, int]]] = MappingProxyType(
    {
        "smoke": (Size(2, 64, 2, 512, 32, 100), (400, 60, 60)),
        "small": (Size(4, 128, 4, 1024, 64, 800), (3000, 250, 500)),
        "paper": (Size(6, 768, 12, 50257, 256, 20000), (20000, 2000, 2000)),
    }
)
"""The base model, and at most so many rows to train, validate and test on. ``"paper"`` has the shapes of
DistilGPT2, whose head is the paper's 768 x 50257."""

TARGETS = ("linears", "head")


class LanguageTask(Task):
    """A frozen GPT-2 with adapters predicts the next token; scored by perplexity.

    Rows are those of :func:`tntune.experiments.tokens.rows_of`. ``"perplexity"`` is for each token, and
    ``"word_perplexity"``, ``exp(nats / words)``, compares models of different tokenizers.

    Attributes:
        config: Of the base model.
        state: Its weights; without them it is random, by the seed.

    Example:
        >>> rows = {"tokens": torch.zeros(2, 8).long(), "mask": torch.ones(2, 8), "words": torch.ones(2)}
        >>> task = LanguageTask(Data(rows, rows, rows), Size(1, 8, 1, 9, 8, 1).config(), targets=("lm_head",))
        >>> list(task.evaluate(task.model(0), rows))
        ['loss', 'perplexity', 'word_perplexity']
    """

    name = "wikitext"
    score = "perplexity"
    higher_is_better = False
    extras = ()

    def __init__(
        self,
        data: Data,
        config: GPT2Config,
        *,
        targets: Sequence[str],
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.data, self.targets = data, tuple(targets)
        self.config, self.state = config, state

    def model(self, seed: int) -> nn.Module:
        """The one pretrained model, whatever the seed; its head is a matrix of its own."""
        model = gpt2(self.config, torch.Generator().manual_seed(seed))
        if self.state is not None:
            model.load_state_dict(self.state)
        return model.requires_grad_(False)

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        losses, counted = self._losses(model, batch)
        return losses[counted].mean()

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        training = model.training
        model.eval()
        total, count = 0.0, 0
        for start in range(0, len(split["tokens"]), 64):
            batch = {name: rows[start : start + 64] for name, rows in split.items()}
            losses, counted = self._losses(model, batch)
            total, count = total + float(losses[counted].double().sum()), count + int(counted.sum())
        model.train(training)
        loss, by_word = total / count, total / max(int(split["words"].sum()), 1)
        return {"loss": loss, "perplexity": _perplexity(loss), "word_perplexity": _perplexity(by_word)}

    def _losses(self, model: nn.Module, batch: Split) -> tuple[Tensor, Tensor]:
        """Of every predicted token, and which are text; no pad is before any text, so none is attended to."""
        logits = model(input_ids=batch["tokens"]).logits
        return token_losses(logits, batch["tokens"], batch["mask"])


def wikitext_task(
    scale: str,
    data: Path | None = None,
    *,
    target: str = "linears",
    base: Path | None = None,
    cache: Path | None = None,
) -> LanguageTask:
    """WikiText-2 from a folder, or else the code of the standard library's packages.

    The base model is trained here, once, on the docstrings of the library's top-level modules, and kept;
    adapters then teach it another kind of text. Files of code are split by a hash of their openings. Where
    the folder has no training file, five sixths of the validation articles are trained on and the rest
    validates; the test file is the test in any case. Of more rows than the scale takes, so many are taken
    at even distances.

    Args:
        scale: A key of :data:`SCALES`; at ``"paper"`` our base model takes hours without an accelerator.
        data: Folder of WikiText (see :func:`tntune.experiments.text.wikitext`).
        target: ``"linears"``: all four of each block. ``"head"``: the output matrix, untied, as in the paper.
        base: Folder of a published GPT-2 (see :func:`tntune.experiments.gpt2.published_base`) in place of
            ours; a path, or its text.
        cache: Where our base model is kept; by default :func:`tntune.experiments.pretrained.default_cache`.

    Raises:
        SpecError: Where scale or target do not exist.
        CheckpointError: Where a file cannot be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     task = wikitext_task("smoke", cache=Path(folder))
        >>> task.data.sizes["train"], len(task.targets)
        (400, 8)
    """
    if scale not in SCALES:
        raise SpecError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    if target not in TARGETS:
        raise SpecError(f"target is one of {', '.join(TARGETS)}, not {target!r}")
    size, most = SCALES[scale]
    found = published_base(Path(base)) if base else own_base(size, Path(cache) if cache else default_cache())
    texts = _code() if data is None else wikitext(data)
    parts = [rows_of(texts[part], found.tokenizer, size.length) for part in ("train", "validation", "test")]
    kept = [_spread(part, k) for part, k in zip(parts, most, strict=True)]
    targets = _targets(target, found.config.n_layer)
    return LanguageTask(Data(*kept), found.config, targets=targets, state=found.state)


def _perplexity(nats: float) -> float:
    """``exp(nats)``, below the largest float where a training has diverged."""
    return math.exp(min(nats, 700.0))


def _code() -> dict[str, str]:
    """Source files of packages in three parts; each text once."""
    parts = split_texts(dict.fromkeys(map(read_text, package_files())), (0.8, 0.07, 0.13))
    return {name: "\n".join(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)}


def _spread(part: Split, most: int) -> Split:
    """So many rows at even distances, or all where there are fewer."""
    count = len(part["tokens"])
    rows = torch.arange(min(count, most)) * count // min(count, most)
    return {name: tensor[rows] for name, tensor in part.items()}


def _targets(target: str, layers: int) -> tuple[str, ...]:
    """Paths of the head, or of all linear layers of the blocks."""
    if target == "head":
        return ("lm_head",)
    inner = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    return tuple(f"transformer.h.{layer}.{name}" for layer in range(layers) for name in inner)
