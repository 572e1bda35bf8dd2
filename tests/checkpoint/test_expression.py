"""Law: an expression matches what ``re`` matches, and the answer comes in time whatever the expression."""

import re
from random import Random

import pytest

from tntune.checkpoint.expression import check_expression, end_expression, matches, matches_end
from tntune.errors import CheckpointError

ATOMS = ("a", "b", ".", r"\w", r"\d", "[ab]", "[^a]", "[]a]", "1", "^", "$", r"\b", r"\.", r"\x61")
REPEATS = ("*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{,2}", "{2,}", "{0}", "{x}", "")

UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)"
    r".*?(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj|gate_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|v_proj|q_proj|gate_proj)))"
)
PATHS = (
    "model.layers.17.mlp.gate_proj",
    "model.language.layers.0.attn.q_proj",
    "vision.layers.0.q_proj",
    "q_proj",
)
IN_USE = (UNSLOTH, r"^(?!.*vision).*q_proj", r".*(?<!vision)\.layers.*", r"(?i).*Q_PROJ", r".*\.(q|k|v)_proj")


def expression(draw: Random, depth: int = 0) -> str:
    """A drawn expression, most of them valid."""
    kind = draw.random()
    if depth > 3 or kind < 0.35:
        return draw.choice(ATOMS)
    if kind < 0.6:
        return expression(draw, depth + 1) + expression(draw, depth + 1)
    if kind < 0.75:
        return draw.choice(("(", "(?:", "(?P<n>")) + expression(draw, 4) + ")" + draw.choice(REPEATS)
    if kind < 0.87:
        return f"({expression(draw, depth + 1)}|{expression(draw, depth + 1)}){draw.choice(REPEATS)}"
    return draw.choice(("(?=", "(?!", "(?<=a", "(?<!b")) + draw.choice(ATOMS[:6]) + ")"


def test_expressions_match_as_re_does() -> None:
    draw, tried = Random(0), 0
    for _ in range(6000):
        drawn = expression(draw)
        try:
            re.compile(drawn)
        except re.error:
            continue
        text = "".join(draw.choice("ab1.n") for _ in range(draw.randrange(8)))
        assert matches(drawn, text) is (re.fullmatch(drawn, text) is not None), (drawn, text)
        found = re.match(end_expression(drawn), text) is not None
        assert matches_end(drawn, text) is found, (drawn, text)
        tried += 1
    assert tried > 4000


@pytest.mark.parametrize("used", IN_USE, ids=range(len(IN_USE)))
@pytest.mark.parametrize("path", PATHS)
def test_expressions_that_people_use(used: str, path: str) -> None:
    check_expression(used, "c.json")
    assert matches(used, path) is (re.fullmatch(used, path) is not None)


@pytest.mark.parametrize(
    "hostile", ["(a+)+b", "(.*)*x", "(.|.)*y", ".*.*.*.*.*.*.*.*z", "((((a*)*)*)*)*b", "(a|a)*c"]
)
def test_hostile_expressions_end(hostile: str) -> None:
    check_expression(hostile, "c.json")
    assert not matches(hostile, "a" * 400)
    assert not matches_end(hostile, "a" * 400)


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (r"(.)\1*", "it refers to a group"),
        ("(?P<n>.)(?P=n)*", r"it has a group \(\?P"),
        ("(?(1)a|b)", "no regular expression|it has a group"),
        ("[", "is no regular expression"),
        ("(" * 5000 + "a*" + ")" * 5000, "is no regular expression|is not matched by tntune"),
    ],
    ids=["reference", "named reference", "condition", "no expression", "nested deep"],
)
def test_what_is_not_matched_is_refused(refused: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        check_expression(refused, "c.json: rank_pattern")
