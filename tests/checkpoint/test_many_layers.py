"""Laws of folders with very many layers: looking names up finds what trying each in turn would find."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tntune.checkpoint import LoraEntry, expression, open_lora, write_lora
from tntune.checkpoint.expression import end_expression
from tntune.checkpoint.lora_config import target_rule
from tntune.checkpoint.scale import ScaleRule

PARTS = st.sampled_from(["h", "0", "1", "fc", "fc1", "q-k", "a+b"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(".".join)
KEYS = st.one_of(
    PATHS.map(lambda path: "^" + re.escape(path)),  # one path, as tntune writes it
    PATHS.map(re.escape),
    PATHS.map(lambda path: "^" + path.replace("+", "[+]")),  # dots that match anything
    st.sampled_from(["fc", r"h\.\d+\.fc", "^h[.]0", ".*1", "^", "q-k|fc1"]),
)


@given(st.lists(PATHS, max_size=6), PATHS)
def test_targets_are_ends_of_paths_from_a_dot_on(targets: list[str], name: str) -> None:
    expected = any(f".{name}".endswith(f".{target}") for target in targets)
    assert target_rule({"target_modules": targets})(name) is expected


@given(st.lists(KEYS, max_size=8, unique=True), PATHS)
def test_the_first_key_of_a_pattern_that_matches_decides(keys: list[str], name: str) -> None:
    pattern = {key: number + 1 for number, key in enumerate(keys)}
    hits = [value for key, value in pattern.items() if re.match(end_expression(key), name)]
    rule = ScaleRule(99, 7.0, pattern, {}, use_rslora=False)
    assert rule.of(name)[0] == (hits[0] if hits else 99)
    assert ScaleRule(1, 99.0, {}, pattern, use_rslora=False).of(name)[1] == (hits[0] if hits else 99.0)


def test_a_folder_that_names_each_of_its_layers_tries_no_expression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = {f"h.{number}.fc": 1 + number % 3 for number in range(60)}
    entries = [LoraEntry(name, torch.ones(width, 3), torch.ones(2, width)) for name, width in widths.items()]
    write_lora(tmp_path / "lora", entries, base_config={})
    tried: list[str] = []
    real: Callable[[str, str], bool] = expression.matches_end
    monkeypatch.setattr(
        "tntune.checkpoint.scale.matches_end", lambda key, name: tried.append(key) or real(key, name)
    )
    opened = open_lora(tmp_path / "lora")
    assert {site.name: site.width for site in opened.sites} == widths
    assert opened.by_name == {site.name: site for site in opened.sites}
    assert tried == []
