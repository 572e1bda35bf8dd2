"""What is loaded when it is used: modules of optional extras, and tasks by name."""

from importlib import import_module
from typing import Any

from tntune.errors import SpecError, UnsupportedError

__all__ = ["attribute", "extra"]


def extra(module: str) -> Any:
    """A module of the ``experiments`` extra, loaded when it is first used.

    Raises:
        UnsupportedError: Where it is not installed; says how to install it.

    Example:
        >>> extra("matplotlib.figure").__name__
        'matplotlib.figure'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"experiments need {module.partition('.')[0]}, which cannot be loaded ({error}): "
            "pip install 'tntune[experiments]'"
        ) from error


def attribute(reference: str) -> Any:
    """What ``"module:name"`` refers to.

    Raises:
        SpecError: Where that is no such reference, or the module lacks the name.
        UnsupportedError: Where the module, or one that it needs, is not installed.

    Example:
        >>> attribute("tntune.experiments.loading:extra") is extra
        True
    """
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise SpecError(f"a reference is module:name, not {reference!r}")
    found = getattr(extra(module), name, None)
    if found is None:
        raise SpecError(f"{module} has no {name!r}")
    return found
