"""Regular expressions of strangers: matched in time that their lengths bound, as backtracking is not."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from tntune.errors import CheckpointError

__all__ = ["check_expression", "end_expression", "matches", "matches_end"]

_Node = Callable[[str, int], int]
"""Where a part of an expression ends in a text, given where it starts: bit p stands for position p."""

_TOKEN = re.compile(
    r"(?P<group>\((?:\?(?:P<\w+>|<?[=!]|:))?)"
    r"|(?P<repeat>(?:[*+?]|\{(?:\d+(?:,\d*)?|,\d*)\})[?+]?)"
    r"|(?P<atom>\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|.)"
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]|.)",
    re.DOTALL,
)
_FLAGS = re.compile(r"\(\?[aimsu]+\)")
_NEVER_SLOW = re.compile(r"[^*+?{|]*")
_BACK = re.compile(r"\\[1-9]")


def check_expression(expression: str, place: str) -> None:
    """Raise CheckpointError where an expression cannot be matched; ``place`` begins the message.

    Example:
        >>> check_expression("h.[0", "c.json: rank_pattern")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tntune.errors.CheckpointError: c.json: rank_pattern: 'h.[0' is no regular expression: ...
    """
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{place}: {expression!r:.200} is no regular expression: {error}") from error
    try:
        _parsed(expression)
    except (re.error, RecursionError) as error:
        raise CheckpointError(f"{place}: {expression!r:.200} is not matched by tntune: {error}") from error


def matches(expression: str, text: str) -> bool:
    """``re.fullmatch(expression, text) is not None``, in O(len(expression) len(text)²) steps.

    Instead of one way after another, as ``re`` does, all ways are followed at once: of each part of the
    expression, where it may end, for the set of positions where it may start. So expressions such as
    ``(a+)+`` from a file that nobody has looked at do not hang. Groups, alternatives, repeats, looks ahead
    and behind are known; references to groups, atomic groups and possessive repeats are refused.

    Args:
        expression: One that :func:`check_expression` lets pass.
        text: Path of a module.

    Example:
        >>> matches("(.*[.])?(q|k)_proj", "h.0.q_proj"), matches("(a+)+$", "a" * 500 + "b")
        (True, False)

    Reference: Thompson (1968), Regular expression search algorithm.
    """
    if _NEVER_SLOW.fullmatch(expression):
        return re.fullmatch(expression, text) is not None
    return bool(_parsed(expression)(text, 1) >> len(text))


def matches_end(expression: str, text: str) -> bool:
    """``re.match(end_expression(expression), text) is not None``, in as many steps as :func:`matches`.

    Example:
        >>> matches_end("h.0.fc", "model.h.0.fc"), matches_end("^h.0.fc", "model.h.0.fc")
        (True, False)
    """
    if _NEVER_SLOW.fullmatch(expression):
        return _end_pattern(expression).match(text) is not None
    return bool(_parsed(end_expression(expression))(text, 1))


def end_expression(expression: str) -> str:
    """What a path must match from its start for its end, from a dot on, to match, by PEFT's rule.

    Example:
        >>> print(end_expression("fc|proj"))
        (.*[.])?(fc|proj)$
    """
    return f"(.*[.])?({expression})$"


@lru_cache(maxsize=2**14)
def _end_pattern(expression: str) -> re.Pattern[str]:
    """The compiled pattern: a folder may name each of its layers, and ``re`` keeps but a few hundred."""
    return re.compile(end_expression(expression))


@lru_cache(maxsize=1024)
def _parsed(expression: str) -> _Node:
    """The expression as a function of starts."""
    flags = _FLAGS.match(expression)
    parser = _Parser(expression[flags.end() :] if flags else expression, flags[0] if flags else "")
    return parser.alternatives()


class _Parser:
    """Reads an expression that ``re`` has found valid, from left to right."""

    def __init__(self, expression: str, flags: str) -> None:
        self.expression, self.flags, self.at = expression, flags, 0

    def alternatives(self) -> _Node:
        """What stands between parentheses."""
        branches = [self._sequence()]
        while self.expression[self.at : self.at + 1] == "|":
            self.at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else _any_of(branches)

    def _sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.expression) and self.expression[self.at] not in "|)":
            token = _TOKEN.match(self.expression, self.at)
            assert token is not None  # any character is an atom
            self.at = token.end()
            if token["repeat"]:
                parts.append(_repeated(parts.pop(), token[0]))
            else:
                parts.append(self._group(token[0]) if token["group"] else self._atom(token[0]))
        return _one_after_another(parts)

    def _atom(self, token: str) -> _Node:
        if _BACK.match(token):
            raise re.error("it refers to a group")
        pattern = re.compile(self.flags + token)

        def node(text: str, starts: int) -> int:
            found = [pattern.match(text, p) for p in _positions(starts)]
            return sum({1 << match.end() for match in found if match})

        return node

    def _group(self, opening: str) -> _Node:
        if self.expression[self.at : self.at + 1] == "?":
            raise re.error(f"it has a group {opening}{self.expression[self.at : self.at + 2]}")
        inner = self.alternatives()
        self.at += 1
        if opening[-1] not in "=!" or opening == "(":
            return inner
        return _look(inner, behind="<" in opening, wanted=opening.endswith("="))


def _positions(bits: int) -> list[int]:
    """The positions of a set."""
    return [p for p in range(bits.bit_length()) if bits >> p & 1]


def _any_of(branches: Sequence[_Node]) -> _Node:
    def node(text: str, starts: int) -> int:
        ends = 0
        for branch in branches:
            ends |= branch(text, starts)
        return ends

    return node


def _one_after_another(parts: Sequence[_Node]) -> _Node:
    def node(text: str, starts: int) -> int:
        for part in parts:
            starts = part(text, starts) if starts else 0
        return starts

    return node


def _repeated(part: _Node, repeat: str) -> _Node:
    """The part again and again, as often as ``*``, ``+``, ``?`` or ``{m,n}`` says."""
    if repeat.endswith("+") and len(repeat) > 1:
        raise re.error(f"it has the possessive repeat {repeat}")
    bounds = {"*": ",", "+": "1,", "?": ",1"}.get(repeat[0], repeat.rstrip("?").strip("{}"))
    least, _, most = bounds.partition(",") if "," in bounds else (bounds, "", bounds)
    lowest, highest = int(least or 0), int(most) if most else None

    def node(text: str, starts: int) -> int:
        for _ in range(lowest):
            before, starts = starts, part(text, starts)
            if starts == before:  # so will it be after any more rounds
                break
        seen = fresh = starts
        rounds = 0
        while fresh and (highest is None or rounds < highest - lowest):
            fresh = part(text, fresh) & ~seen
            seen, rounds = seen | fresh, rounds + 1
        return seen

    return node


def _look(inner: _Node, *, behind: bool, wanted: bool) -> _Node:
    """The starts from which, or up to which, the inner expression matches or does not."""

    def found(text: str, p: int) -> bool:
        if behind:
            return bool(inner(text, (2 << p) - 1) >> p & 1)
        return bool(inner(text, 1 << p))

    def node(text: str, starts: int) -> int:
        return sum(1 << p for p in _positions(starts) if found(text, p) is wanted)

    return node
