"""The width and the scale of every module of a LoRA folder."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tntune.checkpoint.expression import check_expression, end_expression, matches_end
from tntune.errors import CheckpointError
from tntune.files import Json

__all__ = ["ScaleRule"]

_LARGEST = 1e38
_WIDEST = 2**31


@dataclass(frozen=True)
class ScaleRule:
    """Width r and scale of a module: alpha / r, or alpha / sqrt(r) for rsLoRA, with the patterns of PEFT.

    A pattern's key is a regular expression that must match the end of the module path, from a dot on; the
    first key that matches decides, else the default does. PEFT sorts the keys when it saves, so the first is
    the first of the file.

    Example:
        >>> rule = ScaleRule(8, 16.0, {"h.0.fc": 4}, {}, use_rslora=False)
        >>> rule.of("model.h.0.fc"), rule.of("model.h.1.fc")
        ((4, 4.0), (8, 2.0))

    Reference: Hu et al. (2021), section 4.1; Kalajdzievski (2023), equation 3, for rsLoRA.
    """

    width: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool

    @classmethod
    def from_config(cls, config: Json, file: Path) -> "ScaleRule":
        """The rule that a configuration states; CheckpointError names the file and the key that is wrong."""
        ranks = _pattern(config, "rank_pattern", file)
        alphas = _pattern(config, "alpha_pattern", file)
        for place, value in {"r": config.get("r"), **_places("rank_pattern", ranks)}.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _WIDEST:
                raise CheckpointError(f"{file}: {place}: must be a positive integer, not {value!r:.80}")
        for place, value in {
            "lora_alpha": config.get("lora_alpha"),
            **_places("alpha_pattern", alphas),
        }.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < abs(value) < _LARGEST:
                raise CheckpointError(
                    f"{file}: {place}: must be a finite number other than 0, not {value!r:.80}"
                )
        use_rslora = config.get("use_rslora", False)
        if not isinstance(use_rslora, bool):
            raise CheckpointError(f"{file}: use_rslora: must be true or false, not {use_rslora!r}")
        return cls(config["r"], config["lora_alpha"], ranks, alphas, use_rslora)

    @cached_property
    def _ranks(self) -> "_Keys":
        return _Keys(self.rank_pattern)

    @cached_property
    def _alphas(self) -> "_Keys":
        return _Keys(self.alpha_pattern)

    def of(self, name: str) -> tuple[int, float]:
        """Width and scale of the module of that path."""
        width = self._ranks.of(name, self.width)
        alpha = self._alphas.of(name, self.alpha)
        return width, alpha / (math.sqrt(width) if self.use_rslora else width)


def _pattern(config: Json, key: str, file: Path) -> dict[str, Any]:
    """The pattern of that key, its regular expressions checked."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{file}: {key}: must be an object, not {pattern!r}")
    for expression in pattern:
        check_expression(end_expression(expression), f"{file}: {key}")
    return pattern


def _places(key: str, pattern: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a pattern by where they stand in the configuration."""
    return {f"{key}: {expression}": value for expression, value in pattern.items()}


class _Keys:
    """The keys of a pattern: those of one path each are looked up, the others tried in turn."""

    def __init__(self, pattern: Mapping[str, Any]) -> None:
        self.values = list(pattern.values())
        self.paths: dict[str, int] = {}
        self.others: list[tuple[int, str]] = []
        for number, key in enumerate(pattern):
            path = re.sub(r"\\(.)", r"\1", key[1:])
            if key == f"^{re.escape(path)}":
                self.paths[path] = number
            else:
                self.others.append((number, key))

    def of(self, name: str, default: Any) -> Any:
        """Value of the first key that matches the end of the path."""
        first = self.paths.get(name, len(self.values))
        for number, key in self.others:
            if number > first:
                break
            if matches_end(key, name):
                return self.values[number]
        return self.values[first] if first < len(self.values) else default
