"""Equations of tensor networks: named legs to einsum strings."""

from collections.abc import Hashable, Sequence

from opt_einsum import get_symbol

from tntune.errors import ModeError

__all__ = ["equation"]


def equation(operands: Sequence[Sequence[Hashable]], output: Sequence[Hashable]) -> str:
    """The einsum string of operands with named legs: equal names are the same leg.

    Args:
        operands: For each operand the names of its legs, in the order of its axes. A name is anything
            hashable: ``("rank", 1)``, ``"width"``.
        output: The names of the legs that stay open, in the order wanted.

    Returns:
        An equation with one character a leg, numbered by first appearance.

    Raises:
        ModeError: Where the output names a leg that no operand has.

    Example:
        >>> equation([[("r", 0), "m", ("r", 1)], [("r", 1), "n"]], ["m", "n"])
        'abc,cd->bd'
    """
    symbols: dict[Hashable, str] = {}
    for name in (name for operand in operands for name in operand):
        symbols.setdefault(name, get_symbol(len(symbols)))
    unknown = [name for name in output if name not in symbols]
    if unknown:
        raise ModeError(f"the output has legs {unknown} that no operand has; there are {list(symbols)}")
    terms = ("".join(symbols[name] for name in operand) for operand in operands)
    return ",".join(terms) + "->" + "".join(symbols[name] for name in output)
