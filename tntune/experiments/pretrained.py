"""States of base models that were trained here, kept on disk by what determines them."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from secrets import token_hex

import torch
from torch import Tensor, nn

from tntune.errors import CheckpointError, OutputError
from tntune.files import Json

__all__ = ["cached_state", "default_cache", "fit", "quiet_random"]

State = Mapping[str, Tensor]


def default_cache() -> Path:
    """Where base models are kept unless a folder is given: ``tntune`` in the user's cache folder.

    Example:
        >>> default_cache().name
        'tntune'
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "tntune"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "tntune"


def cached_state(folder: Path, key: Json, make: Callable[[], State]) -> dict[str, Tensor]:
    """What ``make()`` returned for an equal key, from disk where it was made before.

    Args:
        folder: Created where it is missing.
        key: Everything that determines the state, in JSON.
        make: Trains the model; called at most once for a key.

    Returns:
        The state, on the CPU.

    Raises:
        CheckpointError: Where the kept file cannot be read.
        OutputError: Where the folder cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as name:
        ...     made = cached_state(Path(name), {"width": 2}, lambda: {"w": torch.ones(2)})
        ...     kept = cached_state(Path(name), {"width": 2}, lambda: {"w": torch.zeros(2)})
        >>> made["w"].equal(kept["w"])
        True
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"{digest}.pt"
    if not path.exists():
        _write(path, {name: tensor.detach().cpu() for name, tensor in make().items()})
    try:
        state: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"{path}: a kept model cannot be read; remove the file: {error}") from error
    return state


def fit(model: nn.Module, losses: Iterator[Tensor], *, steps: int, rate: float) -> None:
    """Train what is trainable for so many losses: AdamW, one warm-up tenth, then a cosine to zero.

    Each loss is computed after the step before it, so the iterator must be lazy.

    Args:
        model: In the mode it shall be trained in.
        losses: One scalar for each step.
        steps: How many are taken.
        rate: Highest learning rate.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> fit(layer, (layer(torch.ones(4, 2)).square().mean() for _ in range(200)), steps=200, rate=0.1)
        >>> bool(layer(torch.ones(2)).abs() < 0.1)
        True
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rate, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    for _ in range(steps):
        optimizer.zero_grad()
        next(losses).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@contextmanager
def quiet_random() -> Iterator[None]:
    """While a module is made that draws from torch's global generator: its state is put back afterwards.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with quiet_random():
        ...     layer = nn.Linear(2, 2)
        >>> bool((torch.random.get_rng_state() == before).all())
        True
    """
    with torch.random.fork_rng(devices=[]):
        yield


def _write(path: Path, state: State) -> None:
    """The whole file or none."""
    buffer = BytesIO()
    torch.save(dict(state), buffer)
    draft = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(buffer.getvalue())
        draft.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
