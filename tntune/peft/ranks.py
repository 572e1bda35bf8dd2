"""The fields of a configuration that set the ranks, checked."""

from tntune.adapters.spec import AUTO, BOND_METHODS
from tntune.errors import SpecError
from tntune.maps.base import finite, positive, positives
from tntune.maps.build import CONCAT

__all__ = ["check_auto", "check_ranks"]


def check_auto(params: object, method: str, layout: str | None, init_weights: bool | str) -> None:
    """Raise unless ranks can be found in training with these fields of a configuration.

    Raises:
        SpecError: Naming the field.

    Example:
        >>> check_auto(0.5, "tensorguide", None, True)
    """
    if params is None:
        raise SpecError(f"ranks={AUTO!r} are found within a budget: give params")
    if method not in BOND_METHODS:
        raise SpecError(
            f"method {method!r} has no bonds whose ranks may differ; "
            f"those that have are {', '.join(BOND_METHODS[:-1])}"
        )
    if method == "lora" and not finite("params", params) < 1:
        raise SpecError(f"a LoRA starts at its width: with ranks={AUTO!r} params is below 1, not {params}")
    if layout == CONCAT and init_weights is True:
        raise SpecError("layout 'concat' subtracts a frozen start whose ranks cannot change; name the legs")
    if finite("params", params) <= 0:
        raise SpecError(f"params must be a positive share of a LoRA's parameters, not {params}")


def check_ranks(ranks: object, params: object, method: str) -> None:
    """Raise unless these fields of a configuration set the size, once at most.

    Raises:
        SpecError: Naming the field.

    Example:
        >>> check_ranks(4, None, "tensorguide")
    """
    if method == "lora" and not (ranks is None and params is None):
        raise SpecError(f"method 'lora' has no TT-ranks, but ranks={ranks}, params={params}")
    if ranks is not None and params is not None:
        raise SpecError(f"ranks={ranks} and params={params} both set the size; give one")
    if isinstance(ranks, list | tuple):
        positives("ranks", ranks)
    elif ranks is not None:
        positive("ranks", ranks)
    if params is not None and finite("params", params) <= 0:
        raise SpecError(f"params must be a positive share of a LoRA's parameters, not {params}")
