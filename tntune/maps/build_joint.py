"""build_joint: a map of a named method for a whole stack of layers."""

from collections.abc import Callable, Mapping

from tntune.errors import SpecError
from tntune.maps.base import Shape
from tntune.maps.budget import MATRIX_MODES, matrix_ranks
from tntune.maps.build import DEFAULT_RANK
from tntune.maps.fact import FacT
from tntune.maps.joint import JointMap
from tntune.maps.lorta import LoRTA
from tntune.maps.lotr import LoTR
from tntune.maps.metatt import MetaTT
from tntune.maps.stack import Stack
from tntune.maps.tenslora import CONSTRUCTIONS, TensLoRA, construction_modes

__all__ = ["HEAD_METHODS", "STACK_METHODS", "TENSLORA", "TUCKER_METHODS", "build_joint"]

TENSLORA: Mapping[str, tuple[str, str]] = {
    f"tenslora_{name.lower()}{suffix}": (name, form)
    for form, suffix in (("tucker", ""), ("cp", "_cp"))
    for name in CONSTRUCTIONS
}
"""Construction and form of each method that is a TensLoRA."""

_HEADLESS: Mapping[str, Callable[[Stack, int, str], JointMap]] = {
    "lotr": lambda stack, rank, start: LoTR(stack, rank, start=start),
    "fact_tt": lambda stack, rank, start: FacT(stack, rank, "tt", start=start),
    "fact_tucker": lambda stack, rank, start: FacT(stack, rank, "tucker", start=start),
    "metatt_4d": lambda stack, rank, start: MetaTT(stack, rank, start=start),
}
_HEADED: Mapping[str, Callable[[Stack, int, int, Shape, str], JointMap]] = {
    "lorta": lambda stack, rank, heads, turned, start: LoRTA(stack, rank, heads, turned, start=start),
    "metatt_5d": lambda stack, rank, heads, turned, start: MetaTT(stack, rank, heads, turned, start=start),
}

STACK_METHODS = (*_HEADLESS, *_HEADED, *TENSLORA)
"""What :func:`build_joint` can make."""

HEAD_METHODS = (*_HEADED, *(name for name, (own, _) in TENSLORA.items() if "head" in CONSTRUCTIONS[own]))
"""Those with a mode for attention heads."""

TUCKER_METHODS = tuple(name for name, (_, form) in TENSLORA.items() if form == "tucker")
"""Those with a rank for every mode."""


def build_joint(
    method: str,
    stack: Stack,
    *,
    rank: int = DEFAULT_RANK,
    index_rank: int | None = None,
    heads: int = 1,
    input_heads: Shape = (),
    start: str = "zero",
) -> JointMap:
    """One map for all layers of a stack, with named modes tied in one tensor.

    Args:
        method: One of :data:`STACK_METHODS`.
        stack: The layers.
        rank: Rank of every bond; the ranks of a Tucker TensLoRA are lowered to its modes.
        index_rank: For a Tucker TensLoRA, the rank of its head, proj and layer modes: ``rank`` makes what is
            published as isorank, None all that they allow, as in isoparameter.
        heads: Attention heads, for methods with a mode for them.
        input_heads: Projections whose heads split the input.
        start: How the map starts: ``"zero"`` or ``"random"``.

    Raises:
        SpecError: For an unknown method, or an option that the method does not have.
        ModeError: Where the heads do not divide the features.

    Example:
        >>> qv = Stack(768, 768, layers=12, projections=2)
        >>> [build_joint(method, qv).num_parameters for method in ("lotr", "fact_tt", "metatt_4d")]
        [13824, 13824, 13184]
    """
    if method not in STACK_METHODS:
        raise SpecError(f"method must be one of {', '.join(STACK_METHODS)}, not {method!r:.80}")
    if method not in HEAD_METHODS and (heads != 1 or input_heads):
        raise SpecError(f"method {method!r} has no heads, but {heads=}, {input_heads=} were given")
    if index_rank is not None and method not in TUCKER_METHODS:
        raise SpecError(f"method {method!r} has no ranks of index modes, but {index_rank=} was given")
    if method in TENSLORA:
        construction, form = TENSLORA[method]
        ranks = _tenslora_ranks(construction_modes(stack, construction, heads=heads), form, rank, index_rank)
        return TensLoRA(stack, construction, ranks, heads, form, input_heads, start=start)
    if method in _HEADED:
        return _HEADED[method](stack, rank, heads, input_heads, start)
    return _HEADLESS[method](stack, rank, start)


def _tenslora_ranks(modes: Mapping[str, int], form: str, rank: int, index_rank: int | None) -> Shape:
    """One rank on matrix modes and one on index modes, all lowered to the modes; a CP has one in all."""
    chosen = matrix_ranks(modes, rank, form=form)
    if index_rank is None:
        return chosen
    bounds = (n if name in MATRIX_MODES else index_rank for name, n in modes.items())
    return tuple(map(min, chosen, bounds))
