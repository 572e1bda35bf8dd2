from collections.abc import Iterator

import pytest
import torch

from tests.support.devices import device

__all__ = ["device"]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Models are drawn from torch's own generator: seeded before each test, restored after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
