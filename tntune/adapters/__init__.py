"""Adapters: frozen layers with a map beside them, for plain torch models."""

from tntune.adapters.adapt import adapt, adapted_layers, install, merge, set_enabled, unload, unmerge
from tntune.adapters.generator import FactorGenerator
from tntune.adapters.linear import AdaptedLinear
from tntune.adapters.spec import AdapterSpec
from tntune.adapters.storage import load_adapters, save_adapters

__all__ = [
    "AdaptedLinear",
    "AdapterSpec",
    "FactorGenerator",
    "adapt",
    "adapted_layers",
    "install",
    "load_adapters",
    "merge",
    "save_adapters",
    "set_enabled",
    "unload",
    "unmerge",
]
