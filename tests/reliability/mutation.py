"""Damage: bytes, JSON values and safetensors headers, changed at random in ways that readers fear."""

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

__all__ = ["VALUES", "mutated_bytes", "mutated_header", "mutated_json", "strange_name"]

NAMES = (
    "",
    ".",
    "..",
    "../../outside",
    "/outside",
    "a\0b",
    "a" * 300,
    "a." * 200 + "b",
    "ΔW/\u202e",
    "\x1b[2J",
    "line\nbreak",
    "__metadata__",
    "C:\\outside",
    "con",
    "ａ",
    "é",
    "e\u0301",
)
"""Names that file systems, terminals and parsers stumble over."""

EXPRESSIONS = (
    *("(a+)+$", "(.*)*x", "(.|.)*y", ".*.*.*.*.*.*.*z", "(" * 500, "[", "a{99999999999}", "\\"),
    *("(?P<n>.)(?P=n)*", "(?=.*)*", "(?<!a)(b|c)", "(?i)FC|x", "(?>a*)b", "a*+b"),
)
"""Regular expressions that are wrong, or take for ever."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a",
    "4",
    "null",
    "\ud800",
    "\ufffe",
    [],
    [[]],
    [0],
    [None],
    ["fc"],
    [1] * 100,
    {},
    {"": 1},
    {"a": {"b": {}}},
    *NAMES,
    *EXPRESSIONS,
)
"""Values that a reader does not expect."""


def strange_name(draw: Random, name: str) -> str:
    """Another name, near or far."""
    choices: tuple[Callable[[], str], ...] = (
        lambda: draw.choice(NAMES),
        lambda: name + draw.choice(NAMES),
        lambda: draw.choice(NAMES) + name,
        lambda: name.replace(".", draw.choice(("..", "/", "", "_", "\0")), 1),
        lambda: name[: draw.randrange(len(name) + 1)],
        lambda: name.upper(),
        lambda: name.replace("lora_A", draw.choice(("lora_B", "lora_magnitude_vector", "lora_C"))),
        lambda: name + draw.choice((".alpha", ".weight", ".bias", ".dora_scale", ".diff", ".lora_A.weight")),
    )
    return draw.choice(choices)()


def mutated_bytes(draw: Random, content: bytes) -> bytes:
    """The bytes with a few changes: flips, cuts, insertions, copies, extreme words."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(made) + 1) if draw.random() < 0.6 else draw.randrange(min(len(made), 64) + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del made[at:]
        elif kind == 2:
            made[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 3:
            del made[at : at + draw.randrange(1, 17)]
        elif kind == 4:
            made[at : at + 8] = struct.pack("<Q", draw.choice((0, 1, 2**32, 2**63, 2**64 - 1, len(made))))
        else:
            start = draw.randrange(len(made) + 1)
            made[at:at] = made[start : start + draw.randrange(1, 65)]
    return bytes(made)


def mutated_json(draw: Random, value: Any) -> str:
    """Text of the JSON value with a few places changed, dropped, renamed, repeated or nested deep."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holder, key = draw.choice(_places(value) or [(value, None)])
        if key is not None:
            _change(draw, holder, key)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.9)
    return _raw(draw, text)


def mutated_header(draw: Random, content: bytes) -> bytes:
    """A safetensors file whose header lies: of dtypes, shapes, offsets, names, or of its own length."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not header:
            break
        key = draw.choice(list(header))
        kind = draw.randrange(6)
        entry = header[key]
        if kind == 0:
            header[strange_name(draw, key)] = header.pop(key)
        elif kind == 1 or key == "__metadata__":
            header[draw.choice((key, "__metadata__"))] = _value(draw, {"format": 3}, {"a": "b"})
        elif not isinstance(entry, dict):
            continue
        elif kind == 2:
            entry["dtype"] = _value(draw, *_DTYPES)
        elif kind == 3:
            entry["shape"] = _shape(draw, entry.get("shape"))
        elif kind == 4:
            entry["data_offsets"] = _offsets(draw, entry.get("data_offsets"), len(data))
        else:
            entry.pop(draw.choice(list(entry) or ["dtype"]), None)
    text = _raw(draw, json.dumps(header)).encode("utf-8", "surrogatepass")
    text += b" " * draw.choice((0, 0, -len(text) % 8, 7))
    lies = (len(text) + 1, len(text) - 1, 0, 2**40, 2**63, 2**64 - 1, 10**8 + 1)
    stated = draw.choice((len(text),) * 7 + lies)
    return struct.pack("<Q", stated) + text + data


_DTYPES = (
    *("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64"),
    *("I64", "U64", "C64", "C128", "F4", "F6_E2M3", "F8_E8M0", "f32", "F128", ""),
)


def _shape(draw: Random, shape: Any) -> Any:
    """Another shape, often of the same number of entries."""
    if not isinstance(shape, list) or not shape or draw.random() < 0.4:
        return _value(draw, [0, 3], [-1, 2], [2**40] * 2, [2**63], [1.5], [1] * 70, [2**32] * 2)
    return draw.choice((shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [*shape[:-1], 7], [0]))


def _offsets(draw: Random, offsets: Any, size: int) -> Any:
    """Another place in the file: shifted, turned round, overlapping, outside."""
    if not isinstance(offsets, list) or len(offsets) != 2 or draw.random() < 0.3:
        return _value(draw, [0, size], [size, size], [0, 0], [0, 2**64 - 1], [2**63, 2**63 + 4], [4])
    start, end = offsets
    moved = ([end, start], [start + 1, end + 1], [0, end - start], [start, end + 4], [start, end, end])
    return draw.choice(moved)


def _value(draw: Random, *others: Any) -> Any:
    """A value that a reader does not expect, of its own."""
    return deepcopy(draw.choice((*VALUES, *others)))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    if isinstance(value, dict):
        own = [(value, key) for key in value]
        return own + [place for item in value.values() for place in _places(item)]
    if isinstance(value, list):
        return [(value, i) for i in range(len(value))] + [place for item in value for place in _places(item)]
    return []


def _change(draw: Random, holder: Any, key: Any) -> None:
    """One place of a JSON value: another value, none, another key, or deep nesting."""
    kind = draw.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[strange_name(draw, str(key))] = deepcopy(holder[key])
    elif kind == 2:
        nested: Any = _value(draw)
        for _ in range(draw.choice((1, 3, 60))):
            nested = draw.choice(([nested], {"a": nested}))
        holder[key] = nested
    elif kind == 3 and isinstance(holder[key], int | float):
        number = holder[key]
        holder[key] = draw.choice((-number, number + 1, number * 10**9, str(number), [number]))
    else:
        holder[key] = _value(draw)


def _raw(draw: Random, text: str) -> str:
    """The text itself, or with what json.dumps would not write."""
    kind = draw.randrange(24)
    if kind == 0:
        return text.replace(":", ': 1, "r":', 1)
    if kind == 1:
        return text.replace("{", '{"peft_type": "LORA", "peft_type": "LORA", ', 1)
    if kind == 2:
        return text + draw.choice(("]", "}", " x", "\0", text))
    if kind == 3:
        return draw.choice(("[", '{"a":')) * draw.choice((10, 2000, 200_000))
    if kind == 4:
        return text.replace("4", draw.choice(("1e999", "-Infinity", "9" * 5000, "4e-400", "0x4", "04")), 1)
    if kind == 5:
        return "\ufeff" + text
    return text
