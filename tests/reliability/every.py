"""All campaigns; those that need PEFT where it is installed."""

import importlib
from importlib.util import find_spec

from tests.reliability import disk, killing, numerics, reading, repeating
from tests.reliability.campaign import Campaign

__all__ = ["CAMPAIGNS"]

_FOREIGN: tuple[Campaign, ...] = (
    importlib.import_module("tests.reliability.foreign").CAMPAIGNS if find_spec("peft") else ()
)

CAMPAIGNS: tuple[Campaign, ...] = (
    *reading.CAMPAIGNS,
    *killing.CAMPAIGNS,
    *disk.CAMPAIGNS,
    *numerics.CAMPAIGNS,
    *repeating.CAMPAIGNS,
    *_FOREIGN,
)
"""In the order of the table."""
