"""Registration with PEFT: our two methods beside its own, without a change to any file of PEFT."""

import enum
from importlib.metadata import version
from typing import Any

from packaging.version import Version
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner

from tntune.errors import SpecError, UnsupportedError
from tntune.maps.group import SHARED_PEFT_TYPE
from tntune.maps.site import PEFT_TYPE

__all__ = ["OLDEST_PEFT", "TensorGuidePeftType", "check_peft", "register"]

OLDEST_PEFT = "0.21.0"
"""The first PEFT in which a method can live outside of it: each tuner class names its own checkpoint keys."""


class TensorGuidePeftType(str, enum.Enum):
    """Our entries beside ``peft.PeftType``: lookups by member and by text find the same.

    Example:
        >>> TensorGuidePeftType.TENSORGUIDE == "TENSORGUIDE", TensorGuidePeftType.TENSORGUIDE.value
        (True, 'TENSORGUIDE')
    """

    TENSORGUIDE = PEFT_TYPE
    TENSORGUIDE_SHARED = SHARED_PEFT_TYPE


def register(peft_type: TensorGuidePeftType, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Make ``get_peft_model``, ``PeftModel.from_pretrained`` and the rest of PEFT know these classes.

    Idempotent.

    Raises:
        SpecError: Where PEFT knows other classes under this name.

    Example:
        >>> from tntune.peft import TensorGuideConfig, TensorGuideModel
        >>> register(TensorGuidePeftType.TENSORGUIDE, TensorGuideConfig, TensorGuideModel)
        >>> PEFT_TYPE_TO_CONFIG_MAPPING["TENSORGUIDE"].__name__
        'TensorGuideConfig'
    """
    key: Any = peft_type  # a sibling of PeftType's members: found by its own value and by its text
    found = PEFT_TYPE_TO_CONFIG_MAPPING.get(key)
    if found is not None and _name(found) != _name(config):
        raise SpecError(
            f"PEFT has a method {peft_type.value} already, {_name(found)}; only one of the two can be loaded"
        )
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = config
    PEFT_TYPE_TO_TUNER_MAPPING[key] = model
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = model.prefix


def check_peft(found: str) -> None:
    """Raise :class:`UnsupportedError` where this version of PEFT is too old.

    Example:
        >>> check_peft(version("peft"))
    """
    if Version(found) < Version(OLDEST_PEFT):
        raise UnsupportedError(
            f"tntune needs peft {OLDEST_PEFT} or newer, not {found}: pip install -U 'peft>={OLDEST_PEFT}'"
        )


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


check_peft(version("peft"))
