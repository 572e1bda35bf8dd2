"""All campaigns; those that need PEFT where it is installed."""

import importlib
from importlib.util import find_spec

from tests.reliability import (
    covered,
    delivery,
    disk,
    killing,
    mutants,
    numerics,
    processes,
    reading,
    repeating,
    resuming,
    scale,
    sharing,
    training,
)
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
    *training.CAMPAIGNS,
    *sharing.CAMPAIGNS,
    *resuming.CAMPAIGNS,
    *processes.CAMPAIGNS,
    *_FOREIGN,
    *scale.CAMPAIGNS,
    *delivery.CAMPAIGNS,
    *covered.CAMPAIGNS,
    *mutants.CAMPAIGNS,
)
"""In the order of the table."""
