"""The map of examples/07_own_map.py, as the contract suite and the examples' test take it: loaded once."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tntune.maps import Stack, WeightMap

_FILE = Path(__file__).parents[2] / "examples" / "07_own_map.py"
_NAME = "example_own_map"


def example() -> ModuleType:
    """The example as a module, under a name that pickle finds."""
    if _NAME not in sys.modules:
        spec = spec_from_file_location(_NAME, _FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[_NAME] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_NAME])
    return sys.modules[_NAME]


def own_map() -> WeightMap:
    """5 -> 4 features, two heads, six sites."""
    return example().CaRA(Stack(5, 4, layers=3, projections=2), 3, 2)
